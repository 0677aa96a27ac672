"""The range coder without constriction: the same words, symbols and errors, bit for bit."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from percoedge.bitstream.rangecoder import (
    DEFAULT,
    PURE,
    Coder,
    CutDecoder,
    TokenDecoder,
    TokenEncoder,
)
from percoedge.errors import StreamError

ROOT = Path(__file__).parents[2]

Pass = tuple[NDArray[np.int32], NDArray[np.float64]]
"""Symbols `(P,)` and weights `(P, K)`, or `(K,)` for all."""

needs_constriction = pytest.mark.skipif(DEFAULT is PURE, reason="constriction is not installed")


def make_pass(seed: int, count: int, n_symbols: int, kind: str) -> Pass:
    rng = np.random.default_rng(seed)
    shape = (n_symbols,) if kind == "shared" else (count, n_symbols)
    octaves = rng.random(shape) * 16 * rng.random()
    weights = np.floor(np.maximum(65536 * 2.0**-octaves, 1))
    if kind == "zeros":
        weights[weights < 2] = 0
    elif kind == "extreme":
        weights = np.where(rng.random(shape) < rng.random(), 1.0, 65536.0)
    symbols = rng.integers(0, n_symbols, count).astype(np.int32)
    if kind == "likely":
        symbols = weights.argmax(-1).astype(np.int32)
    elif kind == "last":
        symbols = np.full(count, n_symbols - 1, np.int32)
    elif kind == "fortran":
        weights = np.asfortranarray(weights)
    return symbols, weights


passes = st.lists(
    st.builds(
        make_pass,
        st.integers(0, 2**32),
        st.integers(1, 50),
        st.integers(2, 80) | st.sampled_from([127, 128, 129, 1000, 1023, 1024, 1025, 5000]),
        st.sampled_from(["plain", "likely", "last", "shared", "extreme", "fortran", "zeros"]),
    ),
    min_size=1,
    max_size=8,
)


def model(coder: Coder, weights: NDArray[np.float64]) -> tuple[Any, ...]:
    if coder is not PURE:
        weights = np.ascontiguousarray(weights)
    if weights.ndim == 1:
        return (coder.categorical(weights, perfect=False),)
    return coder.categorical(perfect=False), weights


def encode(coder: Coder, *parts: Pass) -> Any:
    encoder = coder.encoder()
    for symbols, weights in parts:
        encoder.encode(symbols, *model(coder, weights))
    return encoder


def decode(decoder: Any, coder: Coder, part: Pass) -> list[int]:
    """The symbols of a pass; -1 stands for the error at an invalid point."""
    symbols, weights = part
    count = (len(symbols),) if weights.ndim == 1 else ()
    try:
        found: list[int] = decoder.decode(*model(coder, weights), *count).tolist()
    except AssertionError as error:
        assert "invalid for the employed entropy model" in str(error)
        return [-1]
    return found


def straddling(seed: int, count: int) -> Pass:
    """Symbols whose interval keeps 1/2 inside, so that the first digit stays open to the end."""
    _, weights = make_pass(seed, count, 5, "plain")
    symbols = TokenDecoder(b"\x80", PURE).decode(weights.astype(np.int32))
    return symbols, weights


@needs_constriction
@settings(max_examples=200, deadline=None)
@given(passes)
def test_the_words_of_constriction(parts: list[Pass]) -> None:
    encoders = [coder.encoder() for coder in (DEFAULT, PURE)]
    for symbols, weights in parts:
        for encoder, coder in zip(encoders, (DEFAULT, PURE), strict=True):
            encoder.encode(symbols, *model(coder, weights))
        theirs, ours = encoders
        assert ours.pos() == theirs.pos()
        assert ours.get_compressed().dtype == np.uint32
        assert ours.get_compressed().tolist() == theirs.get_compressed().tolist()
    decoder = PURE.decoder(theirs.get_compressed())
    for part in parts:
        assert decode(decoder, PURE, part) == part[0].tolist()
    decoder = DEFAULT.decoder(ours.get_compressed())
    for part in parts:
        assert decode(decoder, DEFAULT, part) == part[0].tolist()


@needs_constriction
@settings(max_examples=200, deadline=None)
@given(passes, st.data())
def test_the_symbols_and_errors_of_constriction_on_damaged_words(
    parts: list[Pass], data: st.DataObject
) -> None:
    words = encode(PURE, *parts).get_compressed()
    for place in data.draw(st.lists(st.integers(0, max(0, len(words) - 1)), max_size=3)):
        words[place : place + 1] = data.draw(st.integers(0, 2**32 - 1) | st.just(2**32 - 1))
    words = words[: data.draw(st.integers(0, len(words)))]
    theirs, ours = DEFAULT.decoder(words), PURE.decoder(words)
    for part in parts:  # goes on after an error: both have consumed the same symbols
        expected = decode(theirs, DEFAULT, part)
        assert decode(ours.clone(), PURE, part) == expected
        assert decode(ours, PURE, part) == expected


@needs_constriction
@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1) | st.just(2**32 - 1), max_size=6), passes)
def test_the_symbols_and_errors_of_constriction_on_any_words(
    digits: list[int], parts: list[Pass]
) -> None:
    words = np.array(digits, np.uint32)
    theirs, ours = DEFAULT.decoder(words), PURE.decoder(words)
    for part in parts:
        assert decode(ours, PURE, part) == decode(theirs, DEFAULT, part)


@needs_constriction
@pytest.mark.parametrize("seed", range(6))
def test_long_carries(seed: int) -> None:
    part = straddling(seed, 800)
    ends = []
    for last in (0, 1):
        # Weights that cut the interval close to its ends, so that 1/2 is in neither half.
        for weights in (np.array([[1.0, 2e7]]), np.array([[2e7, 1.0]])):
            parts = (part, (np.array([last], np.int32), weights))
            theirs, ours = encode(DEFAULT, *parts), encode(PURE, *parts)
            assert ours.pos() == theirs.pos()
            words = ours.get_compressed().tolist()
            assert words == theirs.get_compressed().tolist()
            ends.append(words[:20])
            assert decode(PURE.decoder(ours.get_compressed()), PURE, part) == part[0].tolist()
    assert [2**31 - 1, *[2**32 - 1] * 19] in ends
    assert [2**31, *[0] * 19] in ends


@needs_constriction
def test_the_words_while_a_carry_is_open() -> None:
    """Rounding up to whole words may be what settles the carry."""
    symbols, weights = straddling(7, 300)
    theirs, ours = DEFAULT.encoder(), PURE.encoder()
    n_settled = 0
    for row in range(len(symbols)):
        step = symbols[row : row + 1], weights[row : row + 1]
        theirs.encode(step[0], *model(DEFAULT, step[1]))
        ours.encode(step[0], *model(PURE, step[1]))
        assert ours.pos() == theirs.pos()
        assert ours.get_compressed().tolist() == theirs.get_compressed().tolist()
        n_words, (lower, _) = ours.pos()
        n_settled += n_words > 0 and lower + 2**32 > 2**64
    assert n_settled > 0


@needs_constriction
@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=24), st.integers(0, 2**32), st.integers(0, 40), st.integers(2, 40))
def test_cut_streams_give_the_same_symbols(
    data: bytes, seed: int, count: int, n_symbols: int
) -> None:
    weights = make_pass(seed, count, n_symbols, "plain")[1].astype(np.int32)
    found: list[tuple[list[int], int] | None] = []
    for coder in (DEFAULT, PURE):
        try:
            symbols, n_certain = CutDecoder(data, coder).decode(weights)
        except StreamError:
            found.append(None)
        else:
            found.append((symbols.tolist(), n_certain))
    assert found[0] == found[1]


@needs_constriction
@pytest.mark.parametrize("n_symbols", [16384, 65521, 65536])
@pytest.mark.parametrize("kind", ["plain", "last", "extreme", "largest", "least"])
def test_large_alphabets(n_symbols: int, kind: str) -> None:
    symbols, weights = make_pass(n_symbols, 12, n_symbols, kind)
    if kind in ("largest", "least"):  # "least": cum rests on the symbol as much as on the weights
        weights[:] = {"largest": 65536, "least": 1}[kind]
    symbols[:2] = 0, n_symbols - 1
    theirs, ours = (encode(coder, (symbols, weights)) for coder in (DEFAULT, PURE))
    assert ours.pos() == theirs.pos()
    words = ours.get_compressed()
    assert words.tolist() == theirs.get_compressed().tolist()
    for table in (weights, weights.astype(np.int32)):
        assert decode(PURE.decoder(words), PURE, (symbols, table)) == symbols.tolist()


@needs_constriction
@pytest.mark.parametrize("n_symbols", [2, 16, 1024, 1025])
def test_the_top_of_the_interval_is_the_last_symbol(n_symbols: int) -> None:
    """Where rounding lets cum(K) by the formula miss 2**24, the interval of K - 1 still ends there.

    The highest quantile is that of the last symbol, whatever the weights.
    """
    for seed in range(20):
        weights = make_pass(seed, 1, n_symbols, "plain")[1]
        part = np.zeros(1, np.int32), weights
        top = np.array([0xFFFFFEFF, 0xFFFFFFFF], np.uint32)
        for coder in (DEFAULT, PURE):
            assert decode(coder.decoder(top), coder, part) == [n_symbols - 1]


def test_a_clone_goes_on_by_itself() -> None:
    part = make_pass(3, 40, 9, "plain")
    decoder = PURE.decoder(encode(PURE, part, part).get_compressed())
    assert decode(decoder.clone(), PURE, part) == part[0].tolist()
    assert decode(decoder, PURE, part) == part[0].tolist()
    assert decode(decoder.clone(), PURE, part) == part[0].tolist()


def test_an_impossible_point_is_refused() -> None:
    for data in (b"\xff" * 16, b"\xff" * 8):
        with pytest.raises(StreamError, match="another bundle"):
            TokenDecoder(data, PURE).decode(np.ones((3, 5), np.int32))


def frozen_cases() -> list[tuple[NDArray[np.int64], NDArray[np.int32], str]]:
    """Symbols, weights, and SHA-256 of their bytes; the first are those of test_rangecoder.py."""
    small, large = np.arange(60).reshape(12, 5), np.arange(200 * 1024).reshape(200, 1024)
    return [
        (
            np.array([0, 4, 3, 2, 1, 0, 0, 1, 2, 3, 4, 4]),
            (small * 7919 % 65536 + 1).astype(np.int32),
            hashlib.sha256(bytes.fromhex("0000d1e6a80296")).hexdigest(),
        ),
        (
            np.arange(200) * 419 % 1024,
            (large * 40503 % 65536 + 1).astype(np.int32),
            "0ae8079cfdd8d842811e755b429702d5bbbd4e7fbc267a3b73418fc9e2edd5a6",
        ),
    ]


@pytest.mark.parametrize("coder", [DEFAULT, PURE], ids=["default", "pure"])
def test_bytes_are_frozen(coder: Coder) -> None:
    for symbols, weights, digest in frozen_cases():
        encoder = TokenEncoder(coder)
        encoder.encode(symbols, weights)
        data = encoder.finish()
        assert hashlib.sha256(data).hexdigest() == digest
        assert TokenDecoder(data, coder).decode(weights).tolist() == symbols.tolist()


def test_all_frozen_bytes_without_constriction() -> None:
    """The tests that pin bytes of tokens and captions, in an interpreter that cannot import it."""
    code = """
import sys
sys.modules["constriction"] = None
import pytest
from percoedge.bitstream.rangecoder import DEFAULT, PURE
if DEFAULT is not PURE:
    sys.exit("constriction was found")
sys.exit(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
    tests = [
        "test_purecoder.py::test_bytes_are_frozen",
        "test_rangecoder.py::test_bytes_are_frozen",
        "test_rangecoder.py::test_example_of_the_specification",
        "test_rangecoder.py::test_a_decoder_written_from_the_specification_agrees",
        "test_captions.py::test_bytes_are_frozen",
    ]
    folder = Path(__file__).parent
    result = subprocess.run(
        [sys.executable, "-c", code, *(f"{folder / test}" for test in tests)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
