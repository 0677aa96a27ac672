"""Named ranges on the timeline of NVIDIA's profilers; nothing where the package nvtx is missing.

``nsys profile percoedge decode photo.pco`` then shows the stages of the decode above the kernels.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager

__all__ = ["named_range"]

_DOMAIN = "percoedge"


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
