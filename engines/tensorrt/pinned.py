"""Pinned memory on the host, kept for later: lent to numpy arrays, taken back when these are gone.

This module knows no CUDA: it asks an event whether it is done, and is given a function that
allocates.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["HostMemory", "PinnedMemory"]

_MIN_BYTES = 4096


@dataclass(frozen=True)
class HostMemory:
    """Pinned memory on the host; ``array`` (uint8) and views of it keep it."""

    address: int
    array: NDArray[np.uint8]
    _lease: _Lease

    def settle(self) -> None:
        """All copies to and from it are done, whatever its event says."""
        self._lease.copied = None


class PinnedMemory:
    """``allocate`` takes a number of bytes. Any thread may lend and trim."""

    def __init__(self, allocate: Callable[[int], Any]) -> None:
        self.trims = 0
        self._allocate = allocate
        self._unused: dict[int, list[tuple[Any, Any]]] = {}  # size -> buffers, their events or None

    def lend(self, size_bytes: int, copied: Any = None) -> HostMemory:
        """Memory that nobody uses, with whatever was in it before.

        ``copied``: an event that is recorded behind the copies to and from it; it is not lent
        again before that is done.
        """
        rounded = max(_MIN_BYTES, 1 << (size_bytes - 1).bit_length())
        buffer = self._take(rounded)
        if buffer is None:
            buffer = self._allocate(rounded)
        address = int(buffer.handle)
        lease = _Lease(self, buffer, (address, size_bytes), rounded, copied)
        return HostMemory(address, np.asarray(lease), lease)

    def take_back(self, buffer: Any, rounded: int, copied: Any, trims: int) -> None:
        """Keep it for later, or let go of it when there was a ``trim`` since it was lent."""
        if trims == self.trims or copied is not None:
            self._unused.setdefault(rounded, []).append((buffer, copied))

    def trim(self) -> None:
        """Free what is unused, and what is in use as soon as nobody uses it any more."""
        self.trims += 1
        for rounded, unused in list(self._unused.items()):
            for _ in range(len(unused)):
                self._take(rounded)

    def _take(self, rounded: int) -> Any:
        """One that is not used and to which nothing is copied; None where none is at hand."""
        unused = self._unused.setdefault(rounded, [])
        with contextlib.suppress(IndexError):  # other threads take some too
            buffer, copied = unused.pop()
            if copied is None or copied.is_done:
                return buffer
            unused.insert(0, (buffer, copied))
        return None


class _Lease:
    """Lends a buffer to numpy arrays, and gives it back when the last of them is gone."""

    def __init__(
        self, owner: PinnedMemory, buffer: Any, place: tuple[int, int], rounded: int, copied: Any
    ) -> None:
        self.__array_interface__ = {
            "shape": (place[1],),
            "typestr": "|u1",
            "data": (place[0], False),
            "version": 3,
        }
        self.copied = copied
        self._owner, self._buffer, self._rounded = owner, buffer, rounded
        self._trims = owner.trims

    def __del__(self) -> None:
        self._owner.take_back(self._buffer, self._rounded, self.copied, self._trims)
