"""Reads the files of a bundle out of a directory or a .zip, trusting neither.

Names come from a manifest and are safe already (manifest.check_file_name); here links, odd files,
lying archives and sizes are refused, and every read is bounded by the size that it is to have.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from percoedge.engines.bundle.manifest import check_file_name
from percoedge.errors import BundleError

__all__ = ["DirectoryStorage", "Storage", "ZipStorage", "open_storage"]

_MAX_ZIP_ENTRIES = 4096
# What zipfile raises for broken archives, found by altering bytes at random.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OSError,
    ValueError,
)


class Storage(Protocol):
    """Gives the files of one bundle for reading."""

    def size(self, name: str) -> int:
        """Size of a file in bytes, as the storage states it. Raises BundleError when missing."""
        ...

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading; read no more than the size expected. Raises BundleError."""
        ...


def open_storage(path: Path) -> Storage:
    """Open a directory or a .zip; raises BundleError when it is neither."""
    if path.is_dir():
        return DirectoryStorage(path)
    if path.is_file():
        return ZipStorage(path)
    raise BundleError(f"{path}: expected a bundle directory or .zip, found nothing; check the path")


class DirectoryStorage:
    """Files below a directory; links are followed only where they stay inside it."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def size(self, name: str) -> int:
        """Bytes of a file. Raises BundleError when it is missing or cannot be read."""
        return self._find(name).stat().st_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading. Raises BundleError when it is missing or cannot be read."""
        try:
            with self._find(name).open("rb") as file:
                yield file
        except OSError as error:
            raise BundleError(f"{self._root}: cannot read {name!r}: {error}") from error

    def _find(self, name: str) -> Path:
        path = self._root / name
        try:
            target = path.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, Python < 3.13
            raise BundleError(
                f"{self._root}: expected a file {name!r}, cannot find it ({error}); "
                "fetch the bundle again"
            ) from error
        if not target.is_relative_to(self._root):
            raise BundleError(
                f"{self._root}: {name!r} is a link that leaves the bundle; "
                "put the file itself there"
            )
        if not stat.S_ISREG(mode):
            raise BundleError(f"{self._root}: expected {name!r} to be a file; replace it by one")
        return target


class ZipStorage:
    """Files in a .zip, read in place and never extracted; all entries are checked at opening."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[str, zipfile.ZipInfo] = {}
        with self._archive() as archive:
            entries = archive.infolist()
        if len(entries) > _MAX_ZIP_ENTRIES:
            raise BundleError(
                f"{path}: expected at most {_MAX_ZIP_ENTRIES} entries, got {len(entries)}; "
                "pack the bundle again"
            )
        for entry in entries:
            self._admit(entry)

    def size(self, name: str) -> int:
        """Bytes of a file, unpacked. Raises BundleError when it is missing."""
        return self._entry(name).file_size

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open a file for reading. Raises BundleError when it is missing or damaged."""
        with self._archive() as archive, archive.open(self._entry(name)) as file:
            yield file

    def _admit(self, entry: zipfile.ZipInfo) -> None:
        name = entry.orig_filename
        try:
            check_file_name(name.removesuffix("/"))
        except ValueError as error:
            raise BundleError(f"{self._path}: unsafe entry: {error}") from error
        if name in self._entries:
            raise BundleError(f"{self._path}: {name!r} is there twice; pack the bundle again")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BundleError(
                f"{self._path}: expected {name!r} stored or deflated, got method "
                f"{entry.compress_type}; pack the bundle again"
            )
        if entry.flag_bits & 1:
            raise BundleError(f"{self._path}: {name!r} is encrypted; pack the bundle again")
        self._entries[name] = entry

    def _entry(self, name: str) -> zipfile.ZipInfo:
        try:
            return self._entries[name]
        except KeyError:
            raise BundleError(
                f"{self._path}: expected a file {name!r} at the root of the .zip, found "
                f"{', '.join(sorted(self._entries)[:8]) or 'nothing'}; pack the bundle again"
            ) from None

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with zipfile.ZipFile(self._path) as archive:
                yield archive
        except _ZIP_ERRORS as error:
            raise BundleError(
                f"{self._path}: expected a bundle directory or a sound .zip of one; {error}; "
                "fetch the bundle again"
            ) from error
