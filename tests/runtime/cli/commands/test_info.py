"""percoedge info."""

from __future__ import annotations

import re
from pathlib import Path

from percoedge.bitstream.container import Header, pack
from tests.runtime.cli.command_line import (
    SIZE,
    Run,
    assert_refused,
    fresh,
)


def test_tells_where_each_byte_goes(run: Run, pco: Path, stream: bytes) -> None:
    record = run("info", pco, "--json").record
    assert sum(record["bytes_by_part"].values()) == record["bytes"] == len(stream)
    assert (record["width"], record["height"], record["caption"]) == (*SIZE, "a hill")
    assert record["bundle"] == "tiny"
    text = run("info", "-", stdin=stream).out.decode()
    assert text.startswith(f"standard input: 50x40 px, {len(stream)} bytes, ")
    for part, size_bytes in record["bytes_by_part"].items():
        assert re.search(rf"^  {part} +{size_bytes} bytes", text, re.MULTILINE)


def test_describes_a_stream_of_an_unknown_bundle(run: Run) -> None:
    Path("a.pco").write_bytes(pack(Header(*SIZE), b"\1", b"else"))
    record = run("info", "a.pco", "--json").record
    assert (record["bundle"], record["fingerprint"]) == ("another one", b"else".hex())
    assert (record["schedule"], record["steps"], record["guidance"]) == (None, None, None)
    assert b"steps: left to the bundle" in run("info", "a.pco").out


def test_every_damaged_byte_is_noticed(run: Run, stream: bytes) -> None:
    for at in range(len(stream)):
        damaged = bytearray(stream)
        damaged[at] ^= 0x10
        assert_refused(run("info", "-", stdin=bytes(damaged)), 3, "standard input: expected")


def test_captions_cannot_steer_the_terminal(run: Run) -> None:
    caption = "\x1b[2J\n\x9b1m\u202e"
    Path("a.pco").write_bytes(pack(Header(*SIZE, caption=caption), b"", b"else"))
    result = run("info", "a.pco")
    assert result.code == 0
    assert not {"\x1b", "\x9b", "\u202e"} & set(result.out.decode())
    assert run("info", "a.pco", "--json").record["caption"] == caption


def test_needs_no_engine_and_no_pictures(pco: Path) -> None:
    code = (
        "import sys; from percoedge.runtime.cli.main import main; "
        f"assert main(['info', {str(pco)!r}, '-q']) == 0; print(*sys.modules)"
    )
    loaded = set(fresh("-c", code).stdout.decode().split())
    assert "percoedge.bitstream.container" in loaded
    assert not loaded & {"PIL", "onnxruntime", "percoedge.runtime.codec"}
