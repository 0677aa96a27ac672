"""The streams of CoD-Lite's authors, byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percoedge.bitstream.cod import pack_cod, unpack_cod
from percoedge.errors import StreamError, UsageError

# Made by the published pack_bits and write_cod_file (GenCodec, commit c49eb0d).
FROZEN = {
    (16, 4): (b"\x30\x00\x10\x00" + b"\x1a\xf0", [[1, 10, 15]]),
    (8, 8): (b"\x10\x00\x10\x00" + b"\x00\xff\x80\x01", [[0, 255], [128, 1]]),
    (32, 3): (b"\x60\x00\x20\x00" + b"\xbd\x00", [[5, 7, 2]]),
}


@pytest.mark.parametrize(("stride", "bits"), FROZEN)
def test_tokens_lie_in_the_bits_as_published(stride: int, bits: int) -> None:
    data, rows = FROZEN[stride, bits]
    tokens = np.array(rows, np.int32)
    width, height, read = unpack_cod(data, stride, bits)
    assert (width, height) == (tokens.shape[1] * stride, tokens.shape[0] * stride)
    np.testing.assert_array_equal(read, tokens)
    assert read.dtype == np.int32
    assert pack_cod(tokens, stride, bits) == data


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 16), st.randoms())
def test_any_tokens_come_back(rows: int, columns: int, bits: int, random: object) -> None:
    seed = random.getrandbits(32)  # type: ignore[attr-defined]
    tokens = np.random.default_rng(seed).integers(0, 1 << bits, (rows, columns)).astype(np.int32)
    data = pack_cod(tokens, 16, bits)
    assert len(data) == 4 + -(-rows * columns * bits // 8)
    width, height, read = unpack_cod(data, 16, bits)
    assert (width, height) == (16 * columns, 16 * rows)
    np.testing.assert_array_equal(read, tokens)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected 4 bytes of width and height, got 0"),
        (b"\x10\x00\x10", "got 3"),
        (b"\x10\x00\x10\x00", "has 5 bytes at 16x16, got 4"),
        (b"\x10\x00\x10\x00\x01\x02", "has 5 bytes at 16x16, got 6"),
        (b"\x11\x00\x10\x00\x01", "at 17x16"),
        (b"\x00\x00\x10\x00", "at 0x16"),
        (b"\xf0\xff\xf0\xff\x01", "at 65520x65520, got 5"),
    ],
)
def test_a_stream_of_another_length_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(StreamError, match=message):
        unpack_cod(data, 16, 8)


def test_no_side_is_beyond_16_bits() -> None:
    with pytest.raises(UsageError, match="at most 65535 pixels"):
        pack_cod(np.zeros((1, 4096), np.int32), 16, 8)
