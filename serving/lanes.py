"""Lanes: where tasks run, one batch at a time each, so that the event loop never computes.

A lane is an executor of one worker: a process of its own, or for ``in_process`` a thread. A process
that dies (a crash in a library, the kernel's out-of-memory killer) is replaced; what it was doing
is known to nobody but the caller, who may hand it in again: tasks change nothing outside their
lane.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any, TypeVar

from percoedge.errors import EngineError, PercoedgeError
from percoedge.serving.settings import ServiceSettings

if TYPE_CHECKING:
    from percoedge.serving.work import Outcome, Task, Worker

__all__ = ["Lane", "LaneDied"]

_Result = TypeVar("_Result")


class LaneDied(EngineError):
    """The process of a lane ended while it worked; the lane has a new one."""


class Lane:
    """One worker behind an executor. ``start`` loads and warms up its codecs."""

    def __init__(self, settings: ServiceSettings, threads: int | None) -> None:
        self._settings, self._threads = settings, threads
        self._executor: Executor | None = None
        self.restarts = 0
        self.pid: int | None = None

    async def start(self) -> None:
        """Load and warm up; raises the BundleError or BackendError that stops it, or LaneDied."""
        arguments = (self._settings, self._threads)
        if self._settings.in_process:
            self._executor = ThreadPoolExecutor(1, "lane", _begin_thread, arguments)
        else:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, context, _begin_process, arguments)
        self.pid = await self._call(_ready)

    async def run(self, tasks: Sequence[Task]) -> list[Outcome | PercoedgeError]:
        """The outcome or error of each task. Raises LaneDied, after which the lane is usable."""
        try:
            return await self._call(_run, list(tasks))
        except LaneDied:
            self.restarts += 1
            with contextlib.suppress(PercoedgeError):  # which the next task meets again
                await self.start()
            raise

    async def _call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._executor, function, *arguments)
        except BrokenProcessPool as error:
            assert self._executor is not None
            self._executor.shutdown(wait=False)
            raise LaneDied(
                "expected the engines to run, got the end of their process; try again"
            ) from error

    async def stop(self) -> None:
        """End the worker; what it is at is finished first."""
        if self._executor is not None:
            await asyncio.to_thread(self._executor.shutdown, True, cancel_futures=True)

    def kill(self) -> None:
        """End the process of the worker at once; a thread cannot be ended and goes on."""
        if self.pid is not None and not self._settings.in_process:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


# ---- inside the lane: one worker for each process, or for each thread ---------------------------

_local = threading.local()  # a process of a lane has one thread that works


def _begin_thread(settings: ServiceSettings, threads: int | None) -> None:
    """Make the worker; what stops it is told when it is asked for, else executors only break."""
    from percoedge.serving.work import Worker

    try:
        _local.worker = Worker(settings, threads)
    except PercoedgeError as error:
        _local.worker = error


def _begin_process(settings: ServiceSettings, threads: int | None) -> None:
    # Ctrl-C and systemd signal the whole group, but the service is to drain before lanes end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin_thread(settings, threads)


def _end_with_parent() -> None:
    """Leave no process behind when the service is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker() -> Worker:
    worker: Worker | PercoedgeError = _local.worker
    if isinstance(worker, PercoedgeError):
        raise worker
    return worker


def _ready() -> int:
    _worker()
    return os.getpid()


def _run(tasks: list[Task]) -> list[Outcome | PercoedgeError]:
    return _worker().run(tasks)
