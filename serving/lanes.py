"""Lanes: where tasks run, one batch at a time each, so that the event loop never computes.

A lane is an executor of one worker: a process of its own, or for ``in_process`` a thread. A process
that dies (a crash in a library, the kernel's out-of-memory killer) is replaced; what it was doing is
known to nobody but the caller, who may hand it in again: tasks change nothing outside their lane.
"""

from __future__ import annotations

import asyncio
import multiprocessing
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

    async def start(self) -> None:
        """Load and warm up; raises the BundleError or BackendError that stops it."""
        self._executor = self._made()
        await self._call(_ready)

    def _made(self) -> Executor:
        arguments = (self._settings, self._threads)
        if self._settings.in_process:
            return ThreadPoolExecutor(1, "lane", initializer=_begin_thread, initargs=arguments)
        return ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=arguments,
        )

    async def run(self, tasks: Sequence[Task]) -> list[Outcome | PercoedgeError]:
        """The outcome or error of each task. Raises LaneDied, after which the lane is usable."""
        return await self._call(_run, list(tasks))

    async def _call(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        loop = asyncio.get_running_loop()
        executor = self._executor
        try:
            return await loop.run_in_executor(executor, function, *arguments)
        except BrokenProcessPool as error:
            if self._executor is executor and executor is not None:
                executor.shutdown(wait=False)
                self.restarts += 1
                self._executor = self._made()
            raise LaneDied(
                "expected the engines to run, got the end of their process; try again"
            ) from error

    async def stop(self) -> None:
        """End the worker; what it is at is finished first."""
        if self._executor is not None:
            await asyncio.to_thread(self._executor.shutdown, True, cancel_futures=True)


# ---- inside the lane: one worker for each process, or for each thread ---------------------------

_worker: Worker | None = None
_local = threading.local()


def _begin(settings: ServiceSettings, threads: int | None) -> None:
    from percoedge.serving.work import Worker

    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which drains
    _worker = Worker(settings, threads)


def _begin_thread(settings: ServiceSettings, threads: int | None) -> None:
    from percoedge.serving.work import Worker

    _local.worker = Worker(settings, threads)


def _worker_here() -> Worker:
    worker: Worker | None = getattr(_local, "worker", _worker)
    if worker is None:
        raise RuntimeError("a lane runs tasks only after its worker was made")
    return worker


def _ready() -> None:
    _worker_here()


def _run(tasks: list[Task]) -> list[Outcome | PercoedgeError]:
    return _worker_here().run(tasks)
