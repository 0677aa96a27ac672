"""``percoedge decode`` of a folder: several at a time, resumable, past whatever is broken.

Threads share one codec with its weights, and decode and write images: while one waits for its range
decoder or writes its PNG, another one's graphs run. Graphs and zlib let go of Python's lock; what
holds it, the range decoder above all, is about 1 % of an image. On a GPU, images of one size go
through together, as many as its engines take; on a CPU one by one takes the least work. An output
is renamed into its place when it is whole, and percoedge-outputs.jsonl says which outputs are ours:
an interrupted run goes on where it stopped, and no other file is replaced.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_STREAM_BYTES, unpack
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import encode_manifest
from percoedge.engines.processors import usable_processors
from percoedge.engines.selection import select
from percoedge.errors import InputError, OutputError, PercoedgeError, UsageError
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.folder.record import FolderRecord, State
from percoedge.runtime.cli.folder.run import FolderRun, Pair, writing
from percoedge.runtime.cli.outputs import named_outputs
from percoedge.runtime.codec import Codec
from percoedge.runtime.files import STANDARD_STREAM, atomic_write, read_bytes
from percoedge.runtime.images import READ_SUFFIXES, format_of, suffix_of, write_image
from percoedge.runtime.settings import Settings

__all__ = ["REPORT_NAME", "decode_folder", "stream_sha256"]

REPORT_NAME = "percoedge-bad.jsonl"
"""In the output folder: one JSON object, file and error, for every stream that was not decoded."""

_SUFFIX = ".pco"
_MAX_JOBS = 4


def decode_folder(options: Namespace, console: Console) -> int:
    """Decode every .pco file in a folder into another; the exit code is 3 when any was bad.

    Without ``--force``, images that were decoded here from the same streams with the same settings
    are kept, and files that were not are never replaced: their streams count as bad. Raises
    OutputError when an output cannot be written: then no other can.
    """
    source, target = Path(options.input), _output_folder(options)
    kind = format_of(STANDARD_STREAM, options.format)
    outputs, clashes = _named_outputs(source, suffix_of(kind))
    bundle = Bundle.open(options.bundle)
    settings = Settings(bundle, options.steps, options.guidance, options.seed)  # checked once
    jobs, threads = _division(options)
    backend = select(options.backend, bundle=bundle, threads=threads)
    run = FolderRun(source, target / REPORT_NAME)
    began = time.perf_counter()
    with (
        Codec(bundle, backend, low_memory=options.low_memory) as codec,
        FolderRecord(target, outputs.values()) as record,
        console.progress() as line,
    ):
        work = _Work(codec, settings, options, kind, source, target, record)
        for name, error in clashes.items():
            run.add_bad(name, error)
        todo = []
        for number, (name, output) in enumerate(outputs.items()):
            if os.path.lexists(target / output):
                line.show("checking", number / len(outputs))
            try:
                if not work.is_done(name, output):
                    todo.append((name, output))
            except InputError as error:
                run.add_bad(name, error)
        kept = len(outputs) - len(todo) - run.bad + len(clashes)
        if todo:
            record.open()  # a folder that cannot be written to stops here
            if not options.low_memory:
                codec.load_engines(
                    [k for k in ("entropy", "decoder") if k in bundle.kinds]
                )  # and a backend that fails
        most = 1 if options.cut or not todo else codec.max_batch or 1
        groups = work.groups(todo, most)
        run.all(groups, work.decode, min(jobs, len(groups)), line)
    seconds = time.perf_counter() - began
    result = {
        "command": "decode",
        "input": os.fspath(source),
        "output": os.fspath(target),
        "format": kind,
        "streams": len(outputs) + len(clashes),
        "decoded": run.decoded,
        "kept": kept,
        "bad": run.bad,
        "report": os.fspath(run.report) if run.bad else None,
        "seconds": round(seconds, 3),
        "images_per_s": round(run.decoded / seconds, 3),
        "jobs": jobs,
        "threads": threads,
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint.hex(),
        "backend": backend.name,
    }
    console.report(result, _lines(result))
    return InputError.exit_code if run.bad else 0


@dataclass(frozen=True)
class _Work:
    """What is done with one stream; threads share it."""

    codec: Codec
    settings: Settings
    options: Namespace
    kind: str
    source: Path
    target: Path
    record: FolderRecord

    def is_done(self, name: str, output: str) -> bool:
        """Whether the image of a stream is there. Raises InputError where another file is."""
        if not os.path.lexists(self.target / output):
            return False
        state = self._checked_state(output, self._made_from(self._read(name)))
        return state is State.CURRENT and not self.options.force

    def groups(self, todo: Sequence[Pair], most: int) -> list[Sequence[Pair]]:
        """Streams in groups of at most so many, each of images of one size."""
        if most == 1:
            return [[pair] for pair in todo]
        of_size: dict[object, list[Pair]] = {}
        for pair in todo:
            size: object = pair
            with contextlib.suppress(PercoedgeError):  # told when its turn comes
                header = unpack(self._read(pair[0]), bare=self.options.bare).header
                size = (header.width, header.height)
            of_size.setdefault(size, []).append(pair)
        return [
            alike[first : first + most]
            for alike in of_size.values()
            for first in range(0, len(alike), most)
        ]

    def decode(
        self, group: Sequence[Pair], stopped: threading.Event
    ) -> Iterator[tuple[str, Exception | None]]:
        """Decode streams and write their images; yields each with what is wrong, if anything."""
        images: Mapping[str, tuple[bytes, Image.Image]] = {}
        if len(group) > 1:
            with contextlib.suppress(Exception):  # of one stream, or all; they are told one by one
                images = self._decoded_together([name for name, _ in group])
        for name, output in group:
            if stopped.is_set():
                return
            try:
                self._put(*(images.get(name) or self._decoded(name)), output, stopped)
                yield name, None
            except Exception as error:  # of one stream: the others are decoded all the same
                yield name, error

    def _decoded(self, name: str) -> tuple[bytes, Image.Image]:
        data = self._read(name)
        return data, self.codec.decode(data, cut=self.options.cut, **self._how)

    def _decoded_together(self, names: Sequence[str]) -> dict[str, tuple[bytes, Image.Image]]:
        data = [self._read(name) for name in names]
        images = self.codec.decode_batch(data, **self._how)
        return dict(zip(names, zip(data, images, strict=True), strict=True))

    @property
    def _how(self) -> dict[str, Any]:
        return {
            "steps": self.settings.steps,
            "guidance": self.settings.guidance,
            "seed": self.settings.seed,
            "bare": self.options.bare,
            "max_pixels": self.options.max_pixels or DEFAULT_MAX_PIXELS,
        }

    def _put(self, data: bytes, image: Image.Image, output: str, stopped: threading.Event) -> None:
        """Write an image. Raises InputError for what is wrong with it or its place."""
        contents = self._written(image)
        made_from = self._made_from(data)
        if not stopped.is_set():
            self._checked_state(output, made_from)  # somebody may have put a file there meanwhile
            self.record.add(output, contents, made_from)
            atomic_write(self.target / output, contents)

    def _read(self, name: str) -> bytes:
        return read_bytes(self.source / name, limit_bytes=MAX_STREAM_BYTES)

    def _written(self, image: Image.Image) -> bytes:
        buffer = BytesIO()
        try:
            write_image(image, buffer, self.kind)
        except OutputError as error:  # this one only: an image too large for the format
            raise InputError(str(error)) from error
        return buffer.getvalue()

    def _checked_state(self, output: str, made_from: str) -> State:
        """What lies at the name of an image; raises InputError where that must stay."""
        state, path = self.record.state(output, made_from), self.target / output
        if state is State.FOREIGN and not (self.options.force and _is_replaceable(path)):
            raise InputError(
                f"cannot write {path}: expected no file, or an image that was decoded here and not "
                "changed since, got another one; move it, name another folder, or replace it with "
                "--force"
            )
        return state

    def _made_from(self, data: bytes) -> str:
        """Hash (hexadecimal) of all that an image depends on: bundle, settings, stream."""
        options = self.options
        return stream_sha256(self.settings, data, self.kind, bare=options.bare, cut=options.cut)


def stream_sha256(settings: Settings, data: bytes, kind: str, *, bare: bool, cut: bool) -> str:
    """Hash (hexadecimal) of all that an image of format ``kind`` depends on."""
    choices = [settings.steps, settings.guidance, settings.seed, bare, cut, kind]
    digest = hashlib.sha256(encode_manifest(settings.bundle.manifest))
    digest.update(json.dumps(choices).encode() + b"\n" + data)
    return digest.hexdigest()


def _is_replaceable(path: Path) -> bool:
    """Whether writing there replaces a file, be it behind a link: no folder, pipe or device."""
    return path.is_file() or not path.exists()


def _output_folder(options: Namespace) -> Path:
    """The folder of the results, made if it is not there."""
    if options.output in (None, STANDARD_STREAM):
        raise UsageError(
            f"expected a folder for the images of {options.input!r}, got none; name it with --out"
        )
    target = Path(options.output)
    if target.suffix.lower() in READ_SUFFIXES and not target.is_dir():
        raise UsageError(
            f"expected a folder for the images of folder {options.input!r}, got the name of an "
            f"image, {options.output!r}; leave the suffix out, or name one stream to decode"
        )
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    return target


def _named_outputs(source: Path, suffix: str) -> tuple[dict[str, str], dict[str, InputError]]:
    """Names of a folder's streams with those of their images, and of streams that share one.

    Streams in folders inside it are left out. Raises InputError when there is none.
    """
    try:
        found = [name for name in os.listdir(source) if name.lower().endswith(_SUFFIX)]
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    if not found:
        raise InputError(f"expected {_SUFFIX} files in {source}, found none; name their folder")
    return named_outputs(found, suffix)


def _division(options: Namespace) -> tuple[int, int | None]:
    """How many images at a time, and threads of the backend.

    Where nothing is asked for, one image for each processor, up to a few to save memory: two
    threads that decode two images wait for each other less than two on one image. A backend's
    threads are those of the caller and others that all callers share: as many of these as make up
    the processors.
    """
    usable = usable_processors()
    jobs = options.jobs
    if jobs is None:
        jobs = 1 if options.low_memory else min(usable, _MAX_JOBS)
    threads = options.threads or max(1, usable - jobs + 1)
    return jobs, threads


def _lines(record: dict[str, Any]) -> list[str]:
    lines = [
        f"{record['output']}: {record['decoded']} of {record['streams']} streams decoded in "
        f"{record['seconds']:.1f} s, {record['images_per_s']:.2f} a second, "
        f"{record['jobs']} at a time"
    ]
    if record["kept"]:
        lines.append(f"{record['kept']} images were there already; --force decodes them again")
    if record["bad"]:
        lines.append(f"{record['bad']} streams were not decoded: see {record['report']}")
    return lines
