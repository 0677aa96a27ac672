"""The engines of one bundle: loaded at first use, and freed by stage on small devices."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine
from percoedge.runtime.ranges import named_range

__all__ = ["EngineSet"]


class _Clock(threading.local):
    """Times of one thread."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}


class EngineSet:
    """Hands out engines by kind, to any thread; with ``low_memory`` one at a time, and to one.

    ``timings_ms``: milliseconds of each stage of the calling thread since its last
    ``restart_clock``, loading under "load".
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, low_memory: bool) -> None:
        self.bundle = bundle
        self.backend = backend
        self.low_memory = low_memory
        self._engines: dict[str, Engine] = {}
        self._lock = threading.RLock()
        self._clock = _Clock()

    @property
    def timings_ms(self) -> dict[str, float]:
        return self._clock.timings_ms

    @contextlib.contextmanager
    def use(self, kind: str) -> Iterator[Engine]:
        """The engine of a graph. Raises BundleError or BackendError when it cannot be loaded."""
        with self._lock:
            engine = self._loaded(kind)
            if self.low_memory:
                try:
                    yield engine
                finally:
                    self._engines.pop(kind).close()
                return
        yield engine

    def _loaded(self, kind: str) -> Engine:
        if kind not in self._engines:
            with self.timed("load"):
                self._engines[kind] = self.backend.load(
                    self.bundle.graph(kind, self.backend.variant)
                )
        return self._engines[kind]

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what runs inside to a stage, and name it to profilers."""
        timings_ms = self.timings_ms
        began = time.perf_counter()
        with named_range(stage):
            yield
        elapsed_ms = (time.perf_counter() - began) * 1000
        timings_ms[stage] = timings_ms.get(stage, 0.0) + elapsed_ms

    def restart_clock(self) -> None:
        """Forget the times measured so far."""
        self._clock.timings_ms = {}

    def close(self) -> None:
        """Free all engines; they are loaded anew when they are used again."""
        with self._lock:
            while self._engines:
                self._engines.popitem()[1].close()
