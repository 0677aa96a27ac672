"""One cell of the matrix, how the matrix is written on the command line, and when to stop."""

from __future__ import annotations

import itertools
import re
from argparse import Namespace
from dataclasses import dataclass, replace

from percoedge.arguments import expect_size
from percoedge.bitstream.container import MAX_SIDE
from percoedge.engines.bundle import Bundle
from percoedge.engines.processors import most_workers
from percoedge.engines.selection import BACKENDS
from percoedge.errors import UsageError
from percoedge.runtime.settings import MAX_STEPS

__all__ = ["Case", "Limits", "cases_from_options"]

_MAX_BATCH = 1024


@dataclass(frozen=True)
class Case:
    """What is decoded and how. ``threads`` None: as many as the library takes by itself.

    ``streams``: how many such decodes run at the same time.
    """

    bundle: str
    backend: str
    width: int
    height: int
    batch: int
    steps: int
    threads: int | None
    low_memory: bool = False
    streams: int = 1

    def __str__(self) -> str:
        words = [f"{self.bundle} {self.backend} {self.width}x{self.height}"]
        words += [f"batch {self.batch}", _counted(self.steps, "step")]
        if self.threads is not None:
            words.append(_counted(self.threads, "thread"))
        if self.streams > 1:
            words.append(_counted(self.streams, "stream"))
        return ", ".join(words)


@dataclass(frozen=True)
class Limits:
    """When a measurement has enough: all three must be reached.

    ``layers``: whether each graph is measured by itself besides, and layer by layer.
    """

    warmup_seconds: float = 0.2
    seconds: float = 3.0
    iterations: int = 10
    layers: bool = False


def cases_from_options(options: Namespace) -> list[Case]:
    """The matrix that the options ask for. Raises UsageError or BundleError before any work."""
    backends = _items(options.backend)
    for backend in backends:
        if backend.partition(":")[0] not in ("auto", *BACKENDS):
            raise UsageError(f"expected a backend of auto, {', '.join(BACKENDS)}, got {backend!r}")
    sizes = [expect_size("--size", text, MAX_SIDE) for text in _items(options.size)]
    batches = [_number("batch", text, _MAX_BATCH) for text in _items(options.batch)]
    threads: list[int | None] = [None]
    if options.threads is not None:
        threads = [_number("threads", text, most_workers()) for text in _items(options.threads)]
    streams = [_number("streams", text, most_workers()) for text in _items(options.lanes)]
    cases = []
    for name in _items(options.bundle):
        steps = [Bundle.open(name).codec.steps]
        if options.steps is not None:
            steps = [_number("steps", text, MAX_STEPS) for text in _items(options.steps)]
        for backend, (width, height), batch, count, number, lanes in itertools.product(
            backends, sizes, batches, steps, threads, streams
        ):
            case = Case(name, backend, width, height, batch, count, number)
            cases.append(replace(case, low_memory=options.low_memory, streams=lanes))
    return cases


def _items(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _number(what: str, text: str, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= most:
        raise UsageError(
            f"expected --{what} to be numbers of 1 to {most} with commas between them, got {text!r}"
        )
    return int(text)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
