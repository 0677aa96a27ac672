"""The record of a folder's outputs: which of its files were written here, and from what.

A line of JSON for each output in ``percoedge-outputs.jsonl``: its name, the SHA-256 of its bytes,
and that of what it was made from (input and settings). The line is on the disk before the output
gets its name. So after a crash at any moment a file is known by its contents: one whose hash the
record does not hold was put there, or altered, by somebody else, and is not to be replaced.

The record decides nothing but whether files of our own names may be kept or replaced. One that is
damaged, or no plain file, is as good as none; lines that make no sense are passed over.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from percoedge.errors import OutputError

__all__ = [
    "RECORD_NAME",
    "FolderRecord",
    "State",
    "entry_from_line",
    "line_from_entry",
    "plain_file",
]

RECORD_NAME = "percoedge-outputs.jsonl"
"""Name of the record, in the folder of the outputs."""

_CHUNK_BYTES = 1 << 20
_MAX_LINE_BYTES = 4096
_NO_LINKS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class State(Enum):
    """What lies at the name of an output."""

    ABSENT = "nothing"
    CURRENT = "the output that is wanted"
    OURS = "another output that was written here"
    FOREIGN = "something that was not written here"


class FolderRecord:
    """Reads and continues the record of one folder; the threads of a run share it.

    Several processes may do so at once: lines are appended as a whole.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """``names``: of the outputs that will be asked about."""
        self._folder = folder
        self._path = folder / RECORD_NAME
        self._lock = threading.Lock()
        # name -> hash of an output -> hash of its source
        self._known: dict[str, dict[str, str]] = {name: {} for name in names}
        self._read_bytes = 0
        self._descriptor: int | None = None

    def state(self, name: str, source_sha256: str) -> State:
        """What lies in the folder at ``name``, where the output of this source is wanted.

        Links and folders are foreign, wherever they lead.
        """
        path = self._folder / name
        try:
            if not stat.S_ISREG(os.lstat(path).st_mode):
                return State.FOREIGN
            with plain_file(path) as file:
                digest = hashlib.sha256()
                while chunk := file.read(_CHUNK_BYTES):
                    digest.update(chunk)
        except FileNotFoundError:
            return State.ABSENT
        except OSError:
            return State.FOREIGN
        with self._lock:
            self._read_on()
            source = self._known[name].get(digest.hexdigest())
        if source is None:
            return State.FOREIGN
        return State.CURRENT if source == source_sha256 else State.OURS

    def add(self, name: str, contents: bytes, source_sha256: str) -> None:
        """Note, on the disk, an output that is about to be written. Raises OutputError."""
        line = line_from_entry(name, contents, source_sha256)
        with self._lock:
            descriptor = self._opened()
            try:
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(descriptor)
            except OSError as error:
                raise self._failure(error) from error

    def open(self) -> None:
        """Make sure that outputs can be noted. Raises OutputError."""
        with self._lock:
            self._opened()

    def _opened(self) -> int:
        if self._descriptor is None:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | _NO_LINKS | getattr(os, "O_BINARY", 0)
            try:
                descriptor = os.open(self._path, flags, 0o666)
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    os.close(descriptor)
                    raise OSError(None, "expected a plain file")
                self._descriptor = descriptor
                if os.fstat(descriptor).st_size:
                    os.lseek(descriptor, -1, os.SEEK_END)
                    if os.read(descriptor, 1) != b"\n":  # a crash has cut the last line
                        os.write(descriptor, b"\n")
            except OSError as error:
                raise self._failure(error) from error
        return self._descriptor

    def _failure(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {self._path}: {error.strerror or error}; name another folder"
        )

    def _read_on(self) -> None:
        """Take in what was added to the record since the last time, by other processes too."""
        try:
            with plain_file(self._path) as file:
                file.seek(self._read_bytes)
                for line in _whole_lines(file):
                    self._read_bytes += len(line)
                    self._take(line)
        except OSError:  # there is none, or no plain file
            return

    def _take(self, line: bytes) -> None:
        entry = entry_from_line(line)
        if entry and entry[0] in self._known:
            self._known[entry[0]][entry[1]] = entry[2]

    def __enter__(self) -> FolderRecord:
        return self

    def __exit__(self, *details: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def line_from_entry(name: str, contents: bytes, source_sha256: str) -> bytes:
    """The line of an output: its name and contents, and the hash of what it was made from."""
    entry = {
        "output": name,
        "sha256": hashlib.sha256(contents).hexdigest(),
        "source_sha256": source_sha256,
    }
    return json.dumps(entry).encode() + b"\n"


def entry_from_line(line: bytes) -> tuple[str, str, str] | None:
    """Name, hash and hash of the source from a line; None where it makes no sense."""
    try:
        entry = json.loads(line)
        name, contents, source = (entry[key] for key in ("output", "sha256", "source_sha256"))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if all(isinstance(value, str) for value in (name, contents, source)):
        return name, contents, source
    return None


def plain_file(path: Path) -> BinaryIO:
    """Open a file for reading; raises OSError for links, pipes, devices and folders."""
    descriptor = os.open(path, os.O_RDONLY | _NO_LINKS | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("no plain file")
    return open(descriptor, "rb")


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines up to the last that is ended; of longer ones than are written here, pieces."""
    while line := file.readline(_MAX_LINE_BYTES):
        if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
            return
        yield line
