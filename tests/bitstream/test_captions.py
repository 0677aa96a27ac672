"""Captions: exact round trips, frozen bytes, sizes on unseen English, hostile bytes."""

from __future__ import annotations

import hashlib
import zlib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from percoedge.bitstream import captions as captions_module
from percoedge.bitstream.captions import MAX_CAPTION_BYTES, pack_caption, unpack_caption
from percoedge.bitstream.rangecoder import TokenEncoder
from percoedge.bitstream.tables.build import build_tables
from percoedge.errors import StreamError, UsageError

UNSEEN = Path(__file__).with_name("captions_unseen.txt").read_text(encoding="utf-8").splitlines()
FOLDER = Path(captions_module.__file__).parent / "tables"
RAW, DEFLATE, MODEL = 0x00, 0x40, 0x80

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300).filter(
    lambda text: len(text.encode()) <= MAX_CAPTION_BYTES
)


def head_of(method: int, length: int) -> bytes:
    """Section 5.1 of FORMAT.md; at most 1083 bytes."""
    if length < 60:
        return bytes([method | length])
    return bytes([method | 60 + ((length - 60) >> 8), (length - 60) & 0xFF])


def test_tables_are_frozen_and_built_from_the_text() -> None:
    tables = (FOLDER / "caption_tables.bin").read_bytes()
    assert hashlib.sha256(tables).hexdigest() == (
        "2492432595dfdaf0eb97a37ee4f0e6d26cd98a818afc7af4a40afee8366bcbd3"
    )
    assert tables == build_tables((FOLDER / "caption_text.txt").read_text(encoding="utf-8"))
    assert len(tables) < 150_000


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("", "00"),
        ("a dog", "83e9ad18"),
        ("A red door with a window and a brick wall.", "897b81bacce86b66bb59"),
        (
            "Ein Hund läuft über die Straße.",
            "9bc6a29b835d6ff3218ea63848c2f2fab5f5a3c951ad3e5d424fd50d",
        ),
        ("猫", "03e78cab"),
    ],
)
def test_bytes_are_frozen(text: str, packed: str) -> None:
    assert pack_caption(text).hex() == packed
    assert unpack_caption(bytes.fromhex(packed)) == (text, len(packed) // 2)


def test_frozen_deflate_bytes_are_read() -> None:
    """Read only: another version of zlib may write others."""
    packed = bytes.fromhex("4a4b4c4a5618c583070300")
    assert unpack_caption(packed) == ("abc " * 100, len(packed))
    assert len(pack_caption("abc " * 100)) <= len(packed)


def test_unseen_english_takes_half_of_zlib() -> None:
    seen = set((FOLDER / "caption_text.txt").read_text(encoding="utf-8").splitlines())
    assert not seen & set(UNSEEN)
    packed = sum(len(pack_caption(text)) for text in UNSEEN)
    compressed = sum(len(zlib.compress(text.encode(), 9)) for text in UNSEEN)
    assert packed <= 0.33 * compressed
    assert all(
        len(pack_caption(text)) <= 0.5 * len(zlib.compress(text.encode(), 9)) for text in UNSEEN
    )


@pytest.mark.parametrize(
    "text",
    [
        "Кошка сидит на окне и смотрит на птиц.",
        "一只猫坐在桌子上，看着窗外的鸟。",
        "قطة تجلس على النافذة",
        "窓辺に座って鳥を見ている猫",
        "बिल्ली खिड़की पर बैठी है",
        "👩‍👩‍👧‍👦 e\u0301 é \ufeff \x00 \x7f \u202e",
        "\0",
        "x" * MAX_CAPTION_BYTES,
        "\U0010ffff" * (MAX_CAPTION_BYTES // 4),
    ],
)
def test_any_script_survives(text: str) -> None:
    packed = pack_caption(text)
    assert unpack_caption(packed) == (text, len(packed))
    assert len(packed) <= len(text.encode()) + 2


@settings(max_examples=200, deadline=None)
@example(text="", behind=b"")
@given(text=texts, behind=st.binary(max_size=8))
def test_round_trip_tells_its_own_length(text: str, behind: bytes) -> None:
    packed = pack_caption(text)
    assert unpack_caption(packed + behind) == (text, len(packed))


@pytest.mark.parametrize("length", [59, 60, 61, 315, 316, 1023, 1024])
def test_lengths_around_the_edges_of_the_head(length: int) -> None:
    text = "".join(chr(0x21 + (i * i * 7919 + i // 7) % 93) for i in range(length))
    head = head_of(RAW, length)
    assert len(head) == (1 if length < 60 else 2)
    assert unpack_caption(head + text.encode()) == (text, len(head) + length)
    assert unpack_caption(pack_caption(text))[0] == text


@settings(max_examples=100, deadline=None)
@given(texts)
def test_every_truncation_is_refused(text: str) -> None:
    packed = pack_caption(text)
    for length in range(len(packed)):
        with pytest.raises(StreamError, match="cut"):
            unpack_caption(packed[:length])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80))
def test_random_bytes_are_a_caption_or_a_stream_error(data: bytes) -> None:
    try:
        text, taken = unpack_caption(data)
    except StreamError:
        return
    assert taken <= len(data)
    assert len(text.encode()) <= MAX_CAPTION_BYTES


def deflate(raw: bytes) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(raw) + coder.flush()


def test_a_deflate_bomb_is_refused() -> None:
    bomb = deflate(bytes(900_000))
    with pytest.raises(StreamError, match="at most 1024"):
        unpack_caption(head_of(DEFLATE, len(bomb)) + bomb)


def test_a_model_caption_without_end_is_refused() -> None:
    encoder = TokenEncoder()
    context, symbol = b"\0\0\0", ord("a")
    for _ in range(MAX_CAPTION_BYTES + 1):
        encoder.encode([symbol], captions_module._weights(context)[None])
        context = context[1:] + bytes([symbol])
    coded = encoder.finish()
    with pytest.raises(StreamError, match="at most 1024"):
        unpack_caption(head_of(MODEL, len(coded)) + coded)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut"),
        (b"\x3f", "cut"),
        (b"\xc1\x00", "method"),
        (b"\x02\xc3\x28", "UTF-8"),
        (b"\x03\xed\xa0\x80", "UTF-8"),
        (bytes([DEFLATE | 3]) + b"\xff\xff\xff", "deflate"),
        (bytes([DEFLATE]), "deflate"),
        (bytes([DEFLATE | 12]) + deflate(b"abc").ljust(12, b"\0"), "deflate"),
        (b"\x3f\xff" + b"x" * 1083, "at most 1024"),
    ],
)
def test_broken_rules_are_named(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        unpack_caption(data)


def test_captions_that_cannot_be_coded() -> None:
    with pytest.raises(UsageError, match="1025"):
        pack_caption("x" * 1025)
    with pytest.raises(UsageError, match="surrogate"):
        pack_caption("ab\ud800")


@settings(max_examples=50, deadline=None)
@given(st.binary(min_size=3, max_size=3))
def test_weights_are_in_the_domain_of_the_range_coder(context: bytes) -> None:
    weights = captions_module._weights(context)
    assert weights.shape == (256,)
    assert weights.min() >= 1
    assert weights.max() <= 65536
