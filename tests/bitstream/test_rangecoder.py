"""Range coder: frozen bytes, shortest end, cut streams, a decoder written from FORMAT.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from percoedge.bitstream.rangecoder import CutDecoder, TokenDecoder, TokenEncoder
from percoedge.errors import StreamError, UsageError

Case = tuple[NDArray[np.int64], NDArray[np.int32]]

MASK_64 = 2**64 - 1


def make_case(seed: int, count: int, n_symbols: int, *, likely: bool = True) -> Case:
    """Symbols `(P,)` and weights `(P, K)`; drawn by the weights, or all alike."""
    rng = np.random.default_rng(seed)
    octaves = rng.random((count, n_symbols)) * 16 * rng.random()
    weights = np.maximum(1, 65536 * 2.0**-octaves).astype(np.int32)
    if not likely:
        return rng.integers(0, n_symbols, count), weights
    cumulative = weights.cumsum(1)
    point = rng.random((count, 1)) * cumulative[:, -1:]
    return (cumulative <= point).sum(1).astype(np.int64), weights


def ideal_bits(symbols: NDArray[Any], weights: NDArray[Any]) -> NDArray[np.float64]:
    chances = weights[np.arange(len(symbols)), symbols] / weights.sum(1)
    return np.asarray(-np.log2(chances))


def encode(*parts: Case) -> bytes:
    encoder = TokenEncoder()
    for symbols, weights in parts:
        encoder.encode(symbols, weights)
    return encoder.finish()


def decode_by_the_book(data: bytes, weights: NDArray[Any]) -> list[int]:
    """Sections 7.1 and 7.2 of FORMAT.md, word for word."""
    position = 0

    def word() -> int:
        nonlocal position
        position += 4
        return int.from_bytes((data[position - 4 : position] + bytes(4))[:4], "big")

    lower, size = 0, MASK_64
    point = word() << 32
    point += word()
    symbols = []
    for row in weights.tolist():
        scale = float(2**24 - len(row)) / float(sum(row))
        below = [0, *np.cumsum(row).tolist()]
        cum = [int(below[s] * scale) + s for s in range(len(row))] + [2**24]
        step = size >> 24
        q = ((point - lower) & MASK_64) // step
        if q >= 2**24:
            raise ValueError("refused")
        s = max(s for s in range(len(row)) if cum[s] <= q)
        symbols.append(s)
        lower = (lower + step * cum[s]) & MASK_64
        size = step * (cum[s + 1] - cum[s])
        if size < 2**32:
            lower, size = (lower << 32) & MASK_64, size << 32
            point = ((point << 32) & MASK_64) + word()
    return symbols


cases = st.builds(
    make_case,
    st.integers(0, 2**32),
    st.integers(0, 60),
    st.integers(2, 40),
    likely=st.booleans(),
)


def test_bytes_are_frozen() -> None:
    weights = (np.arange(60).reshape(12, 5) * 7919 % 65536 + 1).astype(np.int32)
    assert encode((np.array([0, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4]), weights)).hex() == (
        "0000d1e6a80296"
    )
    shared = np.array([1, 3, 65536, 17], np.int32)
    symbols = np.array([2] * 40 + [0, 1, 3] + [2] * 9)
    assert encode((symbols, shared)).hex() == "009f28d1460e"


def test_example_of_the_specification() -> None:
    weights = np.array([[1, 2, 1], [3, 1, 1], [5, 5, 6]])
    assert encode((np.array([1, 0, 2]), weights)) == b"\x70"


@settings(max_examples=150, deadline=None)
@given(cases, cases)
def test_round_trip_in_two_passes(first: Case, second: Case) -> None:
    data = encode(first, second)
    decoder = TokenDecoder(data)
    for symbols, weights in (first, second):
        decoded = decoder.decode(weights)
        assert decoded.dtype == np.int32
        assert decoded.tolist() == symbols.tolist()
    assert data[-1:] != b"\0"


@settings(max_examples=100, deadline=None)
@given(cases)
def test_a_decoder_written_from_the_specification_agrees(case: Case) -> None:
    symbols, weights = case
    assert decode_by_the_book(encode(case), weights) == symbols.tolist()


@settings(max_examples=60, deadline=None)
@given(cases)
def test_no_shorter_bytes_decode(case: Case) -> None:
    symbols, weights = case
    data = encode(case)
    kept = int.from_bytes(data[:-1], "big")
    for value in (kept, kept + 1):
        if data and value < 256 ** (len(data) - 1):
            shorter = value.to_bytes(len(data) - 1, "big")
            try:
                decoded = TokenDecoder(shorter).decode(weights)
            except StreamError:
                continue
            assert decoded.tolist() != symbols.tolist()


def test_a_shared_table_is_the_same_as_equal_rows() -> None:
    shared = np.array([5, 1, 65536, 900], np.int32)
    symbols = np.array([2, 2, 0, 3, 1, 2] * 20)
    rows = np.broadcast_to(shared, (len(symbols), 4))
    data = encode((symbols, shared))
    assert data == encode((symbols, rows))
    assert TokenDecoder(data).decode(shared, len(symbols)).tolist() == symbols.tolist()
    assert TokenDecoder(data).decode(rows).tolist() == symbols.tolist()


def test_the_memory_layout_of_the_arrays_does_not_matter() -> None:
    symbols, weights = make_case(5, 20, 9)
    data = encode((symbols, weights))
    spread = np.zeros((40, 18), np.int32)
    spread[::2, ::2] = weights
    for same in (np.asfortranarray(weights), spread[::2, ::2], weights[::-1, ::-1][::-1, ::-1]):
        assert encode((symbols.repeat(2)[::2], same)) == data
        assert TokenDecoder(data).decode(same).tolist() == symbols.tolist()


def test_a_carry_through_many_words() -> None:
    """Symbols in the middle of the interval keep its first digits open as long as possible."""
    weights = np.tile(np.array([[1, 1, 1]], np.int32), (400, 1))
    for symbols in (np.full(400, 1), np.append(np.full(399, 1), 2), np.append(np.full(399, 1), 0)):
        data = encode((symbols, weights))
        assert TokenDecoder(data).decode(weights).tolist() == symbols.tolist()
        assert decode_by_the_book(data, weights) == symbols.tolist()


def test_nothing_is_no_bytes() -> None:
    assert TokenEncoder().finish() == b""
    assert encode((np.zeros(0, np.int32), np.zeros((0, 7), np.int32))) == b""
    assert TokenDecoder(b"").decode(np.zeros((0, 7), np.int32)).shape == (0,)


def test_certain_symbols_are_free() -> None:
    weights = np.ones((64, 256), np.int32)
    weights[:, 0] = 65536
    assert encode((np.zeros(64, np.int32), weights)) == b""


def test_overhead_over_the_ideal_code_length() -> None:
    overheads = []
    for seed in range(300):
        case = make_case(seed, 10 + seed % 150, 1024 if seed % 3 == 0 else 64)
        overheads.append(len(encode(case)) - ideal_bits(*case).sum() / 8)
    assert np.mean(overheads) < 0.5
    assert np.max(overheads) < 1


def test_encoding_goes_on_after_finish() -> None:
    first, second = make_case(1, 30, 20), make_case(2, 30, 20)
    encoder = TokenEncoder()
    encoder.encode(*first)
    assert encoder.finish() == encode(first)
    encoder.encode(*second)
    assert encoder.finish() == encode(first, second)


@pytest.mark.parametrize("seed", range(25))
def test_what_a_cut_stream_says_is_certain_is_right(seed: int) -> None:
    first = make_case(seed, 1 + seed, 30)
    second = make_case(1000 + seed, 40, 2 + 40 * seed)
    data = encode(first, second)
    symbols = np.concatenate([first[0], second[0]])
    bits = np.concatenate([ideal_bits(*first), ideal_bits(*second)]).cumsum()
    for kept in range(len(data) + 1):
        decoder = CutDecoder(data[:kept])
        found: list[int] = []
        for part, weights in (first, second):
            decoded, n_certain = decoder.decode(weights)
            assert decoded.dtype == np.int32
            assert (decoded[n_certain:] == weights.shape[1]).all()
            found += decoded[:n_certain].tolist()
            assert decoder.exhausted == (n_certain < len(part))
            if decoder.exhausted:
                break
        assert found == symbols[: len(found)].tolist()
        # A symbol stays unsettled only if its interval straddles an edge of the last byte kept;
        # more than 5 bytes back that would be a chance of 2**-40.
        assert len(found) >= (bits < 8 * (kept - 5)).sum()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=24), cases, st.data())
def test_cut_decoding_of_any_bytes(prefix: bytes, case: Case, data: st.DataObject) -> None:
    """Whatever follows the bytes left, every continuation has the certain symbols."""
    _, weights = case
    try:
        symbols, n_certain = CutDecoder(prefix).decode(weights)
    except StreamError:
        with pytest.raises(StreamError):
            TokenDecoder(prefix).decode(weights)
        return
    for _ in range(4):
        suffix = data.draw(st.binary(max_size=12) | st.just(b"\xff" * 12))
        try:
            decoded = TokenDecoder(prefix + suffix).decode(weights)
        except StreamError:
            continue
        assert decoded[:n_certain].tolist() == symbols[:n_certain].tolist()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40), cases)
def test_random_bytes_decode_or_raise_stream_error(data: bytes, case: Case) -> None:
    _, weights = case
    try:
        decoded = TokenDecoder(data).decode(weights)
    except StreamError:
        with pytest.raises(ValueError, match="refused"):
            decode_by_the_book(data, weights)
        return
    assert decoded.tolist() == decode_by_the_book(data, weights)


def test_an_impossible_point_is_refused() -> None:
    weights = np.ones((3, 5), np.int32)
    with pytest.raises(StreamError, match="another bundle"):
        TokenDecoder(b"\xff" * 16).decode(weights)
    with pytest.raises(StreamError, match="another bundle"):
        CutDecoder(b"\xff" * 16).decode(weights)


@pytest.mark.parametrize(
    "weights",
    [
        np.ones((3, 1), np.int32),
        np.ones((3, 4)),
        np.zeros((3, 4), np.int32),
        np.full((3, 4), 65537),
        np.ones((2, 4), np.int32),
        np.ones((1, 3, 4), np.int32),
    ],
)
def test_wrong_weights_are_refused(weights: NDArray[Any]) -> None:
    with pytest.raises(UsageError):
        TokenEncoder().encode(np.zeros(3, np.int32), weights)


def test_wrong_symbols_are_refused() -> None:
    weights = np.ones((2, 4), np.int32)
    for symbols in ([0, 4], [-1, 0], [0.0, 1.0], [[0], [1]]):
        with pytest.raises(UsageError):
            TokenEncoder().encode(np.array(symbols), weights)


def test_count_goes_with_a_shared_table_only() -> None:
    with pytest.raises(UsageError, match="count"):
        TokenDecoder(b"").decode(np.ones(4, np.int32))
    with pytest.raises(UsageError, match="count"):
        TokenDecoder(b"").decode(np.ones((2, 4), np.int32), 2)
    with pytest.raises(UsageError, match="shape"):
        CutDecoder(b"").decode(np.ones(4, np.int32))
