"""The engines of one bundle: loaded at first use, and freed by stage on small devices."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine

__all__ = ["EngineSet"]


class EngineSet:
    """Hands out engines by kind; with ``low_memory`` only one is in memory at a time.

    ``timings_ms``: milliseconds of each stage since the last ``restart_clock``, loading under
    "load".
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, low_memory: bool) -> None:
        self.bundle = bundle
        self.backend = backend
        self.low_memory = low_memory
        self.timings_ms: dict[str, float] = {}
        self._engines: dict[str, Engine] = {}

    @contextlib.contextmanager
    def use(self, kind: str) -> Iterator[Engine]:
        """The engine of a graph. Raises BundleError or BackendError when it cannot be loaded."""
        if kind not in self._engines:
            with self.timed("load"):
                # no name for the source: this frame lives as long as the engine is in use
                self._engines[kind] = self.backend.load(
                    self.bundle.read(kind, self.backend.variant)
                )
        try:
            yield self._engines[kind]
        finally:
            if self.low_memory:
                self._engines.pop(kind).close()

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what runs inside to a stage."""
        began = time.perf_counter()
        yield
        elapsed_ms = (time.perf_counter() - began) * 1000
        self.timings_ms[stage] = self.timings_ms.get(stage, 0.0) + elapsed_ms

    def restart_clock(self) -> None:
        """Forget the times measured so far."""
        self.timings_ms = {}

    def close(self) -> None:
        """Free all engines; they are loaded anew when they are used again."""
        while self._engines:
            self._engines.popitem()[1].close()
