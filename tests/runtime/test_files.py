"""percoedge.runtime.files: whole files in, whole files out."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from percoedge.arguments import shown
from percoedge.errors import InputError, OutputError, UsageError
from percoedge.runtime.files import atomic_write, is_byte_source, read_bytes, source_name

NOBODY = 65534
LIMIT = 1 << 20


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
        assert read_bytes(path, limit_bytes=LIMIT) == b"\x00\xff\n"
        assert read_bytes(str(path), limit_bytes=LIMIT) == b"\x00\xff\n"

    def test_dash_is_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", StandardStream(b"stream"))
        assert read_bytes("-", limit_bytes=LIMIT) == b"stream"

    def test_closed_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdin", None)
        with pytest.raises(InputError, match="standard input: it is closed"):
            read_bytes("-", limit_bytes=LIMIT)

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
            read_bytes(tmp_path / "nothing.png", limit_bytes=LIMIT)

    def test_directory(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="got a directory"):
            read_bytes(tmp_path, limit_bytes=LIMIT)

    def test_memory_is_that_of_the_bytes(self) -> None:
        class Endless(io.RawIOBase):
            def read(self, size: int = -1) -> bytes:
                return bytes(size)

        limit = 8 << 20
        tracemalloc.start()
        try:
            with pytest.raises(InputError, match="too long"):
                read_bytes(Endless(), limit_bytes=limit)  # type: ignore[arg-type]
            assert tracemalloc.get_traced_memory()[1] < 1.5 * limit
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("path", ["a\0b", ""])
    def test_what_is_no_path(self, path: str) -> None:
        with pytest.raises(UsageError, match="expected the path of a file, got '.*'; check it"):
            read_bytes(path, limit_bytes=LIMIT)
        with pytest.raises(UsageError, match="expected the path of a file"):
            atomic_write(path, b"")

    def test_no_permission(self, public_directory: Path) -> None:
        path = public_directory / "secret"
        path.write_bytes(b"x")
        path.chmod(0)
        with ordinary_user(), pytest.raises(InputError, match="permission denied"):
            read_bytes(path, limit_bytes=LIMIT)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, io.BytesIO])
    def test_bytes_and_files(self, kind: Callable[[bytes], Any]) -> None:
        assert read_bytes(kind(b"stream"), limit_bytes=6) == b"stream"
        with pytest.raises(InputError, match="the stream is too long: expected at most 5 bytes"):
            read_bytes(kind(b"stream"), limit_bytes=5, unnamed="the stream")

    def test_files_that_give_little_at_a_time(self, tmp_path: Path) -> None:
        data = bytes(range(256)) * 40
        reading, writing = os.pipe()
        with open(reading, "rb", buffering=0) as pipe:
            os.write(writing, data[:5000])
            os.write(writing, data[5000:])
            os.close(writing)
            assert read_bytes(pipe, limit_bytes=len(data)) == data

    @pytest.mark.parametrize("source", [None, 3, (b"a",), (part for part in ())])
    def test_other_sources_are_refused(self, source: Any) -> None:
        assert not is_byte_source(source)
        got = re.escape(shown(source))
        with pytest.raises(UsageError, match=f"expected a path, .* got {got}$"):
            read_bytes(source, limit_bytes=LIMIT)

    def test_text_and_closed_files_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="gives str; open it in binary mode"):
            read_bytes(io.StringIO("a"), limit_bytes=LIMIT)  # type: ignore[arg-type]
        (tmp_path / "a.png").write_bytes(b"\x89PNG")
        with (
            open(tmp_path / "a.png", encoding="utf-8") as text,
            pytest.raises(UsageError, match="open it in binary mode"),
        ):
            read_bytes(text, limit_bytes=LIMIT)  # type: ignore[arg-type]
        file = io.BytesIO(b"a")
        file.close()
        with pytest.raises(InputError, match="cannot read the data: .*closed"):
            read_bytes(file, limit_bytes=LIMIT)
        with (
            open(tmp_path / "out", "wb") as file,  # type: ignore[assignment]
            pytest.raises(InputError, match="cannot read the data"),
        ):
            read_bytes(file, limit_bytes=LIMIT)

    @pytest.mark.parametrize("size", [0, 10, 4095, 4096, 10_000])
    def test_the_head_is_checked_once_before_more_is_read(self, tmp_path: Path, size: int) -> None:
        path = tmp_path / "a.bin"
        path.write_bytes(bytes(size))
        for source in (path, bytes(size), io.BytesIO(bytes(size))):
            heads: list[bytes] = []
            assert len(read_bytes(source, limit_bytes=LIMIT, check_head=heads.append)) == size
            assert heads == [bytes(min(size, 4096))]

    def test_what_the_check_raises_is_passed_on(self) -> None:
        def check(head: bytes) -> None:
            raise UsageError("no")

        file = io.BytesIO(bytes(10_000))
        with pytest.raises(UsageError, match="no"):
            read_bytes(file, limit_bytes=LIMIT, check_head=check)
        assert file.tell() == 4096

    def test_names(self) -> None:
        assert source_name("a/b.png", "the image") == "a/b.png"
        assert source_name("-", "the image") == "standard input"
        assert source_name(b"a/b.png", "the image") == "the image"


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
