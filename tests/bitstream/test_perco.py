"""The pickled streams of PerCo (SD)'s authors: their bytes, and what is refused."""

from __future__ import annotations

import os
import pickle
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percoedge.bitstream.perco import pack_perco, unpack_perco
from percoedge.errors import StreamError

CAPTION = "a red barn"
# Made by the published functions (PerCo, commit da3be39) with torchac 0.9.3 on Python 3.11, of that
# caption, by stride and bits.
FROZEN = {
    (16, 8): (
        "8004955d000000000000007d94284b0043218004951600000000000000431278da4b54284a4d51484a2cca0300"
        "123c0380942e944b0143168004950b00000000000000430771b7acfd21fe40942e944b02431280049507000000"
        "000000004b204b3086942e94752e",
        [[113, 183, 172], [253, 33, 254]],
    ),
    (16, 6): (
        "80049562000000000000007d94284b0043218004951600000000000000431278da4b54284a4d51484a2cca0300"
        "123c0380942e944b01431b8004951000000000000000430c83cde13c40948b6e8577fc10942e944b0243128004"
        "9507000000000000004b304b5086942e94752e",
        [[32, 60, 55, 33, 15], [4, 2, 20, 34, 54], [58, 5, 29, 63, 48]],
    ),
    (16, 10): (
        "8004955c000000000000007d94284b0043218004951600000000000000431278da4b54284a4d51484a2cca0300"
        "123c0380942e944b0143158004950a0000000000000043068f14ae0d0840942e944b0243128004950700000000"
        "0000004b204b2086942e94752e",
        [[572, 330], [899, 264]],
    ),
}


@pytest.mark.parametrize(("stride", "bits"), FROZEN)
def test_streams_are_those_of_the_authors(stride: int, bits: int) -> None:
    text, rows = FROZEN[stride, bits]
    data, tokens = bytes.fromhex(text), np.array(rows, np.int32)
    width, height, caption, read = unpack_perco(data, stride, bits)
    assert (width, height) == (tokens.shape[1] * stride, tokens.shape[0] * stride)
    assert caption == CAPTION
    np.testing.assert_array_equal(read, tokens)
    assert read.dtype == np.int32
    assert pack_perco(tokens, stride, bits, caption) == data


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 13),
    st.integers(0, 1 << 32),
    st.text(max_size=40),
    st.integers(2, pickle.HIGHEST_PROTOCOL),
)
def test_any_tokens_come_back(
    rows: int, columns: int, bits: int, seed: int, caption: str, protocol: int
) -> None:
    tokens = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns)).astype(np.int32)
    caption = caption.encode("utf-8", "ignore").decode("utf-8")
    data = pack_perco(tokens, 64, bits, caption)
    if protocol > 2:  # whose bytes are made by a call
        parts = {k: pickle.dumps(pickle.loads(v), protocol) for k, v in pickle.loads(data).items()}
        data = pickle.dumps(parts, protocol)
    width, height, read_caption, read = unpack_perco(data, 64, bits)
    assert (width, height, read_caption) == (64 * columns, 64 * rows, caption)
    np.testing.assert_array_equal(read, tokens)


@given(st.binary(max_size=200))
def test_no_bytes_do_harm(data: bytes) -> None:
    for whole in (data, b"\x80\x04" + data, b"\x80\x04}" + data + b"."):
        with pytest.raises(StreamError):
            unpack_perco(whole, 16, 8)


@given(st.data())
def test_damage_is_refused_or_gives_tokens_of_the_codebook(data: Any) -> None:
    whole = bytearray.fromhex(FROZEN[16, 8][0])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    try:
        _, _, caption, tokens = unpack_perco(bytes(whole), 16, 8)
    except StreamError:
        return
    assert len(caption.encode()) <= 1024
    assert ((tokens >= 0) & (tokens < 256)).all()


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def stream(**parts: Any) -> bytes:
    """A stream of 2x3 tokens of 16 pixels and 8 bits, some of its parts replaced."""
    made = {
        "caption": zlib.compress(CAPTION.encode(), 9),
        "tokens": bytes([1, 2, 3, 4, 5, 6, 0x40]),
        "size": (32, 48),
        **parts,
    }
    return pickle.dumps({n: pickle.dumps(part) for n, part in enumerate(made.values())})


BOMB = zlib.compress(b"a" * 10_000_000, 9)
HOSTILE = {
    "call": (pickle.dumps(_Call(os.system, "true")), "got GLOBAL|got STACK_GLOBAL|got SHORT_BINUN"),
    "call inside": (stream(tokens=_Call(os.getcwd)), "got SHORT_BINUNICODE"),
    "call of a size": (stream(size=(_Call(os.getcwd), 3)), "got SHORT_BINUNICODE"),
    "global": (b"cos\nsystem\n(S'true'\ntR.", "got GLOBAL"),
    "instance": (b"(S'true'\nios\nsystem\n.", "got STRING|got INST"),
    "extension": (b"\x80\x02\x82\x01.", "got EXT1"),
    "elsewhere": (b"Pname\n.", "got PERSID"),
    "memo of gigabytes": (b"\x80\x04}r\xff\xff\xff\x7f.", "got LONG_BINPUT"),
    "integer without end": (b"I" + b"9" * 5000 + b"\n.", "expected a pickle|got INT"),
    "depth": (b"\x80\x04K\x01" + b"\x85" * 1000 + b".", "got TUPLE1"),
    "many instructions": (b"\x80\x04" + b"K\x01" * 1000 + b".", "of 64 instructions at most"),
    "length beyond the end": (b"\x80\x04B\xff\xff\xff\x7fab.", "expected a pickle"),
    "value of another type": (
        b"}\x95\5" + bytes(7) + b"K\0J\0\0\0\xffC\1ah\0(.",
        "expected a pickle",
    ),
    "unhashable key": (b"\x80\x04}}K\x01s.", "expected a pickle"),
    "bytes behind it": (stream() + b"\x00", "expected a pickle of"),
    "nothing": (b"", "expected a pickle"),
    "too long": (bytes(17 << 20), "expected at most"),
    "list": (pickle.dumps([1, 2, 3]), "got EMPTY_LIST"),
    "other keys": (pickle.dumps({0: b"", 2: b"", 1: b""}), "expected a pickle of {0: caption"),
    "tuple of parts": (pickle.dumps((b"", b"")), "expected a pickle of {0: caption"),
    "size of bytes": (stream(size=b"ab"), "expected height and width"),
    "size of three": (stream(size=(1, 2, 3)), "got TUPLE3"),
    "size of nothing": (stream(size=(0, 16)), "expected height and width"),
    "size too large": (stream(size=(1 << 20, 16)), "expected height and width"),
    "size of parts of tokens": (stream(size=(33, 48)), "give the bundle of its rate"),
    "size of other tokens": (stream(size=(32, 64)), "give the bundle of its rate"),
    "tokens of integers": (stream(tokens=(1, 2)), "expected bytes in the pickle, got tuple"),
    "other end": (stream(tokens=bytes([1, 2, 3, 4, 5, 6, 0x80])), "give the bundle of its rate"),
    "more behind": (stream(tokens=bytes([1, 2, 3, 4, 5, 6, 0x41])), "give the bundle of its rate"),
    "caption of gigabytes": (stream(caption=BOMB), "at most 1024 bytes"),
    "caption without end": (stream(caption=zlib.compress(b"abc")[:-2]), "or a part of one"),
    "caption and more": (stream(caption=zlib.compress(b"abc") + b"x"), "or a part of one"),
    "no zlib": (stream(caption=b"abc"), "by zlib"),
    "no UTF-8": (stream(caption=zlib.compress(b"\xff")), "in UTF-8"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_stream_is_refused(name: str) -> None:
    data, message = HOSTILE[name]
    with pytest.raises(StreamError, match=message):
        unpack_perco(data, 16, 8)


def test_a_stream_is_none_but_with_every_part() -> None:
    assert unpack_perco(stream(), 16, 8)[3].tolist() == [[1, 2, 3], [4, 5, 6]]
    for bits in (4, 7, 9):
        with pytest.raises(StreamError, match="of its rate"):
            unpack_perco(stream(), 16, bits)
