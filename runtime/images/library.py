"""The one place where Pillow and its plugins are called on data that may be hostile.

Decoders raise whatever they like on broken files (AssertionError, KeyError, struct.error, ...), and
warn about what they pass over. Inside `guarded`, every failure is one ImageError, and warnings
neither reach the caller nor, where a program turns them into errors, change the result.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import warnings
from collections.abc import Iterator

from percoedge.errors import ImageError, PercoedgeError

__all__ = ["guarded"]

# Warnings are filtered by the module that the warning names: a plugin, or one of ours calling it.
_MODULES = r"(PIL|pillow_heif|pillow_jxl|percoedge\.runtime\.images)(\.|$)"
_MAX_REASON = 200  # characters: some decoders quote the data

_lock = threading.Lock()
_inside = 0
_filters = contextlib.ExitStack()


@contextlib.contextmanager
def guarded(name: str) -> Iterator[None]:
    """Run what calls Pillow on the image called `name`; every failure becomes an ImageError.

    Errors of our own and MemoryError pass as they are.
    """
    with _quiet():
        try:
            yield
        except (MemoryError, PercoedgeError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
            raise ImageError(
                f"{name} is damaged or cut short ({reason}): expected a whole image; "
                f"fetch or export it anew"
            ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ignore warnings about images.

    Filters of warnings belong to the process, not to a thread: the first thread in sets ours and
    the last one out removes it. Where Python keeps them for each context, each sets its own.
    """
    global _inside
    if getattr(sys.flags, "context_aware_warnings", False):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=_MODULES)
            yield
        return
    with _lock:
        if _inside == 0:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=_MODULES)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _filters.close()
