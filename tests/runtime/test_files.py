"""percoedge.runtime.files: whole files in, whole files out."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from percoedge.errors import InputError, OutputError
from percoedge.runtime.files import atomic_write, read_bytes

NOBODY = 65534


@contextlib.contextmanager
def ordinary_user() -> Iterator[None]:
    """Take root's right to ignore permissions away for a while."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """A directory that another user can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


class StandardStream:
    """Stands in for sys.stdin or sys.stdout: text above, bytes below."""

    def __init__(self, data: bytes = b"") -> None:
        self.buffer = io.BytesIO(data)

    def flush(self) -> None:
        pass


class TestReadBytes:
    def test_returns_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"\x00\xff\n")
        assert read_bytes(path) == b"\x00\xff\n"
        assert read_bytes(str(path)) == b"\x00\xff\n"

    def test_dash_is_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", StandardStream(b"stream"))
        assert read_bytes("-") == b"stream"

    def test_closed_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(InputError, match="standard input: it is closed"):
            read_bytes("-")

    def test_limit_is_inclusive(self, tmp_path: Path) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(b"12345")
        assert read_bytes(path, limit_bytes=5) == b"12345"
        with pytest.raises(InputError, match="at most 4 bytes"):
            read_bytes(path, limit_bytes=4)

    def test_limit_holds_for_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", StandardStream(b"12345"))
        with pytest.raises(InputError, match="standard input is too long"):
            read_bytes("-", limit_bytes=4)

    @pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no such device here")
    def test_endless_source_ends_at_the_limit(self) -> None:
        with pytest.raises(InputError, match="too long"):
            read_bytes("/dev/zero", limit_bytes=1000)

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"nothing\.png: there is no such file"):
            read_bytes(tmp_path / "nothing.png")

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="got a directory"):
            read_bytes(tmp_path)

    def test_null_character(self) -> None:
        with pytest.raises(InputError, match="null"):
            read_bytes("a\0b")

    def test_no_permission(self, public_directory: Path) -> None:
        path = public_directory / "secret"
        path.write_bytes(b"x")
        path.chmod(0)
        with ordinary_user(), pytest.raises(InputError, match="permission denied"):
            read_bytes(path)


class TestAtomicWrite:
    def test_writes_bytes(self, tmp_path: Path) -> None:
        atomic_write(tmp_path / "a.pco", b"stream")
        assert (tmp_path / "a.pco").read_bytes() == b"stream"
        assert os.listdir(tmp_path) == ["a.pco"]

    def test_writes_what_a_function_writes(self, tmp_path: Path) -> None:
        def write(stream: BinaryIO) -> None:
            stream.write(b"????")
            stream.seek(1)
            stream.write(b"??")
            stream.seek(0)
            stream.write(b"!")

        atomic_write(str(tmp_path / "a.pco"), write)
        assert (tmp_path / "a.pco").read_bytes() == b"!???"

    def test_replaces_and_keeps_permissions(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pco"
        path.write_bytes(b"a longer file than the new one")
        path.chmod(0o640)
        atomic_write(path, b"new")
        assert path.read_bytes() == b"new"
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_new_files_follow_the_umask(self, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            atomic_write(tmp_path / "a.pco", b"new")
        finally:
            os.umask(old)
        assert stat.S_IMODE((tmp_path / "a.pco").stat().st_mode) == 0o640

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_failing_writer_leaves_the_old_file(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        path = tmp_path / "a.pco"
        path.write_bytes(b"old")

        def write(stream: BinaryIO) -> None:
            stream.write(b"half")
            raise error("stop")

        with pytest.raises(error, match="stop"):
            atomic_write(path, write)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.pco"]

    def test_full_disk_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fsync(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(OutputError, match=r"a\.pco: No space left on device"):
            atomic_write(tmp_path / "a.pco", b"data")
        assert os.listdir(tmp_path) == []

    def test_follows_links(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        target.write_bytes(b"old")
        link = tmp_path / "link"
        link.symlink_to(target)
        atomic_write(link, b"new")
        assert link.is_symlink()
        assert target.read_bytes() == b"new"

    def test_devices_are_not_replaced(self) -> None:
        atomic_write(os.devnull, b"data")
        assert not Path(os.devnull).is_file()

    def test_named_pipe_is_not_replaced(self, tmp_path: Path) -> None:
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        try:
            atomic_write(pipe, lambda stream: stream.write(b"data"))
            assert os.read(reader, 10) == b"data"
        finally:
            os.close(reader)
        assert stat.S_ISFIFO(pipe.stat().st_mode)

    def test_dash_is_standard_output(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stream = StandardStream()
        monkeypatch.setattr(sys, "stdout", stream)
        atomic_write("-", b"one ")
        atomic_write("-", lambda out: out.write(b"two"))
        assert stream.buffer.getvalue() == b"one two"

    def test_failing_writer_puts_nothing_on_standard_output(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stream = StandardStream()
        monkeypatch.setattr(sys, "stdout", stream)

        def write(out: BinaryIO) -> None:
            out.write(b"half")
            raise ValueError("stop")

        with pytest.raises(ValueError, match="stop"):
            atomic_write("-", write)
        assert stream.buffer.getvalue() == b""

    def test_reader_gone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            with pytest.raises(OutputError, match="standard output: Broken pipe"):
                atomic_write("-", b"data")
            monkeypatch.undo()
            with contextlib.suppress(OSError):
                stream.close()
        os.close(writer)

    def test_missing_directory(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="directory does not exist; create it first"):
            atomic_write(tmp_path / "no" / "a.pco", b"data")

    def test_destination_is_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="got a directory"):
            atomic_write(tmp_path, b"data")

    def test_path_through_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(OutputError, match="is a file, not a directory"):
            atomic_write(tmp_path / "file" / "a.pco", b"data")

    def test_name_too_long(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="name too long"):
            atomic_write(tmp_path / ("n" * 300), b"data")
        assert os.listdir(tmp_path) == []

    def test_longest_name_has_room_for_the_temporary_one(self, tmp_path: Path) -> None:
        atomic_write(tmp_path / ("n" * 255), b"data")
        assert os.listdir(tmp_path) == ["n" * 255]

    def test_directory_without_permission(self, public_directory: Path) -> None:
        with ordinary_user():
            if os.access(public_directory, os.W_OK, effective_ids=True):
                public_directory.chmod(0o555)
            with pytest.raises(OutputError, match="permission denied"):
                atomic_write(public_directory / "a.pco", b"data")

    def test_write_protected_file_stays(self, public_directory: Path) -> None:
        path = public_directory / "a.pco"
        path.write_bytes(b"old")
        path.chmod(0o444)
        public_directory.chmod(0o777)
        with ordinary_user(), pytest.raises(OutputError, match="permission denied"):
            atomic_write(path, b"new")
        assert path.read_bytes() == b"old"
        assert os.listdir(public_directory) == ["a.pco"]
