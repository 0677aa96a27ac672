"""What ``percoedge decode`` and ``percoedge encode`` do with a folder: each file once, resumable.

Threads share one codec with its weights, and read, code and write: while one waits for its range
coder or writes its file, another one's graphs run. Graphs and zlib let go of Python's lock; what
holds it, the range coder above all, is about 1 % of an image. An output is renamed into its place
when it is whole, and percoedge-outputs.jsonl says which outputs are ours: an interrupted run goes
on where it stopped, and no other file is replaced.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from percoedge.engines.bundle import Bundle
from percoedge.engines.processors import expect_workers, shared_threads, usable_processors
from percoedge.engines.selection import select
from percoedge.errors import InputError, UsageError
from percoedge.runtime.cli.console import Console, say_error
from percoedge.runtime.cli.folder.record import FolderRecord, State
from percoedge.runtime.cli.folder.run import FolderRun, Pair, writing
from percoedge.runtime.cli.outputs import named_outputs
from percoedge.runtime.codec import Codec
from percoedge.runtime.files import STANDARD_STREAM, atomic_write, read_bytes

__all__ = ["REPORT_NAME", "FolderWork", "check_folder", "run_folder"]

REPORT_NAME = "percoedge-bad.jsonl"
"""In the output folder: one JSON object, file and error, for every input without an output."""

_MAX_JOBS = 4


class FolderWork(Protocol):
    """What is done with the files of a folder; threads share it.

    command: "decode". inputs, outputs: what they are called. suffixes: how names of inputs end, in
    lower case; suffix: of outputs. limit_bytes: of an input. kinds: graphs that are loaded first.
    described: more entries for the report.
    """

    command: str
    inputs: str
    outputs: str
    suffixes: tuple[str, ...]
    suffix: str
    limit_bytes: int
    kinds: tuple[str, ...]
    described: Mapping[str, Any]

    def source_sha256(self, data: bytes) -> str:
        """Hash (hexadecimal) of all that an output depends on: bundle, settings, input."""

    def most_together(self, codec: Codec) -> int:
        """How many inputs that are alike may go through together. Raises EngineError."""

    def alike(self, data: bytes) -> object:
        """What inputs share that go through together; None for one that goes alone."""

    def coded(self, codec: Codec, data: Sequence[bytes]) -> Sequence[Any]:
        """What becomes of inputs that are alike. Raises for one of them, or for all."""

    def contents(self, result: Any) -> bytes:
        """The file of one result. Raises InputError for what is wrong with it."""


def run_folder(work: FolderWork, bundle: Bundle, options: Namespace, console: Console) -> int:
    """Do the work with every input of a folder; the exit code is 3 when any was bad.

    Without ``--force``, outputs that were made here from the same inputs with the same settings are
    kept, and files that were not are never replaced: their inputs count as bad. Raises OutputError
    when an output cannot be written: then no other can.
    """
    source, target = Path(options.input), Path(options.output)
    try:
        names = os.listdir(source)  # folders inside it are left out
    except OSError as cause:
        raise InputError(f"cannot read {source}: {cause.strerror or cause}") from cause
    outputs, clashes = named_outputs(str(source), names, work.suffixes, work.suffix)
    jobs, threads = _division(options)
    backend = select(options.backend, bundle=bundle, threads=threads)
    with writing(target):
        target.mkdir(parents=True, exist_ok=True)
    run = FolderRun(source, target / REPORT_NAME)
    began = time.perf_counter()
    with (
        Codec(bundle, backend, low_memory=options.low_memory) as codec,
        FolderRecord(target, outputs.values()) as record,
        console.progress() as line,
    ):
        folder = _Folder(work, codec, source, target, record, force=options.force)
        for name, error in clashes.items():
            run.add_bad(name, error)
        todo = []
        for number, (name, output) in enumerate(outputs.items()):
            if os.path.lexists(target / output):
                line.show("checking", number / len(outputs))
            try:
                if not folder.is_done(name, output):
                    todo.append((name, output))
            except InputError as error:
                run.add_bad(name, error)
        kept = len(outputs) - len(todo) - run.bad + len(clashes)
        if todo:
            record.open()  # a folder that cannot be written to stops here
            if not options.low_memory:  # and a backend that fails
                codec.load_engines([kind for kind in work.kinds if kind in bundle.kinds])
        groups = folder.groups(todo, work.most_together(codec) if todo else 1)
        task = f"{work.command[:-1]}ing"
        run.all(groups, folder.do, min(jobs, len(groups)), line, task)
    seconds = time.perf_counter() - began
    result = {
        "command": work.command,
        "input": os.fspath(source),
        "output": os.fspath(target),
        work.inputs: len(outputs) + len(clashes),
        f"{work.command}d": run.done,
        "kept": kept,
        "bad": run.bad,
        "report": os.fspath(run.report) if run.bad else None,
        "seconds": round(seconds, 3),
        "images_per_s": round(run.done / seconds, 3),
        "jobs": jobs,
        "threads": threads,
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint.hex(),
        "backend": backend.name,
        **work.described,
    }
    console.report(result, _lines(result, work))
    if run.bad:
        say_error(f"{run.bad} {work.inputs} were not {work.command}d: see {run.report}")
    return InputError.exit_code if run.bad else 0


@dataclass(frozen=True)
class _Folder:
    """The work on one folder; threads share it."""

    work: FolderWork
    codec: Codec
    source: Path
    target: Path
    record: FolderRecord
    force: bool

    def is_done(self, name: str, output: str) -> bool:
        """Whether the output of an input is there. Raises InputError where another file is."""
        if not os.path.lexists(self.target / output):
            return False
        state = self._checked_state(output, self.work.source_sha256(self._read(name)))
        return state is State.CURRENT and not self.force

    def groups(self, todo: Sequence[Pair], most: int) -> list[Sequence[Pair]]:
        """Inputs in groups of at most so many, each of inputs that are alike."""
        if most == 1:
            return [[pair] for pair in todo]
        together: dict[object, list[Pair]] = {}
        for pair in todo:
            key = None
            with contextlib.suppress(InputError):  # told when its turn comes
                key = self.work.alike(self._read(pair[0]))
            together.setdefault(pair if key is None else key, []).append(pair)
        return [
            alike[first : first + most]
            for alike in together.values()
            for first in range(0, len(alike), most)
        ]

    def do(
        self, group: Sequence[Pair], stopped: threading.Event
    ) -> Iterator[tuple[str, Exception | None]]:
        """Make the outputs of inputs; yields each input with what is wrong, if anything."""
        made: Mapping[str, tuple[bytes, Any]] = {}
        if len(group) > 1:
            with contextlib.suppress(Exception):  # of one input, or all; they are told one by one
                made = self._coded([name for name, _ in group])
        for name, output in group:
            if stopped.is_set():
                return
            try:
                data, result = made.get(name) or self._coded([name])[name]
                self._put(data, result, output, stopped)
                yield name, None
            except Exception as error:  # of one input: the others are done all the same
                yield name, error

    def _coded(self, names: Sequence[str]) -> dict[str, tuple[bytes, Any]]:
        data = [self._read(name) for name in names]
        results = self.work.coded(self.codec, data)
        return dict(zip(names, zip(data, results, strict=True), strict=True))

    def _put(self, data: bytes, result: Any, output: str, stopped: threading.Event) -> None:
        """Write an output. Raises InputError for what is wrong with it or its place."""
        contents = self.work.contents(result)
        source_sha256 = self.work.source_sha256(data)
        if not stopped.is_set():
            path = self.target / output
            # somebody may have put a file there meanwhile
            if self._checked_state(output, source_sha256) is not State.ABSENT:
                _check_access(path)
            self.record.add(output, contents, source_sha256)
            atomic_write(path, contents)

    def _read(self, name: str) -> bytes:
        path = self.source / name
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe may never end
            raise InputError(
                f"cannot read {path}: expected a plain file, got a pipe or device; take it out of "
                "the folder"
            )
        return read_bytes(path, limit_bytes=self.work.limit_bytes)

    def _checked_state(self, output: str, source_sha256: str) -> State:
        """What lies at the name of an output; raises InputError where that must stay."""
        state, path = self.record.state(output, source_sha256), self.target / output
        if state is State.FOREIGN and not (self.force and _is_replaceable(path)):
            raise InputError(
                f"cannot write {path}: expected no file, or one that was {self.work.command}d here "
                "and not changed since, got another one; move it, name another folder, or replace "
                "it with --force (links, folders and devices never are)"
            )
        return state


def _is_replaceable(path: Path) -> bool:
    """Whether writing there replaces a file of this folder: no link, folder, pipe or device."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _check_access(path: Path) -> None:
    """Raise InputError for a write-protected file: that of one input, where others can go on."""
    if not os.access(path, os.W_OK):
        raise InputError(
            f"cannot write {path}: expected a file that may be replaced, got a write-protected "
            "one; allow it, or move it"
        )


def check_folder(options: Namespace, outputs: str, suffixes: Sequence[str]) -> None:
    """Check the name of the folder of ``outputs``, such as "images"; ``suffixes``: of such files.

    Raises UsageError.
    """
    if options.output in (None, "", STANDARD_STREAM):
        raise UsageError(
            f"expected a folder for the {outputs} of {options.input!r}, got none; name it with "
            "--out"
        )
    target = Path(options.output)
    if target.suffix.lower() in suffixes and not target.is_dir():
        raise UsageError(
            f"expected a folder for the {outputs} of folder {options.input!r}, got the name of a "
            f"file, {options.output!r}; leave the suffix out, or name one file as the input"
        )


def _division(options: Namespace) -> tuple[int, int | None]:
    """How many images at a time, and threads of the backend.

    Where nothing is asked for, one image for each processor, up to a few to save memory: two
    threads on two images wait for each other less than two on one image.
    """
    jobs = options.jobs
    if jobs is None:
        jobs = 1 if options.low_memory else min(usable_processors(), _MAX_JOBS)
    expect_workers("jobs", jobs)
    return jobs, options.threads or shared_threads(jobs)


def _lines(record: Mapping[str, Any], work: FolderWork) -> list[str]:
    done = f"{work.command}d"
    lines = [
        f"{record['output']}: {record[done]} of {record[work.inputs]} {work.inputs} {done} in "
        f"{record['seconds']:.1f} s, {record['images_per_s']:.2f} a second, "
        f"{record['jobs']} at a time"
    ]
    if record["kept"]:
        lines.append(
            f"{record['kept']} {work.outputs} were there already; --force {work.command}s again"
        )
    return lines
