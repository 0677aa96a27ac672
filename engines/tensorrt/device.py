"""What the engines of one backend share: the library, and lanes for threads to work in."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from percoedge.engines.tensorrt.cuda import DeviceMemory, Gpu, GpuMemoryError
from percoedge.engines.tensorrt.library import Library
from percoedge.errors import BackendError

__all__ = ["MAX_LANES", "Captures", "Device", "Lane", "LanedEngine"]

Result = TypeVar("Result")

MAX_LANES = 4
"""Threads that work on a GPU at the same time; more of them take turns. One on shared memory."""


@dataclass
class Captures:
    """How many runs there were, how many of them launched a captured graph, and why others did not.

    ``refusals``: each reason once, by graph, why its work could not be captured.
    """

    runs: int = 0
    launches: int = 0
    refusals: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"captured {self.launches} of {self.runs} runs"]
        parts += [f"{where} cannot be captured: {why}" for where, why in self.refusals.items()]
        return "; ".join(parts)


class _Seat:
    """A thread's place in a lane, until that thread ends."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        lane.seats.add(self)


class Lane:
    """A stream, and memory for activations: one graph runs at a time, so one block serves all.

    ``gpu``: with the stream; ``lock``: held by whoever queues work; ``seats``: threads in it.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.lock = threading.RLock()
        self.captures = Captures()
        self.seats: weakref.WeakSet[_Seat] = weakref.WeakSet()
        self._scratch: DeviceMemory | None = None

    def scratch(self, size_bytes: int) -> DeviceMemory:
        """Memory of at least this size; the same as before unless that was too small."""
        if self._scratch is None or self._scratch.size_bytes < size_bytes:
            self.free_scratch()
            self._scratch = self.gpu.allocate(size_bytes)
        return self._scratch

    def free_scratch(self) -> None:
        """Free that memory; nothing that uses it may be queued in another stream."""
        if self._scratch is not None:
            self._scratch.free()
            self._scratch = None

    def trim(self) -> None:
        """Give back what is kept for later; a lost GPU gives nothing back."""
        with contextlib.suppress(BackendError):
            self.gpu.enter()
            self.gpu.trim()


class LanedEngine(Protocol):
    """An engine, as a Device sees it."""

    def close(self) -> None:
        """Free the engine."""
        ...

    def leave(self, lane: Lane) -> None:
        """Free what the engine has in a lane, once that is done."""
        ...


class Device:
    """What the engines of one backend share. ``library``; ``lock``: for calls of the library.

    ``runtime``: the library's, None before the first engine. A thread that runs engines gets a lane
    of its own, up to MAX_LANES of them, and leaves it to another when it ends. Whoever holds a lane
    may take ``lock``, and never the other way round. Raises BackendError when there is no GPU.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.lock = threading.RLock()
        self.runtime: Any = None
        self._closing = threading.Lock()
        self._closings = 0  # of lanes, so far
        first = Lane(Gpu())
        self.gpu = first.gpu
        self._lanes = [first]
        self._most = 1 if first.gpu.integrated else MAX_LANES
        self._here = threading.local()
        self._engines: weakref.WeakSet[Any] = weakref.WeakSet()
        # Libraries that are taken apart in no order at the end of the process may crash it.
        atexit.register(_close, weakref.ref(self), os.getpid())

    @property
    def lane(self) -> Lane:
        """The calling thread's: one that nobody is in, else a new one, else the emptiest."""
        seat: _Seat | None = getattr(self._here, "seat", None)
        if seat is None or seat.lane not in self._lanes:
            with self.lock:
                lane = min(self._lanes, key=lambda lane: len(lane.seats))
                if len(lane.seats) and len(self._lanes) < self._most:
                    try:
                        lane = Lane(Gpu())
                        self._lanes = [*self._lanes, lane]
                    except BackendError:  # no room for one more, or a lost GPU, which tells itself
                        self._most = len(self._lanes)
                seat = self._here.seat = _Seat(lane)
        return seat.lane

    @contextlib.contextmanager
    def entered(self) -> Iterator[Lane]:
        """The calling thread's lane, locked."""
        while True:
            lane = self.lane
            with lane.lock:
                if lane in self._lanes:  # not closed meanwhile
                    yield lane
                    return

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All there are."""
        return tuple(self._lanes)

    @property
    def captures(self) -> Captures:
        """Those of all lanes together."""
        total = Captures()
        for lane in self._lanes:
            total.runs += lane.captures.runs
            total.launches += lane.captures.launches
            total.refusals |= lane.captures.refusals
        return total

    def with_memory(self, work: Callable[[], Result]) -> Result:
        """Do the work; where memory is too short, do it once more with all lanes but one closed.

        They stay closed. The calling thread must hold none. Raises GpuMemoryError when there is
        too little for one.
        """
        closings = self._closings
        try:
            return work()
        except GpuMemoryError:
            self._keep_one_lane()
            if self._closings == closings:  # else memory was freed since, here or elsewhere
                raise
        return work()

    def _keep_one_lane(self) -> None:
        with self._closing:
            with self.lock:
                self._most = 1
                self._lanes, closed = self._lanes[:1], self._lanes[1:]
                engines = list(self._engines)
            for lane in closed:
                for engine in engines:
                    engine.leave(lane)
                with lane.lock:
                    lane.free_scratch()
                lane.trim()
            self._closings += bool(closed)

    def join(self, engine: LanedEngine) -> None:
        """An engine was loaded; it is closed at the end of the process at the latest."""
        with self.lock:
            self._engines.add(engine)

    def leave(self, engine: LanedEngine) -> None:
        """An engine was closed; the last one takes the shared memory with it."""
        with self.lock:
            self._engines.discard(engine)
            last = not self._engines
        for lane in self._lanes:
            if last:
                with lane.lock:
                    lane.free_scratch()
            lane.trim()

    def close(self) -> None:
        """Close the engines that are still open, then the library's runtime."""
        with self.lock:
            engines = list(self._engines)
        for engine in engines:
            engine.close()
        self.runtime = None


def _close(device: weakref.ref[Device], process: int) -> None:
    """At the end of the process that opened it: a copy made by ``os.fork`` has no GPU."""
    found = device()
    if found is not None and os.getpid() == process:
        found.close()
