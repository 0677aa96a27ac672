"""The engines of one bundle: loaded at first use, and freed by stage on small devices."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from percoedge.engines import memory
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Engine
from percoedge.engines.tiling import graph_of
from percoedge.runtime.clock import Clock

__all__ = ["EngineSet"]


@dataclass
class _Shared:
    """An engine, and how many use it now."""

    engine: Engine
    users: int = 0


class EngineSet:
    """Hands out engines by kind, to any thread; with ``low_memory`` one at a time, and to one.

    ``clock`` times what runs on them, loading under "load".
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, low_memory: bool) -> None:
        self.bundle = bundle
        self.backend = backend
        self.low_memory = low_memory
        self.clock = Clock()
        self._engines: dict[str, _Shared] = {}
        self._lock = threading.RLock()

    @contextlib.contextmanager
    def use(self, kind: str) -> Iterator[Engine]:
        """The engine of a graph of the bundle, or of TILING.

        Raises BundleError or BackendError when it cannot be loaded.
        """
        with self._lock if self.low_memory else contextlib.nullcontext():
            with self._lock:
                shared = self._loaded(kind)
                shared.users += 1
            try:
                yield shared.engine
            finally:
                with self._lock:
                    shared.users -= 1
                    if self.low_memory:
                        self._engines.pop(kind, None)
                    if not shared.users and self._engines.get(kind) is not shared:
                        shared.engine.close()

    def _loaded(self, kind: str) -> _Shared:
        if kind not in self._engines:
            with self.clock.timed("load"):
                graph = graph_of(self.bundle, kind, self.backend.variant)
                self._engines[kind] = _Shared(self.backend.load(graph))
        return self._engines[kind]

    @contextlib.contextmanager
    def tilers(self, *kinds: str, on_device: bool) -> Iterator[dict[str, Engine] | None]:
        """The engines of graphs of TILING by name, or None where tiles go over the host."""
        with contextlib.ExitStack() as stack:
            engines = {kind: stack.enter_context(self.use(kind)) for kind in kinds if on_device}
            yield engines or None

    @property
    def max_batch(self) -> int | None:
        """Images that go through the decoder together; None where only memory limits it: a CPU.

        The graphs of a bundle are built for the same number. Raises as ``use`` does.
        """
        with self.use("decoder") as engine:
            return engine.max_batch

    def require_memory(self, kind: str, pixels: int) -> None:
        """Raise BackendError unless the host has the memory to run a graph on so many pixels.

        Passes for graphs that do not state what they take, and for those that run on a device.
        """
        pixel_bytes = self.bundle.manifest.graphs[kind].pixel_bytes
        if pixel_bytes is not None and self.backend.variant != "fp16":
            purpose = f"graph {kind!r} on {pixels} pixels, which go through it in one piece"
            memory.require(pixels * pixel_bytes, purpose)

    def close(self) -> None:
        """Free all engines, those in use after it; they are loaded anew when used again."""
        with self._lock:
            while self._engines:
                shared = self._engines.popitem()[1]
                if not shared.users:
                    shared.engine.close()
