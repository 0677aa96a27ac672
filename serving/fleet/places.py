"""Folders on any file system that pyarrow knows: this machine's, S3, GCS and others.

Names of files are relative to their folder, with "/" between the parts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pyarrow import ArrowException, fs

from percoedge.errors import InputError, OutputError, UsageError
from percoedge.runtime.files import atomic_write, read_bytes

__all__ = ["NO_PLAIN_FILE", "Place"]

NO_PLAIN_FILE = "no plain file"
"""What ``Place.sha256`` says of links, folders, pipes and whatever else is no file of ours."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Place:
    """A folder, on this machine or elsewhere; it goes to other processes by pickle.

    shown: its name as it was given. A file is written as a whole or not at all: by a rename here,
    by the store's own upload elsewhere.
    """

    shown: str
    files: Any
    root: str

    @classmethod
    def named(cls, name: str) -> Place:
        """A folder by its path or by an address such as ``s3://bucket/photos``.

        Raises UsageError for an address that pyarrow does not know.
        """
        if "://" not in name:
            return cls(name, fs.LocalFileSystem(), os.path.abspath(name))
        try:
            files, root = fs.FileSystem.from_uri(name)
        except (ArrowException, OSError, ValueError) as error:
            raise UsageError(
                f"expected a folder or an address of a file system that pyarrow knows, got "
                f"{name!r} ({error})"
            ) from error
        return cls(name, files, root.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether files lie on this machine, or on a file system that is mounted here."""
        return isinstance(self.files, fs.LocalFileSystem)

    def names(self, folder: str = "") -> list[str]:
        """Names of all files in it, or in a folder of it, and in the folders inside; sorted.

        There are none where it does not exist. Raises InputError.
        """
        path = self._path(folder)
        try:
            found = list(_walked(path)) if self.is_local else self._listed(path)
        except (ArrowException, OSError) as error:
            raise InputError(f"cannot read {self._shown(folder)}: {error}") from error
        names = sorted(each[len(self.root) + 1 :] for each in found)
        for name in names:
            if not name.isascii() and name.encode(errors="replace").decode() != name:
                raise InputError(f"expected names in UTF-8, got {name!r}; rename that file")
        return names

    def _listed(self, path: str) -> list[str]:
        selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
        return [info.path for info in self.files.get_file_info(selector) if info.is_file]

    def read(self, name: str, limit_bytes: int) -> bytes:
        """The contents of a file. Raises InputError, also where it is longer than that."""
        if self.is_local:
            return read_bytes(self._path(name), limit_bytes=limit_bytes)
        try:
            with self.files.open_input_stream(self._path(name), compression=None) as stream:
                return read_bytes(stream, limit_bytes=limit_bytes, unnamed=self._shown(name))
        except (ArrowException, OSError) as error:
            raise InputError(f"cannot read {self._shown(name)}: {error}") from error

    def sha256(self, name: str) -> str | None:
        """Hash (hexadecimal) of a file; None where nothing lies there, else NO_PLAIN_FILE."""
        path = self._path(name)
        try:
            if self.is_local and not stat.S_ISREG(os.lstat(path).st_mode):
                return NO_PLAIN_FILE
            digest = hashlib.sha256()
            with self.files.open_input_stream(path, compression=None) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    digest.update(chunk)
            return digest.hexdigest()
        except FileNotFoundError:
            return None
        except (ArrowException, OSError):
            return NO_PLAIN_FILE

    def write(self, name: str, contents: bytes) -> None:
        """Write or replace a file, and make the folders that it lies in. Raises OutputError."""
        path = self._path(name)
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                atomic_write(path, contents)
            else:
                with self.files.open_output_stream(path, compression=None) as stream:
                    stream.write(contents)
        except (ArrowException, OSError) as error:
            raise OutputError(f"cannot write {self._shown(name)}: {error}") from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there. Raises OutputError."""
        try:
            self.files.delete_file(self._path(name))
        except FileNotFoundError:
            return
        except (ArrowException, OSError) as error:
            raise OutputError(f"cannot remove {self._shown(name)}: {error}") from error

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _shown(self, name: str) -> str:
        return f"{self.shown.rstrip('/')}/{name}" if name else self.shown


def _walked(path: str) -> Iterator[str]:
    """Files in a folder, and in those inside; links to folders, which may lead back, are none."""
    for folder, _, names in os.walk(path):
        for name in names:
            yield f"{folder}/{name}"
