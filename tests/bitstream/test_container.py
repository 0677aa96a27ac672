"""Container: frozen bytes, exact round trips, overhead, limits and hostile bytes."""

from __future__ import annotations

import binascii
import dataclasses
import re
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from percoedge.bitstream import container
from percoedge.bitstream.container import (
    MAX_SIDE,
    MAX_STREAM_BYTES,
    Header,
    Stream,
    max_token_bytes,
    pack,
    unpack,
)
from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.errors import StreamError, UsageError

TOKENS = bytes.fromhex("9e3779b97f4a7c15")
FINGERPRINT = bytes.fromhex("0badcafe")

# The examples of FORMAT.md: header, file framing, bare framing. Never to be changed.
GOLDEN = [
    (
        Header(512, 512),
        "50c001 0badcafe 2709 07fc1ff0 9e3779b97f4a7c15",
        "07fc1ff0 9e3779b97f4a7c15",
    ),
    (
        Header(768, 512, caption="a dog"),
        "50c001 0badcafe ae7a 0bfc1ff2 83e9ad18 9e3779b97f4a7c15",
        "0bfc1ff2 83e9ad18 9e3779b97f4a7c15",
    ),
    (
        Header(1, 16384, "checkerboard", 1, 0xDEADBEEF, 4, 3.5, "a dog"),
        "50c001 0badcafe 98da 0003fff3 1f0101deadbeef0438 83e9ad18 9e3779b97f4a7c15",
        "0003fff3 1f0101deadbeef0438 83e9ad18 9e3779b97f4a7c15",
    ),
    (
        Header(512, 512, steps=1),
        "50c001 0badcafe ef30 07fc1ff1 0801 9e3779b97f4a7c15",
        "07fc1ff1 0801 9e3779b97f4a7c15",
    ),
]
FILES = [bytes.fromhex(file) for _, file, _ in GOLDEN]


@st.composite
def headers(draw: st.DrawFn) -> Header:
    schedule = draw(st.none() | st.sampled_from(SCHEDULES))
    return Header(
        width=draw(st.integers(1, MAX_SIDE)),
        height=draw(st.integers(1, MAX_SIDE)),
        schedule=schedule,
        passes_sent=draw(st.none() | st.integers(1, pass_count(schedule) if schedule else 255)),
        seed=draw(st.none() | st.integers(0, 2**32 - 1)),
        steps=draw(st.none() | st.integers(1, 255)),
        guidance=draw(st.none() | st.integers(0, 255).map(lambda units: units / 16)),
        caption=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=40)),
    )


def token_bytes(header: Header) -> st.SearchStrategy[bytes]:
    limit = min(64, max_token_bytes(header.width, header.height))
    return st.binary(max_size=limit).map(lambda data: data.rstrip(b"\0"))


def with_checksum(file: bytes) -> bytes:
    """The file with its checksum set right, as a hostile writer would."""
    checksum = binascii.crc_hqx(file[9:], binascii.crc_hqx(file[:7], 0))
    return file[:7] + checksum.to_bytes(2, "big") + file[9:]


@pytest.mark.parametrize(("header", "file", "bare"), GOLDEN)
def test_bytes_are_frozen(header: Header, file: str, bare: str) -> None:
    assert pack(header, TOKENS, FINGERPRINT) == bytes.fromhex(file)
    assert pack(header, TOKENS, None) == bytes.fromhex(bare)
    stream = unpack(bytes.fromhex(file))
    assert stream.header == header
    assert stream.tokens == TOKENS
    assert stream.fingerprint == FINGERPRINT
    assert stream.checksum_ok is True
    stream = unpack(bytes.fromhex(bare), bare=True)
    assert (stream.header, stream.tokens) == (header, TOKENS)
    assert stream.fingerprint is None
    assert stream.checksum_ok is None


def test_the_specification_shows_the_frozen_bytes() -> None:
    text = (Path(container.__file__).parent / "FORMAT.md").read_text(encoding="utf-8")
    shown = re.sub(r"[^0-9a-f]", "", text.lower())
    for _, file, _ in GOLDEN[:3]:
        assert file.replace(" ", "") in shown
    assert f"{MAX_STREAM_BYTES:,} bytes" in text


@settings(max_examples=200, deadline=None)
@given(st.data(), headers(), st.binary(min_size=4, max_size=4))
def test_round_trip(data: st.DataObject, header: Header, fingerprint: bytes) -> None:
    tokens = data.draw(token_bytes(header))
    for framing in (fingerprint, None):
        packed = pack(header, tokens, framing)
        stream = unpack(packed, bare=framing is None)
        assert (stream.header, stream.tokens, stream.fingerprint) == (header, tokens, framing)
        assert sum(stream.sizes.values()) == len(packed)
        assert pack(stream.header, stream.tokens, stream.fingerprint) == packed


def test_overhead_budget() -> None:
    """With less than one byte of the range coder's end: file at most 14, bare at most 5."""
    assert len(pack(Header(MAX_SIDE, MAX_SIDE), TOKENS, FINGERPRINT)) - len(TOKENS) == 13
    assert len(pack(Header(MAX_SIDE, MAX_SIDE), TOKENS, None)) - len(TOKENS) == 4


def test_sizes_name_every_part() -> None:
    stream = unpack(FILES[2])
    assert stream.sizes == {"framing": 9, "header": 4, "options": 9, "caption": 4, "tokens": 8}


def test_the_seed_is_sent_or_derived() -> None:
    assert unpack(FILES[2]).seed == 0xDEADBEEF
    assert unpack(FILES[0]).seed == binascii.crc32(TOKENS)
    assert Stream(Header(1, 1, seed=0), None, TOKENS, {}, None).seed == 0


@pytest.mark.parametrize("file", FILES)
def test_every_flipped_bit_is_refused(file: bytes) -> None:
    for bit in range(8 * len(file)):
        damaged = bytearray(file)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StreamError):
            unpack(bytes(damaged))


@settings(max_examples=100, deadline=None)
@given(st.data(), headers())
def test_any_flipped_bit_of_any_file_is_refused(data: st.DataObject, header: Header) -> None:
    file = bytearray(pack(header, data.draw(token_bytes(header)), FINGERPRINT))
    bit = data.draw(st.integers(0, 8 * len(file) - 1))
    file[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StreamError):
        unpack(bytes(file))


@pytest.mark.parametrize("file", FILES)
def test_every_truncation_is_refused(file: bytes) -> None:
    for length in range(len(file)):
        with pytest.raises(StreamError):
            unpack(file[:length])


@pytest.mark.parametrize("file", FILES)
def test_added_bytes_are_refused(file: bytes) -> None:
    for count in range(1, 9):
        for added in (b"\0", b"\xff", b"x"):
            with pytest.raises(StreamError):
                unpack(file + added * count)


def test_a_zero_byte_at_the_end_is_refused_whatever_the_checksum() -> None:
    with pytest.raises(StreamError, match="zero byte"):
        unpack(with_checksum(FILES[0] + b"\0"))
    with pytest.raises(StreamError, match="zero byte"):
        unpack(FILES[0][9:] + b"\0", bare=True)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.booleans(), st.booleans(), st.booleans())
def test_random_bytes_are_a_stream_or_a_stream_error(
    data: bytes, bare: bool, cut: bool, framed: bool
) -> None:
    if framed:
        data = with_checksum(b"\x50\xc0\x01" + FINGERPRINT + b"\0\0" + data)
    try:
        stream = unpack(data, bare=bare, cut=cut)
    except StreamError:
        return
    # Only canonical streams are read; but a caption may be coded in more than one way.
    if not cut and not stream.header.caption:
        assert pack(stream.header, stream.tokens, stream.fingerprint) == data


def test_a_cut_stream_is_read_on_demand() -> None:
    cut = FILES[2][:-3]
    with pytest.raises(StreamError, match="cut or corrupted"):
        unpack(cut)
    stream = unpack(cut, cut=True)
    assert stream.tokens == TOKENS[:-3]
    assert stream.checksum_ok is False
    assert stream.header == GOLDEN[2][0]
    assert unpack(FILES[2], cut=True).checksum_ok is True
    assert unpack(FILES[0][:-7] + b"\0", cut=True).tokens == TOKENS[:1] + b"\0"
    for length in range(9 + 4 + 9 + 4):
        with pytest.raises(StreamError):
            unpack(FILES[2][:length], cut=True)


def bare(size: int, rest: bytes = b"") -> bytes:
    return size.to_bytes(4, "big") + rest


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "size of the image"),
        (bare(4), "reserved flags"),
        (bare(8), "reserved flags"),
        (bare(1), "options"),
        (bare(1, b"\0"), "empty option block"),
        (bare(1, b"\x20"), "reserved option bits"),
        (bare(1, b"\x01\x07"), "schedule id"),
        (bare(1, b"\x03\x01\x03"), "passes sent"),
        (bare(1, b"\x02\x00"), "passes sent"),
        (bare(1, b"\x04\x00\x00\x00"), "seed"),
        (bare(1, b"\x08\x00"), "steps"),
        (bare(1, b"\x10"), "guidance"),
        (bare(2), "caption"),
        (bare(2, b"\x00"), "empty caption"),
        (bare(2, b"\xc0"), "method"),
        (bare(0, b"\x01" * 6), "bytes of tokens"),
    ],
)
def test_broken_rules_are_named(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        unpack(data, bare=True)
    with pytest.raises(StreamError, match=message):
        unpack(with_checksum(b"\x50\xc0\x01" + FINGERPRINT + b"\0\0" + data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x89PNG\r\n\x1a\n", "got PNG; is it the right file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "got Git LFS pointer; .* lfs pull"),
        (b"\x89PN", "beginning with 50 c0; got 89 50"),
        (b"", "nothing"),
        (b"\x50\xc0", "version"),
        (b"\x50\xc0\x02" + FILES[0][3:], "newer percoedge"),
        (FILES[0][:8], "checksum"),
    ],
)
def test_other_files_are_named(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        unpack(data)


def test_limits_come_before_allocation() -> None:
    largest = bare((MAX_SIDE - 1) << 18 | (MAX_SIDE - 1) << 4, TOKENS)
    too_long = bytes(MAX_STREAM_BYTES + 1)
    tracemalloc.start()
    try:
        assert unpack(largest, bare=True).header == Header(MAX_SIDE, MAX_SIDE)
        with pytest.raises(StreamError, match="at most"):
            unpack(too_long, bare=True)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 65535, "height": 65535},
        {"height": MAX_SIDE + 1},
        {"width": 1.0},
        {"schedule": "spiral"},
        {"passes_sent": 0},
        {"schedule": "qlds-8", "passes_sent": 9},
        {"seed": -1},
        {"seed": 2**32},
        {"steps": 0},
        {"steps": True},
        {"guidance": 16.0},
        {"guidance": 0.1},
        {"guidance": float("nan")},
        {"caption": "x" * 1025},
    ],
)
def test_headers_out_of_their_domain_are_refused(change: dict[str, object]) -> None:
    header = dataclasses.replace(Header(512, 512), **change)  # type: ignore[arg-type]
    with pytest.raises(UsageError):
        pack(header, TOKENS, FINGERPRINT)


def test_other_wrong_arguments_are_refused() -> None:
    with pytest.raises(UsageError, match="4 bytes"):
        pack(Header(1, 1), b"", bytes(32))
    with pytest.raises(UsageError, match="zero byte"):
        pack(Header(512, 512), b"\x01\0", None)
    with pytest.raises(UsageError, match="at most 5 bytes"):
        pack(Header(8, 8), b"\x01" * 6, None)
