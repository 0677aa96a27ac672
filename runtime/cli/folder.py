"""Decoding a folder of streams: several at a time, resumable, past whatever is broken.

Threads share one codec with its weights, and decode and write an image each: while one waits for
its range decoder or writes its PNG, another one's graphs run. Graphs and zlib let go of Python's
lock; what holds it, the range decoder above all, is about 1 % of an image. Images are not put into
batches: on a CPU one by one takes the least work, and plans of TensorRT take one unless built for
more. An output is renamed into its place when it is whole, so an interrupted run goes on where it
stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from percoedge.bitstream.container import MAX_STREAM_BYTES
from percoedge.engines.bundle import Bundle
from percoedge.engines.selection import select
from percoedge.errors import BundleError, InputError, OutputError, UsageError
from percoedge.runtime.cli.console import Console, ProgressLine
from percoedge.runtime.codec import DEFAULT_MAX_PIXELS, Codec
from percoedge.runtime.files import STANDARD_STREAM, read_bytes
from percoedge.runtime.images import format_of, write_image
from percoedge.runtime.settings import Settings

__all__ = ["REPORT_NAME", "decode_folder"]

REPORT_NAME = "percoedge-bad.jsonl"
"""In the output folder: one JSON object, file and error, for every stream that was not decoded."""

_SUFFIX = ".pco"
_MAX_CPU_JOBS = 4
_MAX_GPU_JOBS = 2  # graphs run one after another there: the second image keeps the host busy
_WAIT_SECONDS = 0.1


def decode_folder(options: Namespace, console: Console) -> int:
    """Decode every .pco file in a folder into another; the exit code is 3 when any was bad.

    Outputs newer than their stream are kept unless ``--force``. Raises OutputError when an output
    cannot be written: then no other can.
    """
    source, target = Path(options.input), _output_folder(options)
    kind = format_of(STANDARD_STREAM, options.format)
    suffix = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}[kind]
    names = _streams(source)
    pairs = [(source / name, target / Path(name).with_suffix(suffix)) for name in names]
    todo = [pair for pair in pairs if options.force or not _is_done(*pair)]
    bundle = Bundle.open(options.bundle)
    settings = Settings(bundle, options.steps, options.guidance, options.seed)  # checked once
    jobs, threads = _division(options)
    backend = select(options.backend, bundle=bundle, threads=threads)
    if options.jobs is None and backend.name != "onnxruntime-cpu":
        jobs = min(jobs, _MAX_GPU_JOBS)
    report = target / REPORT_NAME
    with _written(report):
        report.unlink(missing_ok=True)
    run = _Run(report)
    began = time.perf_counter()
    with Codec(bundle, backend, low_memory=options.low_memory) as codec:
        if todo and not options.low_memory:
            codec.load_engines(("entropy", "decoder"))  # a backend that fails stops here

        def decode(stream: Path, output: Path) -> None:
            image = codec.decode(
                read_bytes(stream, limit_bytes=MAX_STREAM_BYTES),
                steps=settings.steps,
                guidance=settings.guidance,
                seed=settings.seed,
                bare=options.bare,
                cut=options.cut,
                max_pixels=options.max_pixels or DEFAULT_MAX_PIXELS,
            )
            if not run.stopped.is_set():
                write_image(np.asarray(image), output, kind)

        with console.progress() as line:
            run.all(todo, decode, min(jobs, len(todo)), line)
    seconds = time.perf_counter() - began
    record = {
        "command": "decode",
        "input": os.fspath(source),
        "output": os.fspath(target),
        "format": kind,
        "streams": len(pairs),
        "decoded": run.decoded,
        "kept": len(pairs) - len(todo),
        "bad": run.bad,
        "report": os.fspath(report) if run.bad else None,
        "seconds": round(seconds, 3),
        "images_per_s": round(run.decoded / seconds, 3),
        "jobs": jobs,
        "threads": threads,
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint.hex(),
        "backend": backend.name,
    }
    console.report(record, _lines(record))
    return InputError.exit_code if run.bad else 0


@dataclass
class _Run:
    """Hands streams to threads, counts what became of them, and writes down the bad ones."""

    report: Path
    decoded: int = 0
    bad: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def all(
        self,
        todo: Sequence[tuple[Path, Path]],
        decode: Callable[[Path, Path], None],
        jobs: int,
        line: ProgressLine,
    ) -> None:
        """Decode all. An interrupt, an output that cannot be written or a broken bundle ends it.

        Threads then finish what they are at, so that no file is left half written.
        """
        left: queue.SimpleQueue[tuple[Path, Path]] = queue.SimpleQueue()
        for pair in todo:
            left.put(pair)
        results: queue.SimpleQueue[tuple[Path, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            while not self.stopped.is_set():
                try:
                    stream, output = left.get_nowait()
                except queue.Empty:
                    return
                try:
                    decode(stream, output)
                    results.put((stream, None))
                except Exception as error:  # of one stream: the others are decoded all the same
                    results.put((stream, error))

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            began = time.perf_counter()
            for number in range(len(todo)):
                line.show("decoding", number / len(todo), _progress(number, len(todo), began))
                self._note(*_waited(results))
        finally:
            self.stopped.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _note(self, stream: Path, error: Exception | None) -> None:
        if error is None:
            self.decoded += 1
            return
        if isinstance(error, (OutputError, BundleError)):  # the next ones would fail as well
            raise error
        self.bad += 1
        entry = {"file": os.fspath(stream), "error": type(error).__name__, "message": str(error)}
        with _written(self.report), self.report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def _waited(
    results: queue.SimpleQueue[tuple[Path, Exception | None]],
) -> tuple[Path, Exception | None]:
    """The next result; waits in short turns, which Ctrl-C can end on every system."""
    while True:
        try:
            return results.get(timeout=_WAIT_SECONDS)
        except queue.Empty:
            continue


def _progress(done: int, total: int, began: float) -> str:
    words = f"{done} of {total}"
    if done:
        left = (time.perf_counter() - began) / done * (total - done)
        words += f", {left / 60:.0f} min left" if left > 90 else f", {left:.0f} s left"
    return words


def _output_folder(options: Namespace) -> Path:
    """The folder of the results, made if it is not there."""
    if options.output in (None, STANDARD_STREAM):
        raise UsageError(
            f"expected a folder for the images of {options.input!r}, got none; name it with --out"
        )
    target = Path(options.output)
    with _written(target):
        target.mkdir(parents=True, exist_ok=True)
    return target


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn what the system says of a path that is written into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; name another folder"
        ) from error


def _streams(source: Path) -> list[str]:
    """Names of the streams of a folder, not of those inside it."""
    try:
        found = [name for name in os.listdir(source) if name.lower().endswith(_SUFFIX)]
    except OSError as error:
        raise InputError(f"cannot read {source}: {error.strerror or error}") from error
    stems: dict[str, str] = {}
    for name in sorted(found):
        other = stems.setdefault(Path(name).stem, name)
        if other != name:
            raise InputError(
                f"expected streams of different names, got {other!r} and {name!r}, whose images "
                "would be one file; rename one of them"
            )
    if not found:
        raise InputError(f"expected {_SUFFIX} files in {source}, found none; name their folder")
    return list(stems.values())


def _is_done(stream: Path, output: Path) -> bool:
    """Whether the output is there and newer than its stream."""
    try:
        return output.stat().st_mtime_ns > stream.stat().st_mtime_ns
    except OSError:
        return False


def _division(options: Namespace) -> tuple[int, int | None]:
    """How many images at a time, and threads of the backend.

    Without a wish there is one image for each processor, up to a few for the sake of memory: two
    threads that decode two images wait for each other less than two on one image. A backend's
    threads are those of the caller and others that all callers share: as many of these as make up
    the processors.
    """
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    jobs = options.jobs
    if jobs is None:
        jobs = 1 if options.low_memory else min(usable, _MAX_CPU_JOBS)
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
        lines.append(f"{record['bad']} streams could not be decoded: see {record['report']}")
    return lines
