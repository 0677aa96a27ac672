"""Lanes: where tasks run, one batch at a time each, so that the event loop never computes.

A lane is an executor of one thread: in a process of its own, or for ``in_process`` in this one,
where all lanes share one worker with its engines; on a GPU each has a stream of its own. A process
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

__all__ = ["Lane", "LaneDied", "SharedWorker"]

_Result = TypeVar("_Result")


class LaneDied(EngineError):
    """The process of a lane ended while it worked; the lane has a new one."""


class SharedWorker:
    """The worker of lanes that are threads; the first of them makes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._worker: Worker | None = None

    def get(self, make: Callable[[], Worker]) -> Worker:
        """The worker; what stops it from being made is raised."""
        with self._lock:
            if self._worker is None:
                self._worker = make()
            return self._worker


class Lane:
    """A worker behind an executor. ``start`` loads and warms up its codecs.

    ``shared``: of all lanes that are threads. ``max_batch``: tasks that it takes together best.
    """

    def __init__(
        self, settings: ServiceSettings, threads: int | None, shared: SharedWorker | None = None
    ) -> None:
        self._settings, self._threads, self._shared = settings, threads, shared or SharedWorker()
        self._executor: Executor | None = None
        self.restarts = 0
        self.pid: int | None = None
        self.max_batch = 1

    async def start(self) -> None:
        """Load and warm up; raises the BundleError or BackendError that stops it, or LaneDied."""
        arguments = (self._settings, self._threads)
        if self._settings.in_process:
            self._executor = ThreadPoolExecutor(
                1, "lane", _begin_thread, (*arguments, self._shared)
            )
        else:
            context = multiprocessing.get_context("spawn")
            self._executor = ProcessPoolExecutor(1, context, _begin_process, arguments)
        self.pid, self.max_batch = await self._call(_ready)

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


# ---- inside the lane ----------------------------------------------------------------------------

_local = threading.local()  # a process of a lane has one thread that works


def _begin_thread(settings: ServiceSettings, threads: int | None, shared: SharedWorker) -> None:
    """Get the worker; what stops it is told when it is asked for, else executors only break."""
    from percoedge.serving.work import Worker

    try:
        worker = shared.get(lambda: Worker(settings, threads))
        worker.warm_up()
        _local.worker = worker
    except PercoedgeError as error:
        _local.worker = error


def _begin_process(settings: ServiceSettings, threads: int | None) -> None:
    # Ctrl-C and systemd signal the whole group, but the service is to drain before lanes end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _begin_thread(settings, threads, SharedWorker())


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


def _ready() -> tuple[int, int]:
    return os.getpid(), _worker().max_batch


def _run(tasks: list[Task]) -> list[Outcome | PercoedgeError]:
    return _worker().run(tasks)
