"""Every cut and every flipped bit of the golden streams; claims far beyond the limits.

A file is refused whatever the damage: its checksum sees to that. A bare stream has none. Damage to
it is refused, or it can be seen by encoding again what was decoded, or the bytes are a sound stream
of another header or other tokens, which only the transport can tell from the one sent (FORMAT.md,
section 2). Nothing passes for what was sent.
"""

from __future__ import annotations

import itertools
import tracemalloc
from collections import Counter
from collections.abc import Iterator

import pytest
from fuzz_checks import FINGERPRINT, MAX_PIXELS, SCHEDULE, STRIDE, TILE, K, Target, as_file
from fuzz_inputs import Seed

from percoedge.bitstream.container import MAX_SIDE, pack, unpack
from percoedge.bitstream.schedules import SCHEDULES, pass_count, passes
from percoedge.errors import StreamError
from percoedge.runtime.tiling.tiles import grid_tiles


def flips(data: bytes) -> Iterator[bytes]:
    """The data with each of its bits flipped, one at a time."""
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bytes(damaged)


def truncations(data: bytes) -> Iterator[bytes]:
    for length in range(len(data)):
        yield data[:length]


def outcome(target: Target, sent: Seed, damaged: bytes) -> str:
    """What a receiver of a damaged bare stream gets."""
    try:
        stream = unpack(damaged, bare=True)
        tokens = target.codec.decode_tokens(damaged, bare=True, max_pixels=MAX_PIXELS)
    except StreamError as error:
        assert type(error) is StreamError
        assert "expected" in str(error)
        return "refused"
    header = stream.header
    coded = target.coder.encode(tokens, header.schedule or SCHEDULE, header.passes_sent)
    if pack(header, coded, None) != damaged:
        return "bytes that no encoder writes"
    if header != unpack(sent.data, bare=True).header:
        return "other header"
    assert (tokens != target.codec.decode_tokens(sent.data, bare=True)).any()
    return "other tokens"


def test_damaged_files_are_refused(target: Target, golden: list[Seed]) -> None:
    files = [seed.data for seed in golden if not seed.bare]
    assert len(files) >= 20
    for file in files:
        for damaged in itertools.chain(truncations(file), flips(file)):
            with pytest.raises(StreamError, match="expected"):
                target.codec.decode_tokens(damaged, max_pixels=MAX_PIXELS)
    target.forget()


def test_damage_to_bare_streams_never_passes_for_what_was_sent(
    target: Target, golden: list[Seed]
) -> None:
    bare = [seed for seed in golden if seed.bare]
    assert len(bare) >= 10
    cut: Counter[str] = Counter()
    flipped: Counter[str] = Counter()
    for seed in bare:
        cut.update(outcome(target, seed, damaged) for damaged in truncations(seed.data))
        flipped.update(outcome(target, seed, damaged) for damaged in flips(seed.data))
        target.forget()
    assert cut["refused"] and flipped["refused"]
    assert not cut["other header"]  # it is whole, or the stream is refused
    assert flipped["other tokens"] < sum(flipped.values()) // 50  # encoding again finds the others


def test_salvaged_tokens_are_true(target: Target, golden: list[Seed]) -> None:
    """Cut anywhere behind its caption, a stream gives tokens; those it calls known are right."""
    for seed in golden:
        stream = unpack(seed.data, bare=seed.bare)
        header, rest = stream.header, len(stream.tokens)
        schedule = header.schedule or SCHEDULE
        height, width = -(-header.height // STRIDE), -(-header.width // STRIDE)
        sent = target.codec.decode_tokens(seed.data, bare=seed.bare)
        places = [
            (tile.top + cell // tile.shape[1], tile.left + cell % tile.shape[1])
            for number in range(header.passes_sent or pass_count(schedule))
            for tile in grid_tiles(height, width, TILE)
            for cell in passes(schedule, *tile.shape)[number].tolist()
        ]
        for length in range(len(seed.data) - rest):
            with pytest.raises(StreamError, match="expected"):
                target.codec.decode_tokens(seed.data[:length], bare=seed.bare, cut=True)
        for length in range(rest):
            *_, last = target.coder.decode_progressive(
                stream.tokens[:length],
                (height, width),
                schedule,
                passes_sent=header.passes_sent,
                cut=True,
            )
            assert all(last.tokens[place] == sent[place] for place in places[: last.known])
            assert last.known <= len(places)
            damaged = seed.data[: len(seed.data) - rest + length]
            tokens = target.codec.decode_tokens(damaged, bare=seed.bare, cut=True)
            assert tokens.min() >= 0 and tokens.max() < K
        target.forget()


def test_flipped_bits_are_salvaged_or_refused(target: Target, golden: list[Seed]) -> None:
    for seed in golden[:9]:
        for damaged in flips(seed.data):
            try:
                tokens = target.codec.decode_tokens(
                    damaged, bare=seed.bare, cut=True, max_pixels=MAX_PIXELS
                )
            except StreamError:
                continue
            assert tokens.min() >= 0 and tokens.max() < K
        target.forget()


def claims() -> Iterator[tuple[str, bytes]]:
    """Bodies of 4 to 7 bytes that announce 2^28 pixels, by every schedule."""
    size = (MAX_SIDE - 1) << 18 | (MAX_SIDE - 1) << 4
    yield "default", size.to_bytes(4, "big")
    for number, schedule in enumerate(SCHEDULES):
        yield schedule, (size | 1).to_bytes(4, "big") + bytes([1, number, 0x80])


@pytest.mark.parametrize(("schedule", "body"), [*claims()], ids=lambda value: value[:4])
@pytest.mark.parametrize("cut", [False, True])
def test_claims_beyond_the_limits_cost_nothing(
    target: Target, schedule: str, body: bytes, cut: bool
) -> None:
    file = as_file(body)
    assert file[3:7] == FINGERPRINT

    tracemalloc.start()
    try:
        with pytest.raises(StreamError, match="pixels"):
            target.codec.decode_tokens(file, cut=cut)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    for decode in (target.codec.decode, lambda data: list(target.codec.decode_progressive(data))):
        with pytest.raises(StreamError, match="pixels"):
            decode(file)
    with pytest.raises(StreamError, match="pixels"):
        target.codec.decode_batch([file])
