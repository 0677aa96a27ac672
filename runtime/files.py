"""Reading and writing of whole files; ``-`` stands for standard input or standard output.

Files are replaced, never edited: new contents are written under a temporary name beside the
destination and renamed over it, so that readers see the old file or the new one, never a part.
This module knows nothing of images or streams.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from percoedge.errors import InputError, OutputError
from percoedge.replacing import replacing

__all__ = ["MAX_READ_BYTES", "STANDARD_STREAM", "Writer", "atomic_write", "read_bytes"]

STANDARD_STREAM = "-"
"""The name that means standard input when reading and standard output when writing."""

MAX_READ_BYTES = 1 << 31
"""Default cap of `read_bytes`, 2 GiB: above the largest photo that percoedge accepts."""

Writer = Callable[[BinaryIO], object]
"""A function that writes a file's contents to the binary stream given; its result is ignored."""


def read_bytes(source: str | os.PathLike[str], *, limit_bytes: int = MAX_READ_BYTES) -> bytes:
    """Return all bytes of a file, or of standard input when `source` is ``-``.

    At most `limit_bytes` + 1 bytes are ever read, so endless sources (a device, a pipe) are safe.
    Raises InputError when the file is missing, unreadable or longer than `limit_bytes`.
    """
    if os.fspath(source) == STANDARD_STREAM:
        name = "standard input"
        data = _read_standard_input(limit_bytes + 1)
    else:
        name = str(source)
        try:
            with open(source, "rb") as stream:
                data = stream.read(limit_bytes + 1)
        except FileNotFoundError as error:
            raise InputError(
                f"cannot read {name}: there is no such file; check the path"
            ) from error
        except IsADirectoryError as error:
            raise InputError(
                f"cannot read {name}: expected a file, got a directory; name a file in it"
            ) from error
        except PermissionError as error:
            raise InputError(
                f"cannot read {name}: permission denied; ask for read access to it"
            ) from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise InputError(f"cannot read {name}: {_reason(error)}") from error
    if len(data) > limit_bytes:
        raise InputError(
            f"{name} is too long: expected at most {limit_bytes} bytes; is it the right file?"
        )
    return data


def atomic_write(destination: str | os.PathLike[str], contents: bytes | Writer) -> None:
    """Write a whole file, or nothing; ``-`` is standard output.

    `contents` are the bytes, or a function that writes them to a seekable binary stream. What it
    raises is passed on, except OSError, after the temporary file has been removed. An existing
    file keeps its permissions; a link is followed and its target replaced; a device or pipe,
    which cannot be replaced, is written to directly.
    Raises OutputError when the directory is missing or not writable, when the destination is a
    directory or write-protected, when the disk is full, or when the reader has gone away.
    """
    if os.fspath(destination) == STANDARD_STREAM:
        _write_standard_output(contents)
        return
    name = str(destination)
    try:
        target = Path(os.path.realpath(destination))
        mode = _mode_of(target)
        if mode is not None and stat.S_ISDIR(mode):
            raise IsADirectoryError
        if mode is None or stat.S_ISREG(mode):
            _replace(target, contents, mode)
        else:
            with open(target, "wb") as stream:
                stream.write(_bytes_of(contents))
    except FileNotFoundError as error:
        raise OutputError(
            f"cannot write {name}: its directory does not exist; create it first, "
            f"or choose another place"
        ) from error
    except NotADirectoryError as error:
        raise OutputError(
            f"cannot write {name}: a part of its path is a file, not a directory; "
            f"choose another place"
        ) from error
    except IsADirectoryError as error:
        raise OutputError(
            f"cannot write {name}: expected the name of a file, got a directory; "
            f"add a file name to it"
        ) from error
    except PermissionError as error:
        raise OutputError(
            f"cannot write {name}: permission denied; choose a place that you may write to"
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {name}: {_reason(error)}") from error


def _replace(target: Path, contents: bytes | Writer, mode: int | None) -> None:
    """Replace a plain file, or write a new one."""
    if mode is not None:
        # A rename needs no right to write the old file: ask for it, so that write-protected
        # files stay as they are.
        with open(target, "r+b"):
            pass
    with replacing(target, None if mode is None else stat.S_IMODE(mode)) as stream:
        if callable(contents):
            contents(stream)
        else:
            stream.write(contents)


def _mode_of(path: Path) -> int | None:
    """Return type and permission bits of what lies at `path`, or None when nothing does."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _bytes_of(contents: bytes | Writer) -> bytes:
    if not callable(contents):
        return contents
    buffer = BytesIO()
    contents(buffer)
    return buffer.getvalue()


def _read_standard_input(limit_bytes: int) -> bytes:
    if sys.stdin is None:
        raise InputError("cannot read standard input: it is closed; name a file instead of '-'")
    try:
        return sys.stdin.buffer.read(limit_bytes)
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        raise InputError(f"cannot read standard input: {_reason(error)}") from error


def _write_standard_output(contents: bytes | Writer) -> None:
    if sys.stdout is None:
        raise OutputError("cannot write standard output: it is closed; name a file instead of '-'")
    data = _bytes_of(contents)
    try:
        sys.stdout.flush()  # text printed before comes first
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except (OSError, ValueError) as error:
        raise OutputError(f"cannot write standard output: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return the operating system's words for an error, without its number and path."""
    return getattr(error, "strerror", None) or str(error)
