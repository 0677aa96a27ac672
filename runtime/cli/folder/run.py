"""The threads that go through a folder, and the report of what could not be done."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from percoedge.errors import BundleError, OutputError
from percoedge.runtime.cli.console import ProgressLine
from percoedge.runtime.cli.folder.record import plain_file

__all__ = ["FolderRun", "Pair", "writing"]

Pair = tuple[str, str]
"""Names of an input and of its output."""

_WAIT_SECONDS = 0.1
_MAX_LINE_BYTES = 1 << 20


class FolderRun:
    """Hands inputs to threads, counts what became of them, and reports the bad ones.

    done, bad: how many of them so far. report: the file with the bad ones, if there are any.
    """

    def __init__(self, source: Path, report: Path) -> None:
        """``report``: a file of bad inputs; an earlier one is removed. Raises OutputError."""
        self.report = report
        self.done = 0
        self.bad = 0
        self._source = source
        self._stopped = threading.Event()
        with writing(report):
            if os.path.lexists(report) and not _is_report(report):
                raise OutputError(
                    f"cannot write {report}: expected no file, or the report of an earlier run, "
                    "got another one; move it, or name another folder"
                )
            report.unlink(missing_ok=True)

    def all(
        self,
        groups: Sequence[Sequence[Pair]],
        do: Callable[[Sequence[Pair], threading.Event], Iterator[tuple[str, Exception | None]]],
        jobs: int,
        line: ProgressLine,
        task: str,
    ) -> None:
        """Call ``do`` with each group of inputs and outputs, and an event that ends it.

        It yields the name of every input and what went wrong with it. OutputError and BundleError
        concern all inputs and are raised. Then, and after an interrupt, threads finish what they
        are at, so that no file is left half written. ``task``: for ``line``, "decoding".
        """
        total = sum(map(len, groups))
        left: queue.SimpleQueue[Sequence[Pair]] = queue.SimpleQueue()
        for group in groups:
            left.put(group)
        results: queue.SimpleQueue[tuple[str, Exception | None]] = queue.SimpleQueue()

        def work() -> None:
            while not self._stopped.is_set():
                try:
                    group = left.get_nowait()
                except queue.Empty:
                    return
                for result in do(group, self._stopped):
                    results.put(result)

        threads = [threading.Thread(target=work) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            began = time.perf_counter()
            for number in range(total):
                line.show(task, number / total, _progress(number, total, began))
                self._count(*_waited(results))
        finally:
            self._stopped.set()
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def add_bad(self, name: str, error: Exception) -> None:
        """Count an input as bad, and report why. Raises OutputError."""
        self.bad += 1
        file = os.fspath(self._source / name)
        entry = {"file": file, "error": type(error).__name__, "message": str(error)}
        with writing(self.report), self.report.open("a", encoding="utf-8") as report:
            report.write(json.dumps(entry) + "\n")

    def _count(self, name: str, error: Exception | None) -> None:
        if error is None:
            self.done += 1
        elif isinstance(error, (OutputError, BundleError)):  # the next ones would fail as well
            raise error
        else:
            self.add_bad(name, error)


def _is_report(path: Path) -> bool:
    """Whether this is a plain file that begins as ``add_bad`` writes, or an empty one."""
    try:
        with plain_file(path) as file:
            line = file.readline(_MAX_LINE_BYTES)
        return not line or {"file", "error", "message"} <= json.loads(line).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says of a path that is written into an OutputError."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; name another folder"
        ) from error


def _waited(
    results: queue.SimpleQueue[tuple[str, Exception | None]],
) -> tuple[str, Exception | None]:
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
