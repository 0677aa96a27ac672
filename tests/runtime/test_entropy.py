"""Tokens survive the range coder; what was not sent or was cut is sampled, in integers only."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from percoedge.bitstream.schedules import SCHEDULES, pass_count, passes
from percoedge.engines.contract import TensorSpec
from percoedge.engines.fake import FakeEngine
from percoedge.errors import StreamError, UsageError
from percoedge.runtime.entropy import EntropyCodec
from percoedge.runtime.tiling.tiles import grid_tiles

TILE = 4


@pytest.fixture
def coder(fakes: Any) -> EntropyCodec:
    return EntropyCodec(fakes.engine("entropy"), fakes.K, TILE)


def grid(height: int, width: int, k: int = 64, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, k, (height, width), np.int32)


def coding_order(height: int, width: int, schedule: str) -> Iterator[tuple[int, int, int]]:
    """Pass, row and column of every token, pass-major, as FORMAT.md has it."""
    for number in range(pass_count(schedule)):
        for tile in grid_tiles(height, width, TILE):
            for cell in passes(schedule, *tile.shape)[number]:
                row, column = divmod(int(cell), tile.shape[1])
                yield number, tile.top + row, tile.left + column


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    schedule=st.sampled_from(SCHEDULES),
    seed=st.integers(0, 99),
)
def test_round_trip(fakes: Any, height: int, width: int, schedule: str, seed: int) -> None:
    coder = EntropyCodec(fakes.engine("entropy"), fakes.K, TILE)
    tokens = [grid(height, width, seed=seed + i) for i in range(2)]
    streams = [coder.encode(each, schedule) for each in tokens]
    decoded = coder.decode(streams, (height, width), schedule)
    assert decoded.dtype == np.int32
    np.testing.assert_array_equal(decoded, tokens)
    partial = coder.decode_partial(streams[0], (height, width), schedule)
    np.testing.assert_array_equal(partial, tokens[0])


def test_both_sides_ask_the_model_the_same_in_the_specified_order(fakes: Any) -> None:
    encoder, decoder = fakes.engine("entropy"), fakes.engine("entropy")
    tokens = grid(6, 9)
    data = EntropyCodec(encoder, fakes.K, TILE).encode(tokens, "qlds-4")
    EntropyCodec(decoder, fakes.K, TILE).decode([data], (6, 9), "qlds-4")
    assert len(encoder.calls) == len(decoder.calls)
    asked = []
    for ours, theirs in zip(encoder.calls, decoder.calls, strict=True):
        for name in ("tokens", "positions"):
            np.testing.assert_array_equal(ours.feeds[name], theirs.feeds[name])
        asked.append((ours.feeds["tokens"].shape[1:], ours.feeds["positions"].tolist()))
    tiles = grid_tiles(6, 9, TILE)
    expected = [
        (tile.shape, passes("qlds-4", *tile.shape)[number].tolist())
        for number in range(4)
        for tile in tiles
    ]
    assert asked == [each for each in expected if each[1]]


def test_a_tile_sees_its_own_earlier_passes_and_the_mask_only(fakes: Any) -> None:
    engine, tokens = fakes.engine("entropy"), grid(4, 8)
    EntropyCodec(engine, fakes.K, TILE).encode(tokens, "checkerboard")
    rows, columns = np.indices((4, 4))
    masked = np.full((4, 4), fakes.K, np.int32)
    halves = [np.where((rows + columns) % 2 == 0, half, masked) for half in np.split(tokens, 2, 1)]
    for call, expected in zip(engine.calls, [masked, masked, *halves], strict=True):
        np.testing.assert_array_equal(call.feeds["tokens"][0], expected)


@pytest.mark.parametrize(
    ("most", "runs"),
    # tiles of a pass: 4 whole ones, then 2 at the right, 2 at the bottom, and the corner
    [(None, [1] * 9), (1, [1] * 9), (3, [3, 2, 1, 2, 1]), (16, [4, 2, 2, 1])],
)
def test_tiles_of_one_shape_go_through_the_model_together(
    fakes: Any, most: int | None, runs: list[int]
) -> None:
    engine = fakes.engine("entropy")
    tokens = [grid(11, 11, seed=seed) for seed in range(2)]
    streams = [EntropyCodec(engine, fakes.K, TILE).encode(each, "qlds-4") for each in tokens]
    batched = fakes.engine("entropy")
    batched.max_batch = most
    coder = EntropyCodec(batched, fakes.K, TILE)
    assert coder.encode(tokens[0], "qlds-4") == streams[0]
    assert [len(call.feeds["tokens"]) for call in batched.calls] == runs * 4
    batched.calls.clear()
    np.testing.assert_array_equal(coder.decode(streams[:1], (11, 11), "qlds-4"), tokens[:1])
    assert [len(call.feeds["tokens"]) for call in batched.calls] == runs * 4
    batched.max_batch = None if most is None else 2 * most
    np.testing.assert_array_equal(coder.decode(streams, (11, 11), "qlds-4"), tokens)
    cut = coder.decode_partial(streams[0][:-2], (11, 11), "qlds-4", cut=True)
    whole = EntropyCodec(engine, fakes.K, TILE)
    np.testing.assert_array_equal(
        cut, whole.decode_partial(streams[0][:-2], (11, 11), "qlds-4", cut=True)
    )


def test_the_device_works_on_the_next_tiles_meanwhile(fakes: Any) -> None:
    """What the range coder waits for was queued before, and is fetched when its turn comes."""
    engine, tokens = fakes.engine("entropy"), grid(8, 16)
    data = EntropyCodec(engine, fakes.K, TILE).encode(tokens, "qlds-4")
    engine.calls.clear()
    engine.max_batch = 2
    coder = EntropyCodec(engine, fakes.K, TILE)
    seen = [
        (len(engine.calls), engine.fetches)
        for _, _, _ in coder._contexts(np.full((8, 16), fakes.K, np.int32), "qlds-4", 1)
    ]
    assert seen == [(2, 1)] * 2 + [(3, 2)] * 2 + [(4, 3)] * 2 + [(4, 4)] * 2
    assert all(call.on_device for call in engine.calls)
    assert all(buffer.begun for buffer in engine.buffers)
    np.testing.assert_array_equal(coder.decode([data], (8, 16), "qlds-4")[0], tokens)
    assert engine.fetches == 4 + 4 * 4
    large = grid(16, 16)  # as many tiles as 4096x4096 has, for an engine that takes 8
    data_of_large = EntropyCodec(fakes.engine("entropy"), fakes.K, TILE).encode(large, "qlds-4")
    engine.max_batch, before = 8, engine.fetches
    np.testing.assert_array_equal(coder.decode([data_of_large], (16, 16), "qlds-4")[0], large)
    assert engine.fetches - before == 2 * pass_count("qlds-4")
    # All of a pass at once: nothing is left to be queued ahead.
    engine.calls.clear()
    coder.decode([data], (8, 16), "qlds-4")
    assert [call.on_device for call in engine.calls] == [False] * 4


def test_uniform_needs_no_model() -> None:
    coder, tokens = EntropyCodec(None, 64, TILE), grid(3, 5)
    data = coder.encode(tokens, "uniform")
    assert len(data) == -(-tokens.size * 6 // 8)  # 6 bits a token
    np.testing.assert_array_equal(coder.decode([data], (3, 5), "uniform")[0], tokens)
    with pytest.raises(UsageError, match="entropy engine"):
        coder.encode(tokens, "checkerboard")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_passes_sent_are_kept_and_the_others_sampled(coder: EntropyCodec, schedule: str) -> None:
    tokens = grid(5, 6)
    order = list(coding_order(5, 6, schedule))
    for sent in range(1, pass_count(schedule) + 1):
        data = coder.encode(tokens, schedule, sent)
        args = (data, (5, 6), schedule)
        first = coder.decode_partial(*args, passes_sent=sent, seed=3)
        assert first.min() >= 0 and first.max() < 64
        np.testing.assert_array_equal(coder.decode_partial(*args, passes_sent=sent, seed=3), first)
        read = [(r, c) for number, r, c in order if number < sent]
        assert all(first[place] == tokens[place] for place in read)
        if len(read) < tokens.size - 8:
            other = coder.decode_partial(*args, passes_sent=sent, seed=4)
            assert (other != first).any()
        *_, last = coder.decode_progressive(*args, passes_sent=sent, seed=3)
        assert last.known == len(read)
        np.testing.assert_array_equal(last.tokens, first)


def test_sampling_is_frozen(coder: EntropyCodec) -> None:
    sampled = coder.decode_partial(b"", (2, 4), "qlds-4", cut=True, seed=7)
    assert sampled.tolist() == [[49, 25, 38, 25], [48, 24, 54, 58]]
    sampled = coder.decode_partial(b"", (2, 4), "uniform", cut=True, seed=0xFFFFFFFF)
    assert sampled.tolist() == [[10, 40, 34, 22], [30, 44, 46, 56]]
    top_bits = np.random.Philox(key=1 << 64 | 0xFFFFFFFF).random_raw(8) >> np.uint64(58)
    assert sampled.ravel().tolist() == top_bits.tolist()


def constant_engine(weights: list[int] | NDArray[Any]) -> FakeEngine:
    row = np.asarray(weights, np.int32)
    inputs = (
        TensorSpec("tokens", "int32", ("n", "h", "w")),
        TensorSpec("positions", "int32", ("p",)),
    )
    output = TensorSpec("weights", "int32", ("n", "p", len(row)))

    def run(feeds: Any) -> dict[str, NDArray[Any]]:
        shape = (len(feeds["tokens"]), len(feeds["positions"]), 1)
        return {"weights": np.tile(row, shape)}

    return FakeEngine(inputs, (output,), run)


def test_sampling_follows_the_weights() -> None:
    coder = EntropyCodec(constant_engine([1, 3, 4]), 3, 64)
    sampled = coder.decode_partial(b"", (64, 64), "checkerboard", cut=True, seed=1)
    shares = np.bincount(sampled.ravel(), minlength=3) / sampled.size
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 1 / 2], atol=0.03)


def test_sampling_holds_at_the_largest_weights() -> None:
    coder = EntropyCodec(constant_engine(np.full(1 << 16, 1 << 16)), 1 << 16, 64)
    sampled = coder.decode_partial(b"", (4, 4), "checkerboard", cut=True, seed=1)
    assert sampled.min() >= 0 and sampled.max() < 1 << 16
    assert len(np.unique(sampled >> 12)) > 4  # spread over the whole range


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_cut_stream_gives_true_tokens_up_to_the_cut(coder: EntropyCodec, schedule: str) -> None:
    tokens = grid(5, 6)
    data = coder.encode(tokens, schedule)
    places = [(r, c) for _, r, c in coding_order(5, 6, schedule)]
    known_before = 0
    for size in range(len(data) + 1):
        *_, last = coder.decode_progressive(data[:size], (5, 6), schedule, cut=True)
        assert all(last.tokens[place] == tokens[place] for place in places[: last.known])
        assert known_before <= last.known <= tokens.size
        known_before = last.known
        again = coder.decode_partial(data[:size], (5, 6), schedule, cut=True)
        np.testing.assert_array_equal(again, last.tokens)
    assert known_before >= tokens.size - 2


@settings(max_examples=100, deadline=None)
@given(data=st.data(), height=st.integers(1, 12), width=st.integers(1, 12))
def test_what_nobody_knows_to_be_whole_decodes_whole_if_it_is(
    fakes: Any, data: st.DataObject, height: int, width: int
) -> None:
    """Runs of one token too, for which an encoder needs no bytes."""
    schedule = data.draw(st.sampled_from(SCHEDULES))
    tokens = grid(height, width, seed=data.draw(st.integers(0, 999)))
    last = data.draw(st.sampled_from([0, 1, 21, 32, 42, 63]))
    order = list(coding_order(height, width, schedule))
    for _, row, column in order[data.draw(st.integers(0, len(order))) :]:
        tokens[row, column] = last
    coder = EntropyCodec(fakes.engine("entropy"), fakes.K, TILE)
    stream = coder.encode(tokens, schedule)
    decoded = coder.decode_partial(stream, tokens.shape, schedule, cut=None)
    if stream:
        np.testing.assert_array_equal(decoded, tokens)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_lacks_more_than_a_word_is_cut(coder: EntropyCodec, schedule: str) -> None:
    tokens = grid(5, 6)
    stream = coder.encode(tokens, schedule)
    for size in range(len(stream) - 8):
        args = (stream[:size], (5, 6), schedule)
        unknown = coder.decode_partial(*args, cut=None, seed=3)
        np.testing.assert_array_equal(unknown, coder.decode_partial(*args, cut=True, seed=3))


def test_progress_rises_pass_by_pass(coder: EntropyCodec) -> None:
    tokens = grid(8, 8)
    data = coder.encode(tokens, "qlds-8")
    sizes = np.cumsum([4 * len(cells) for cells in passes("qlds-8", 4, 4)])
    grids = list(coder.decode_progressive(data, (8, 8), "qlds-8"))
    assert [each.known for each in grids] == sorted(set(sizes.tolist()))
    np.testing.assert_array_equal(grids[-1].tokens, tokens)
    cut = [each.known for each in coder.decode_progressive(data[:9], (8, 8), "qlds-8", cut=True)]
    assert all(b > a for a, b in zip(cut, cut[1:], strict=False))


def test_progress_begins_with_the_first_pass_that_has_tokens(coder: EntropyCodec) -> None:
    data = coder.encode(grid(1, 1), "quincunx")  # its one cell belongs to the last pass
    assert [each.known for each in coder.decode_progressive(data, (1, 1), "quincunx")] == [1]
    unsent = list(coder.decode_progressive(b"", (1, 1), "quincunx", passes_sent=1))
    assert [each.known for each in unsent] == [0]


def test_missing_tokens_are_sampled_once(fakes: Any) -> None:
    engine = fakes.engine("entropy")
    coder = EntropyCodec(engine, fakes.K, TILE)
    data = coder.encode(grid(4, 4), "qlds-4", 3)
    engine.calls.clear()
    coder.decode_partial(data, (4, 4), "qlds-4", passes_sent=3)
    assert len(engine.calls) == 4


def test_bytes_of_no_encoder_are_refused_or_give_legal_tokens(coder: EntropyCodec) -> None:
    for seed in range(20):
        data = np.random.default_rng(seed).bytes(12) + b"\xff" * (seed % 5)
        with contextlib.suppress(StreamError):
            tokens = coder.decode([data], (3, 5), "qlds-4")
            assert tokens.min() >= 0 and tokens.max() < 64
    with pytest.raises(StreamError, match="range-coded"):
        coder.decode([b"\xff" * 12], (3, 5), "qlds-4")
