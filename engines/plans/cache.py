"""Engine files (TensorRT's plans) on this machine's disk, each with a manifest of its own.

An engine file is code: whoever hands it to TensorRT runs it. So they are built here and never come
from a bundle, and what is read back has passed every check before any library sees it: the folder
and the files belong to this user or to root and nobody else may write to them, the manifest is
unaltered (it carries its own SHA-256), it fits graph, library, version and GPU, and the engine file
has the size and SHA-256 that it states. The sums find damage and mix-ups; other users are kept out
by ownership.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from percoedge.engines.plans.profiles import Profile
from percoedge.engines.plans.record import (
    BuildRequest,
    PlanRecord,
    decode_record,
    encode_record,
    name_prefix,
    rebuild_command,
)
from percoedge.engines.tensorrt.library import Library, supported_targets
from percoedge.errors import BackendError, OutputError
from percoedge.replacing import replacing

__all__ = ["CACHE_VARIABLE", "PlanCache", "kernels_name", "timing_name"]

CACHE_VARIABLE = "PERCOEDGE_CACHE"
"""Environment variable that names the folder of the engine files."""

_CHUNK_BYTES = 1 << 20
_MODE = 0o644  # of files, whatever the umask: group members must not be able to write
_MAX_MANIFEST_BYTES = 1 << 16
_MAX_KEPT_BYTES = 1 << 30
_SUM_BYTES = 32
_SCRATCH = "partial-"
_SCRATCH_SECONDS = 24 * 3600.0  # what is older was left by a build that was killed


class PlanCache:
    """Those in one folder: ``root``, else $PERCOEDGE_CACHE, else the user's cache folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = _default_root() if root is None else root
        self._named = root
        self._sound: dict[str, tuple[int, ...]] = {}  # by SHA-256, what the system says of the file

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder in the cache for the files of one build; gone afterwards.

        Creates the cache. Raises OutputError when that fails, and BackendError for a cache that
        others may write to.
        """
        try:
            self.root.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._check_root()
            self._sweep()
            folder = tempfile.TemporaryDirectory(
                prefix=_SCRATCH, dir=self.root, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise OutputError(
                f"{self.root}: cannot be written: {error}; choose another folder with --cache or "
                f"{CACHE_VARIABLE}"
            ) from error
        with folder as name:
            yield Path(name)

    def store(
        self,
        plan: Path,
        *,
        kind: str,
        precision: str,
        graph_sha256: str,
        library: Library,
        targets: Sequence[int],
        profile: Profile,
        device: str | None = None,
        flags: Sequence[str] = (),
        driver: str | None = None,
        request: BuildRequest | None = None,
    ) -> PlanRecord:
        """Move an engine file out of ``scratch`` into the cache and write its manifest.

        It replaces that of the same graph, library, version and targets. A manifest and the engine
        file that it names always belong together, also while several builds run. Raises
        OutputError.
        """
        digest, size = _hash_file(plan)
        record = PlanRecord(
            kind=kind,
            precision=precision,
            graph_sha256=graph_sha256,
            library=library.name,
            version=library.version,
            targets=tuple(targets),
            device=device,
            profile=profile,
            flags=tuple(flags),
            driver=driver,
            request=request or BuildRequest(),
            built=datetime.now(timezone.utc).isoformat(),
            plan_sha256=digest,
            size=size,
        )
        manifest = self.root / f"{record.stem}.json"
        replaced = None
        with contextlib.suppress(BackendError):
            replaced = self._manifest(manifest).plan_name
        try:
            plan.chmod(_MODE)
            os.replace(plan, self.root / record.plan_name)
            with replacing(manifest, _MODE) as file:
                file.write(encode_record(record))
            if replaced not in (None, record.plan_name):
                for name in (str(replaced), kernels_name(str(replaced))):
                    (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                f"{self.root}: the engine file cannot be kept: {error}; choose another folder with "
                f"--cache or {CACHE_VARIABLE}"
            ) from error
        return record

    def records(self, library: str) -> list[PlanRecord]:
        """Every sound manifest of a library, in the order of file names; nothing else is read."""
        found = []
        with contextlib.suppress(BackendError):
            self._check_root()
            for path in sorted(self.root.glob("*.json")):
                with contextlib.suppress(BackendError):
                    found.append(self._manifest(path))
        return [record for record in found if record.library == library]

    def find(
        self,
        kind: str,
        graph_sha256: str,
        library: Library,
        sm: int | None = None,
        device: str | None = None,
    ) -> PlanRecord:
        """The engine file of a graph for a library and a GPU, the newest if there are several.

        ``sm``: compute capability of the GPU, and ``device`` its model; None finds one for any.
        Raises BackendError with the command to run when there is none, or none that is sound and
        fits.
        """
        if not self.root.exists():
            raise self._refusal(kind, library, "found none")
        self._check_root()
        found, reasons, closest = [], [], None
        pattern = f"{name_prefix(kind, graph_sha256, library.name)}*.json"
        for path in sorted(self.root.glob(pattern)):
            try:
                record = self._manifest(path)
            except BackendError as error:
                reasons.append(str(error))
                continue
            if (record.kind, record.library) != (kind, library.name):
                continue  # "tensorrt-*" finds those of tensorrt-rtx too
            if record.graph_sha256 != graph_sha256:
                reasons.append(f"{path.name} is of another graph")
            elif record.version != library.version:
                reasons.append(f"{path.name} was built by version {record.version}")
                closest = record
            elif sm is not None and sm not in record.targets:
                reasons.append(f"{path.name} is for SM {', '.join(map(str, record.targets))}")
                closest = record
            elif device is not None and record.device not in (None, device):
                reasons.append(f"{path.name} is for {record.device}, and this is {device}")
                closest = record
            else:
                found.append(record)
        if not found:
            raise self._refusal(kind, library, "; ".join(reasons) or "found none", sm, closest)
        return max(found, key=lambda record: record.built)

    def map(self, record: PlanRecord) -> mmap.mmap:
        """The bytes of an engine file, of the size and SHA-256 in its manifest, mapped from disk.

        So they take no memory but that which the system lends to files; nobody but this user and
        root can write to them meanwhile, and a build replaces the file as a whole. A file that has
        not changed since it was found sound is not read again for its sum. Unmapped when nobody
        refers to it. Raises BackendError with the command to run when the file is missing
        or altered.
        """
        path = self.root / record.plan_name
        self._check_root()
        try:
            with _own_file(path) as file:
                info = os.fstat(file.fileno())
                if info.st_size != record.size:
                    raise BackendError(f"{path}: expected {record.size} bytes, got {info.st_size}")
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            seen = (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns)
            if self._sound.get(record.plan_sha256) != seen:
                digest = hashlib.sha256(data).hexdigest()
                if digest != record.plan_sha256:
                    expected = f"expected SHA-256 {record.plan_sha256}, got {digest}"
                    raise BackendError(f"{path}: {expected}: it was altered")
                self._sound[digest] = seen
        except BackendError as error:
            command = self._command(record.kind, record.library, record.targets, record.request)
            raise BackendError(f"{error}; build it again: {command}") from error
        return data

    def kept(self, name: str) -> bytes | None:
        """What ``keep`` kept under a name; None for nothing or for what is not sound."""
        with contextlib.suppress(BackendError):
            self._check_root()
            data = _read_own_file(self.root / name, _MAX_KEPT_BYTES)
            if hashlib.sha256(data[_SUM_BYTES:]).digest() == data[:_SUM_BYTES]:
                return data[_SUM_BYTES:]
        return None

    def keep(self, name: str, data: bytes) -> None:
        """Keep what a library compiled or timed for the GPU at hand, for the next process.

        Nothing happens where it cannot be written: the next process does it again.
        """
        with contextlib.suppress(BackendError, OSError):
            self._check_root()
            with replacing(self.root / name, _MODE) as file:
                file.write(hashlib.sha256(data).digest() + data)

    def _manifest(self, path: Path) -> PlanRecord:
        """Read and check one manifest; raises BackendError."""
        data = _read_own_file(path, _MAX_MANIFEST_BYTES)
        try:
            return decode_record(data)
        except ValueError as error:
            raise BackendError(f"{path}: {error}") from error

    def _check_root(self) -> None:
        try:
            info = self.root.stat()  # the folder itself may be reached through a link
        except OSError as error:
            raise BackendError(f"{self.root}: cannot be opened: {error}") from error
        if not stat.S_ISDIR(info.st_mode):
            raise BackendError(
                f"{self.root}: expected a folder for engine files, got something else; choose "
                f"another with {CACHE_VARIABLE}"
            )
        _check_owner(self.root, info)

    def _sweep(self) -> None:
        """Remove what killed builds left: graphs and engine files, which can be gigabytes."""
        for folder in self.root.glob(f"{_SCRATCH}*"):
            with contextlib.suppress(OSError):
                if time.time() - folder.lstat().st_mtime > _SCRATCH_SECONDS:
                    shutil.rmtree(folder, ignore_errors=True)

    def _refusal(
        self,
        kind: str,
        library: Library,
        reason: str,
        sm: int | None = None,
        closest: PlanRecord | None = None,
    ) -> BackendError:
        buildable = supported_targets(library)
        if sm is not None and buildable and sm not in buildable:
            advice = (
                f"it is built for SM {', '.join(map(str, buildable))} only: take another backend "
                "(percoedge doctor lists them)"
            )
        else:
            targets: set[int] = set(closest.targets) if closest else set()
            if targets and sm is not None:
                targets.add(sm)
            request = closest.request if closest else None
            advice = f"build it: {self._command(kind, library.name, sorted(targets), request)}"
        here = "" if sm is None else f" on SM {sm}"
        return BackendError(
            f"{self.root}: expected an engine file of graph {kind!r} for {library.name} "
            f"{library.version}{here}; {reason}; {advice}"
        )

    def _command(
        self, kind: str, library: str, targets: Sequence[int], request: BuildRequest | None
    ) -> str:
        return rebuild_command(
            library, kind=kind, targets=targets, request=request, cache=self._named
        )


def kernels_name(plan_name: str) -> str:
    """Under which name the kernels are kept that were compiled for an engine file."""
    return f"{plan_name}.kernels"


def timing_name(library: Library, targets: Sequence[int]) -> str:
    """Under which name a library's times of kernels are kept, for later builds."""
    return f"{library.name}-{library.version}-sm{'-'.join(map(str, targets))}.timing"


def _default_root() -> Path:
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    variable = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
    base = os.environ.get(variable)
    return (Path(base) if base else Path.home() / ".cache") / "percoedge" / "engines"


def _hash_file(path: Path) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest.hexdigest(), size


@contextlib.contextmanager
def _own_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; raises BackendError, also for what the system says inside.

    Owner and rights are those of the file that was opened, and links are not followed.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        with open(os.open(path, flags | getattr(os, "O_BINARY", 0)), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise BackendError(f"{path}: expected a file, got something else")
            _check_owner(path, info)
            yield file
    except OSError as error:
        raise BackendError(f"{path}: expected a file that can be read: {error}") from error


def _read_own_file(path: Path, limit_bytes: int) -> bytes:
    """Read at most ``limit_bytes`` + 1 bytes of ``_own_file``; raises BackendError."""
    with _own_file(path) as file:
        return file.read(limit_bytes + 1)


def _check_owner(path: Path, info: os.stat_result) -> None:
    """Refuse what others could have written. There are no such rights to look at on Windows."""
    if not hasattr(os, "geteuid"):
        return
    advice = f"engine files run as code: use a folder of your own, with --cache or {CACHE_VARIABLE}"
    if info.st_uid not in (0, os.geteuid()):
        raise BackendError(
            f"{path}: expected it to belong to this user or to root, got owner {info.st_uid}; "
            f"{advice}"
        )
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        shared = info.st_mode & stat.S_ISVTX  # /tmp and its like are meant to be
        mend = "" if shared else f", or run: chmod go-w {shlex.quote(os.fspath(path))}"
        raise BackendError(
            f"{path}: expected that nobody else may write to it, got mode "
            f"{stat.S_IMODE(info.st_mode):o}; {advice}{mend}"
        )
