"""Replaces files as a whole: readers see the old contents or the new ones, never a part."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(target: Path, mode: int | None = None) -> Iterator[BinaryIO]:
    """A stream, seekable, whose contents take the place of ``target`` when the ``with`` ends well.

    They are written to a temporary file beside it and renamed when they are on the disk; when the
    ``with`` ends with an error, that file is removed and ``target`` stays as it was. ``mode``:
    permissions of the new file, None for those of any new file. Raises OSError.
    """
    # A name of our own, not tempfile's: created with mode 0666 less the umask, as open() does.
    temporary = target.with_name(f".percoedge-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "x+b") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # the data must be on the disk before its new name is
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
