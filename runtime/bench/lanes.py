"""More decodes at the same time as the one that is measured: what a device does when it is busy.

Each lane is a thread with a codec and a backend of its own, on GPUs with a stream of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.runtime.codec import Codec

__all__ = ["Lanes"]


class Lanes:
    """A context manager that decodes over and over, once on each of ``backends``, until its end.

    ``decode`` is called with a codec. When the block is entered every lane has its engines loaded
    and decodes. The first error of a lane is raised at the end.
    """

    def __init__(
        self,
        bundle: Bundle,
        backends: Sequence[Backend],
        decode: Callable[[Codec], object],
        low_memory: bool = False,
    ) -> None:
        self._bundle, self._decode, self._low_memory = bundle, decode, low_memory
        self._ends = threading.Event()
        self._warm = threading.Semaphore(0)
        self._ended: list[float] = []  # when each decode of each lane was done
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(backend,), daemon=True) for backend in backends
        ]

    def done_between(self, began: float, ended: float) -> int:
        """How many decodes were done between two readings of ``time.perf_counter``."""
        return sum(began < moment <= ended for moment in self._ended)

    def _run(self, backend: Backend) -> None:
        try:
            with Codec(self._bundle, backend, low_memory=self._low_memory) as codec:
                self._decode(codec)
                self._warm.release()
                while not self._ends.is_set():
                    self._decode(codec)
                    self._ended.append(time.perf_counter())
        except BaseException as error:
            self._errors.append(error)
            self._warm.release()

    def __enter__(self) -> Lanes:
        for thread in self._threads:
            thread.start()
        for _ in self._threads:
            self._warm.acquire()
        return self

    def __exit__(self, *details: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()
        if self._errors and details[0] is None:
            raise self._errors[0]
