"""More decodes at the same time as the one that is measured: what a device does when it is busy.

Each lane is a thread that shares the codec and its engines, as those that decode a folder do; with
TensorRT it has a stream of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from percoedge.runtime.codec import Codec

__all__ = ["Lanes"]


class Lanes:
    """A context manager that decodes over and over, in ``count`` threads, until its end.

    ``decode`` is called with the codec. When the block is entered every lane has decoded once. The
    first error of a lane is raised at the end.
    """

    def __init__(self, codec: Codec, count: int, decode: Callable[[Codec], object]) -> None:
        self._codec, self._decode = codec, decode
        self._ends = threading.Event()
        self._warm = threading.Semaphore(0)
        self._ended: list[float] = []  # when each decode of each lane was done
        self._errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]

    def done_between(self, began: float, ended: float) -> int:
        """How many decodes were done between two readings of ``time.perf_counter``."""
        return sum(began < moment <= ended for moment in self._ended)

    def _run(self) -> None:
        try:
            self._decode(self._codec)
            self._warm.release()
            while not self._ends.is_set():
                self._decode(self._codec)
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
