"""Accepted requests on their way to the lanes: a bounded queue, batches, deadlines.

A request waits here until a lane is free. The lane takes the oldest one and with it others of the
same key, up to the largest batch. A request whose client has gone, or whose deadline has passed,
leaves the queue before a batch is made of it, and so never delays anybody. When a lane dies under a
batch, every task of it is tried once more by itself: the one that kills its lane again is answered
with an error, its mates are answered as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from percoedge.errors import PercoedgeError
from percoedge.serving.lanes import Lane, LaneDied

if TYPE_CHECKING:
    from percoedge.serving.work import Outcome, Task

__all__ = ["DeadlinePassed", "Dispatcher", "Draining", "QueueFull"]


class QueueFull(PercoedgeError):
    """As many requests wait as may; ``retry_after_s`` is when a place should be free."""

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(
            f"expected fewer than {waiting} requests to wait, got one more; try again in "
            f"{retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class Draining(PercoedgeError):
    """The service is about to stop and accepts nothing more."""


class DeadlinePassed(PercoedgeError):
    """A request was not answered within its time."""


@dataclass(eq=False)
class _Waiting:
    task: Task
    key: object
    future: asyncio.Future[Outcome] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Dispatcher:
    """Hands tasks to lanes; ``observe_batch`` is called with the size of every batch.

    ``max_batch``: of one key that a lane gets together; None for what all lanes take best.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        *,
        max_batch: int | None = 1,
        batch_window_s: float = 0.0,
        max_queue: int = 64,
        observe_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._lanes = list(lanes)
        self._max_batch, self._window_s, self._max_queue = max_batch, batch_window_s, max_queue
        self._most = max_batch or 1
        self._observe_batch = observe_batch
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._running = 0
        self._seconds = 0.1  # of a task, a running mean
        self._loops: list[asyncio.Task[None]] = []
        self._unanswered: set[_Waiting] = set()
        self._drained: asyncio.Task[bool] | None = None

    @property
    def waiting(self) -> int:
        """Requests that no lane has taken yet."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Requests that lanes are at."""
        return self._running

    @property
    def restarts(self) -> int:
        """How many lanes died and were replaced."""
        return sum(lane.restarts for lane in self._lanes)

    @property
    def healthy(self) -> bool:
        """Whether every lane still takes tasks."""
        return bool(self._loops) and not any(loop.done() for loop in self._loops)

    @property
    def draining(self) -> bool:
        """Whether it accepts nothing more."""
        return self._drained is not None

    async def start(self) -> None:
        """Load and warm up all lanes, together. Raises BundleError or BackendError."""
        await asyncio.gather(*(lane.start() for lane in self._lanes))
        self._most = self._max_batch or min(lane.max_batch for lane in self._lanes)
        self._loops = [asyncio.create_task(self._serve(lane)) for lane in self._lanes]

    def check_room(self, others: int = 0) -> None:
        """Raise Draining or QueueFull unless a request may come, beside ``others`` on their way."""
        if self._drained is not None:
            raise Draining("expected a service that runs, got one that is stopping; try again soon")
        waiting = len(self._queue) + others
        if waiting >= self._max_queue:
            rate = len(self._lanes) / self._seconds
            raise QueueFull(self._max_queue, max(1, math.ceil(waiting / rate)))

    async def submit(self, task: Task, deadline_s: float) -> Outcome:
        """The outcome of a task.

        Cancelling gives up its place. Raises QueueFull or Draining at once, DeadlinePassed,
        Draining when the service stops before its turn, LaneDied when the task kills its lane, or
        the task's own PercoedgeError.
        """
        self.check_room()
        waiting = _Waiting(task, task.batch_key)
        self._queue.append(waiting)
        self._unanswered.add(waiting)
        self._arrived.set()
        try:
            return await asyncio.wait_for(waiting.future, deadline_s)
        except asyncio.TimeoutError:
            raise DeadlinePassed(
                f"expected an answer within {deadline_s:g} s, got none; ask for less at a time, or "
                "try again when the service is less busy"
            ) from None
        finally:
            waiting.future.cancel()  # does nothing when it is done
            self._unanswered.discard(waiting)
            if waiting in self._queue:
                self._queue.remove(waiting)

    async def drain(self, seconds: float) -> bool:
        """Accept nothing more, answer what was accepted, and stop the lanes; whether all was.

        What is not answered after so many seconds is refused, and its lanes are killed. A second
        call waits for the first.
        """
        if self._drained is None:
            self._drained = asyncio.create_task(self._drain(time.monotonic() + seconds))
        return await asyncio.shield(self._drained)

    async def _drain(self, end: float) -> bool:
        while self._unanswered and time.monotonic() < end:
            await asyncio.sleep(0.01)
        late = list(self._unanswered)
        for waiting in late:
            if not waiting.future.done():
                waiting.future.set_exception(
                    Draining("expected time for an answer, got the end of the service; try again")
                )
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for lane in self._lanes if late else ():
            lane.kill()
        await asyncio.gather(*(lane.stop() for lane in self._lanes))
        return not late

    async def _serve(self, lane: Lane) -> None:
        while True:
            while not self._queue:
                self._arrived.clear()
                await self._arrived.wait()
            batch: list[_Waiting] = []
            self._take(batch, self._queue[0].key)
            if batch[0].key is not None and len(batch) < self._most and self._window_s:
                await asyncio.sleep(self._window_s)
                self._take(batch, batch[0].key)
            began = time.monotonic()
            try:
                await self._answer(lane, [each for each in batch if not each.future.done()])
            finally:
                self._running -= len(batch)
            spent = (time.monotonic() - began) / len(batch)
            self._seconds += 0.1 * (spent - self._seconds)

    def _take(self, batch: list[_Waiting], key: object) -> None:
        """Move requests of a key from the queue into a batch, the oldest first."""
        most = 1 if key is None else self._most
        for waiting in list(self._queue):
            if len(batch) >= most:
                return
            if not batch or waiting.key == key:
                self._queue.remove(waiting)
                batch.append(waiting)
                self._running += 1

    async def _answer(self, lane: Lane, batch: list[_Waiting]) -> None:
        """Run a batch and answer everybody in it, whatever happens."""
        if not batch:
            return
        self._observe_batch(len(batch))
        try:
            outcomes = await lane.run([waiting.task for waiting in batch])
        except LaneDied:
            outcomes = [await self._alone(lane, waiting) for waiting in batch]
        except Exception as error:  # a bug: of this batch, not of the lane
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.future.done():
                continue
            if isinstance(outcome, PercoedgeError):
                waiting.future.set_exception(outcome)
            else:
                waiting.future.set_result(outcome)

    async def _alone(self, lane: Lane, waiting: _Waiting) -> Outcome | PercoedgeError:
        """A second try for a task whose lane died; its second death is its own doing."""
        try:
            return (await lane.run([waiting.task]))[0]
        except LaneDied as error:
            return error
