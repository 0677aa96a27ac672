"""Ctrl-C, at any moment: a command that was interrupted ends, and says that it was.

Python raises KeyboardInterrupt wherever the program happens to be, which may be where it is lost:
libraries that are just being imported make an ImportError of it or go on without, and callbacks and
finalizers that C code calls cannot raise anything. So an interrupt waits while something is
imported, and is raised again and again until it has arrived.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from types import CodeType, FrameType
from typing import Any

__all__ = ["Interrupts", "is_interrupt"]

_RETRY_SECONDS = 0.05


class Interrupts:
    """Raises KeyboardInterrupt for SIGINT inside a ``with``, until `arrived` is called.

    seen: whether there was one. A SIGINT that is ignored or handled by somebody else is left alone,
    and so is everything outside of the main thread, where none is handled. ``last``: the process
    ends soon after the ``with``, and a further SIGINT shall end it at once; else all is put back.
    """

    def __init__(self, *, last: bool = False) -> None:
        self.seen = False
        self._last = last
        self._over = False
        self._outermost: CodeType | None = None
        # No lock of threading's: the signal may find the main thread holding it.
        self._first = _thread.allocate_lock()
        self._again: threading.Thread | None = None
        self._unraisable = sys.unraisablehook

    def __enter__(self) -> Interrupts:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            self._outermost = sys._getframe(1).f_code
            self._first.acquire()
            self._again = threading.Thread(target=self._raise_again, daemon=True)
            self._again.start()
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._pass_over
            signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *details: object) -> None:
        if self._again is None:
            return
        self.arrived()
        if not self.seen:
            self._first.release()
        self._again.join()
        sys.unraisablehook = self._unraisable
        signal.signal(signal.SIGINT, signal.SIG_DFL if self._last else signal.default_int_handler)

    def arrived(self) -> None:
        """Raise nothing any more."""
        self._over = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if not self.seen:
            self.seen = True
            self._first.release()
        if self._over or self._importing(frame) or is_interrupt(sys.exc_info()[1]):
            return  # where it would be lost, or is on its way
        raise KeyboardInterrupt

    def _importing(self, frame: FrameType | None) -> bool:
        """Whether a module is being imported at ``frame``, by what runs inside the ``with``."""
        while frame is not None and frame.f_code is not self._outermost:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False

    def _raise_again(self) -> None:
        """What a thread does from the first interrupt on."""
        self._first.acquire()
        while not self._over:
            time.sleep(_RETRY_SECONDS)
            if not self._over:
                _thread.interrupt_main()

    def _pass_over(self, unraisable: Any) -> None:
        """Python's hook for what cannot be raised: a lost interrupt is no error to be shown."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self._unraisable(unraisable)


def is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or one that came of it."""
    chain = set()
    while error is not None and error not in chain:  # "raise error from error" is a circle
        if isinstance(error, KeyboardInterrupt):
            return True
        chain.add(error)
        error = error.__cause__ or error.__context__
    return False
