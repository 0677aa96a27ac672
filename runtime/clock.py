"""Times by stage, and the stages by name on the timeline of NVIDIA's profilers.

``nsys profile percoedge decode photo.pco`` shows the stages of the decode above the kernels, where
the package nvtx is installed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

__all__ = ["Clock", "named_range"]

_DOMAIN = "percoedge"


class Clock(threading.local):
    """Milliseconds by stage since the last ``restart``; every thread has its own.

    ``timings_ms``: float by name of the stage, in the order in which stages first ended.
    """

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    def restart(self) -> None:
        """Forget the times measured so far."""
        self.timings_ms = {}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of what runs inside to a stage, and name it to profilers."""
        timings_ms = self.timings_ms
        began = time.perf_counter()
        with named_range(stage):
            yield
        elapsed_ms = (time.perf_counter() - began) * 1000
        timings_ms[stage] = timings_ms.get(stage, 0.0) + elapsed_ms


def named_range(name: str) -> AbstractContextManager[object]:
    """Mark what runs inside the ``with``; costs less than a microsecond unless it is recorded."""
    return _maker()(name)


@functools.cache
def _maker() -> Callable[[str], AbstractContextManager[object]]:
    """What makes a range of a name; the package is looked for once."""
    try:
        annotate = importlib.import_module("nvtx").annotate
    except Exception:  # missing, or of a build that does not load here
        return lambda name: contextlib.nullcontext()
    return lambda name: annotate(name, domain=_DOMAIN)
