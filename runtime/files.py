"""Reading and writing of whole files; ``-`` stands for standard input or standard output.

Files are replaced, never edited: new contents are written under a temporary name beside the
destination and renamed over it, so that readers see the old file or the new one, never a part.
This module knows nothing of images or streams.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeGuard

from percoedge.arguments import shown
from percoedge.errors import InputError, OutputError, UsageError
from percoedge.replacing import replacing

__all__ = [
    "STANDARD_STREAM",
    "ByteSource",
    "Writer",
    "atomic_write",
    "is_byte_source",
    "read_bytes",
    "source_name",
]

STANDARD_STREAM = "-"
"""The name that means standard input when reading and standard output when writing."""

ByteSource: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO"
"""What `read_bytes` takes: a path or ``-``, bytes, or a binary file that is open for reading."""

_HEAD_BYTES = 4096
_CHUNK_BYTES = 1 << 20

Writer = Callable[[BinaryIO], object]
"""A function that writes a file's contents to the binary stream given; its result is ignored."""


def is_byte_source(source: object) -> TypeGuard[ByteSource]:
    """Whether `read_bytes` takes `source`."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview)
    return isinstance(source, kinds) or callable(getattr(source, "read", None))


def source_name(source: ByteSource, unnamed: str) -> str:
    """Return how messages call a source: its path, "standard input", or else `unnamed`."""
    if isinstance(source, (str, os.PathLike)):
        return "standard input" if os.fspath(source) == STANDARD_STREAM else str(source)
    return unnamed


def read_bytes(
    source: ByteSource,
    *,
    limit_bytes: int,
    check_head: Callable[[bytes], None] | None = None,
    unnamed: str = "the data",
) -> bytes:
    """Return all bytes of a source; a file that is open is read from where it stands.

    At most `limit_bytes` + 1 bytes are ever read, so endless sources (a device, a pipe) are safe.
    `check_head` is given the first 4 KiB, or all there is, before more is read, and raises what it
    likes when that is no file of the kind expected. `unnamed`: what messages call data without a
    name. Raises InputError when the file is missing, unreadable or longer than `limit_bytes`, and
    UsageError for other sources and for files opened as text.
    """
    name = source_name(source, unnamed)
    if isinstance(source, (str, os.PathLike)):
        _check_path(os.fspath(source))
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
        if check_head is not None:
            check_head(data[:_HEAD_BYTES])
    elif isinstance(source, (str, os.PathLike)):
        with _opened(source, name) as stream:
            data = _drained(stream, name, limit_bytes, check_head)
    elif callable(getattr(source, "read", None)):
        data = _drained(source, name, limit_bytes, check_head)
    else:
        raise UsageError(
            f"expected a path, bytes or a file opened in binary mode, got {shown(source)}"
        )
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
    directory or write-protected, when the disk is full, or when the reader has gone away, and
    UsageError for what is no path.
    """
    _check_path(os.fspath(destination))
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


def _opened(
    source: str | os.PathLike[str], name: str
) -> contextlib.AbstractContextManager[BinaryIO]:
    if os.fspath(source) == STANDARD_STREAM:
        if sys.stdin is None:
            raise InputError(f"cannot read {name}: it is closed; name a file instead of '-'")
        return contextlib.nullcontext(sys.stdin.buffer)
    try:
        return open(source, "rb")
    except FileNotFoundError as error:
        raise InputError(f"cannot read {name}: there is no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(
            f"cannot read {name}: expected a file, got a directory; name a file in it"
        ) from error
    except PermissionError as error:
        raise InputError(
            f"cannot read {name}: permission denied; ask for read access to it"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {name}: {_reason(error)}") from error


def _check_path(path: str) -> None:
    """Raise UsageError for what cannot be the path of a file."""
    if not path or "\0" in path:
        raise UsageError(f"expected the path of a file, got {path!r}; check it")


def _drained(
    stream: BinaryIO, name: str, limit_bytes: int, check_head: Callable[[bytes], None] | None
) -> bytes:
    """Return up to `limit_bytes` + 1 bytes of a stream, once `check_head` has seen the first."""
    data = BytesIO()  # which hands its bytes over without a copy
    checked = check_head is None
    while data.tell() <= limit_bytes:
        # Piece by piece, for a reader of files reserves as much memory as it is asked for.
        piece = _CHUNK_BYTES if checked else _HEAD_BYTES
        part = _part(stream, name, min(piece, limit_bytes + 1 - data.tell()))
        data.write(part)
        if check_head is not None and not checked and (not part or data.tell() >= _HEAD_BYTES):
            check_head(data.getvalue())
            checked = True
        if not part:
            break
    return data.getvalue()


def _part(stream: BinaryIO, name: str, size_bytes: int) -> bytes:
    try:
        part: Any = stream.read(size_bytes)
    except UnicodeDecodeError:
        part = ""  # of a file opened as text
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        raise InputError(f"cannot read {name}: {_reason(error)}") from error
    if not isinstance(part, bytes):
        raise UsageError(
            f"expected a file that gives bytes, got one that gives {type(part).__name__}; "
            f"open it in binary mode ('rb')"
        )
    return part


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
