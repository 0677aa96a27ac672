"""The codec from end to end, with graphs that are a few lines of numpy (conftest.py)."""

from __future__ import annotations

import contextlib
import io
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, Header, pack, unpack
from percoedge.bitstream.schedules import SCHEDULES, pass_count, pass_table
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Graph
from percoedge.engines.fake import FakeBackend, FakeEngine
from percoedge.errors import (
    BackendError,
    BundleMismatchError,
    ImageError,
    InputError,
    StreamError,
    UsageError,
)
from percoedge.runtime.codec import Codec
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.flow import noise
from percoedge.runtime.images import Source
from percoedge.runtime.tiling import tiles
from percoedge.runtime.tiling.tiles import grid_tiles

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def backend(fakes: Any) -> FakeBackend:
    loaded: FakeBackend = fakes.backend()
    return loaded


@pytest.fixture
def codec(fake_bundle: Bundle, backend: FakeBackend) -> Codec:
    return Codec.load(fake_bundle, backend)


@pytest.fixture(scope="session")
def large_tiles(make_bundle: MakeBundle) -> Bundle:
    return make_bundle(entropy_tile=64)


def engine_of(backend: FakeBackend, kind: str) -> FakeEngine:
    (found,) = (engine for name, engine in backend.engines if name == kind)
    return found


def pass_numbers(shape: tuple[int, ...], schedule: str) -> NDArray[np.uint8]:
    """The pass of every token, tiles of 4 apart."""
    numbers = np.empty(shape, np.uint8)
    for tile in grid_tiles(shape[0], shape[1], 4):
        numbers[tile.slices] = pass_table(schedule, *tile.shape)
    return numbers


def decoders(codec: Codec, data: bytes, **options: Any) -> list[Callable[[], object]]:
    """Every way to decode to an image."""
    return [
        lambda: codec.decode(data, **options),
        lambda: codec.decode_batch([data], **options),
        lambda: next(codec.decode_progressive(data, **options)),
    ]


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()


# ---- round trips --------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(data=st.data(), height=st.integers(1, 230), width=st.integers(1, 230))
def test_any_size_and_setting_makes_the_round_trip(
    fakes: Any, fake_bundle: Bundle, data: st.DataObject, height: int, width: int
) -> None:
    codec = Codec.load(fake_bundle, fakes.backend())
    photo = fakes.photo(height, width)
    schedule = data.draw(st.sampled_from([None, *SCHEDULES]))
    count = pass_count(schedule or "qlds-4")
    passes = data.draw(st.none() | st.integers(1, count))
    caption = data.draw(st.sampled_from(["", "a red barn", "Ünïcode \N{SNOWMAN}\n"]))
    seed = data.draw(st.none() | st.integers(0, (1 << 32) - 1))
    bare = data.draw(st.booleans())
    stream = codec.encode(
        photo, caption=caption, schedule=schedule, passes=passes, seed=seed, bare=bare
    )

    tokens = codec.tokens(photo)
    assert tokens.shape == (-(-height // 8), -(-width // 8))
    decoded = codec.decode_tokens(stream, bare=bare)
    sent = pass_numbers(tokens.shape, schedule or "qlds-4") < (passes or count)
    np.testing.assert_array_equal(decoded[sent], tokens[sent])

    image = codec.decode(stream, bare=bare)
    assert (image.mode, image.size) == ("RGB", (width, height))
    assert same(codec.decode(stream, bare=bare), image)
    header = unpack(stream, bare=bare).header
    assert (header.caption, header.seed) == (caption, seed)
    assert header.passes_sent == (None if passes == count else passes)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_number_of_passes_makes_the_round_trip(
    codec: Codec, fakes: Any, schedule: str
) -> None:
    photo = fakes.photo(37, 43)
    tokens, sizes = codec.tokens(photo), []
    for passes in range(1, pass_count(schedule) + 1):
        stream = codec.encode(photo, schedule=schedule, passes=passes)
        decoded = codec.decode_tokens(stream)
        sent = pass_numbers(tokens.shape, schedule) < passes
        np.testing.assert_array_equal(decoded[sent], tokens[sent])
        np.testing.assert_array_equal(codec.decode_tokens(stream), decoded)
        sizes.append(len(unpack(stream).tokens))
    assert sizes == sorted(sizes)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), height=st.integers(1, 90), width=st.integers(1, 90))
def test_as_many_passes_are_sent_as_fit_into_the_bytes(
    fakes: Any, fake_bundle: Bundle, data: st.DataObject, height: int, width: int
) -> None:
    codec = Codec.load(fake_bundle, fakes.backend())
    photo = fakes.photo(height, width)
    schedule = data.draw(st.sampled_from([None, *SCHEDULES]))
    options: dict[str, Any] = {
        "schedule": schedule,
        "caption": data.draw(st.sampled_from(["", "a red barn"])),
        "seed": data.draw(st.none() | st.just(7)),
        "bare": data.draw(st.booleans()),
    }
    count = pass_count(schedule or "qlds-4")
    streams = [codec.encode(photo, passes=n, **options) for n in range(1, count + 1)]
    sizes = [len(stream) for stream in streams]
    limit = data.draw(st.sampled_from(sizes)) + data.draw(st.integers(-1, 3))
    fitting = [stream for stream in streams if len(stream) <= limit]
    if fitting:
        assert codec.encode(photo, max_bytes=limit, **options) == fitting[-1]
    else:
        with pytest.raises(UsageError, match=f"of {min(sizes)} or more, .* got {limit};"):
            codec.encode(photo, max_bytes=limit, **options)


def test_fitting_a_size_runs_the_encoder_once_and_no_pass_twice(
    codec: Codec, backend: FakeBackend, fakes: Any
) -> None:
    photo = fakes.photo(32, 32)  # one tile
    runs = {"encoder": 0, "entropy": 0}

    def counted(kind: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def count(feeds: Any, **options: Any) -> Any:
            runs[kind] += 1
            return run(feeds, **options)

        return count

    codec.load_engines(runs)  # type: ignore[arg-type]
    for kind in runs:
        engine = engine_of(backend, kind)
        engine.run = counted(kind, engine.run)  # type: ignore[method-assign]
    two = codec.encode(photo, passes=2)
    assert runs == {"encoder": 1, "entropy": 2}
    assert codec.encode(photo, max_bytes=len(two)) == two
    assert runs == {"encoder": 2, "entropy": 5}  # the third does not fit, the fourth is not coded


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 120), width=st.integers(1, 120))
def test_tokens_are_those_of_one_large_tile(
    fakes: Any, fake_bundle: Bundle, large_tiles: Bundle, height: int, width: int
) -> None:
    photo, backend = fakes.photo(height, width), fakes.backend()
    tiled = Codec.load(fake_bundle, backend).tokens(photo)
    np.testing.assert_array_equal(tiled, Codec.load(large_tiles, fakes.backend()).tokens(photo))
    sides = [call.feeds["image"].shape[1:3] for call in engine_of(backend, "encoder").calls]
    assert max(map(max, sides)) <= 8 * (5 + 2)  # five margins of 1, and one on each side


def test_photos_are_padded_with_their_edge(codec: Codec, fakes: Any) -> None:
    photo = fakes.photo(13, 43)
    padded = np.pad(photo, ((0, 3), (0, 5), (0, 0)), mode="edge")
    np.testing.assert_array_equal(codec.tokens(photo), codec.tokens(padded))


def test_the_margin_of_the_encoder_is_needed(fakes: Any, make_bundle: MakeBundle) -> None:
    photo = fakes.photo(72, 72)
    one, none = (
        Codec.load(make_bundle(encoder_margin=margin), fakes.backend()).tokens(photo)
        for margin in (1, 0)
    )
    assert (one != none).any()


def test_every_kind_of_source_is_read(codec: Codec, fakes: Any, tmp_path: Path) -> None:
    photo = Image.fromarray(fakes.photo(20, 30))
    photo.save(tmp_path / "photo.png")
    file = io.BytesIO()
    photo.save(file, "PNG")
    sources: list[Source] = [photo, np.asarray(photo), file.getvalue(), tmp_path / "photo.png"]
    assert len({codec.encode(source) for source in sources}) == 1
    with pytest.raises(ImageError):
        codec.encode(b"no image")


# ---- seeds, steps, guidance ---------------------------------------------------------------------


def test_the_seed_decides_the_noise(codec: Codec, fakes: Any) -> None:
    photo = fakes.photo(40, 40)
    plain, seeded = codec.encode(photo), codec.encode(photo, seed=5)
    assert len(seeded) == len(plain) + 5  # presence of options, seed
    assert same(codec.decode(plain, seed=5), codec.decode(seeded))
    assert not same(codec.decode(plain, seed=6), codec.decode(seeded))
    assert same(codec.decode(plain, seed=unpack(plain).seed), codec.decode(plain))


def test_steps_come_from_the_caller_the_stream_or_the_bundle(
    codec: Codec, backend: FakeBackend, fakes: Any
) -> None:
    stream = unpack(codec.encode(fakes.photo(20, 20)))
    hinted = pack(Header(20, 20, steps=3), stream.tokens, stream.fingerprint)
    codec.decode(hinted)
    codec.decode(hinted, steps=5)
    codec.decode(pack(stream.header, stream.tokens, stream.fingerprint))
    assert len(engine_of(backend, "flow").calls) == 3 + 5 + 2


def test_guidance_runs_the_guided_graph(
    guided_bundle: Bundle, backend: FakeBackend, fakes: Any
) -> None:
    codec = Codec.load(guided_bundle, backend)
    stream = codec.encode(fakes.photo(20, 20))
    plain = codec.decode(stream)
    assert "flow_guided" not in dict(backend.engines)
    guided = codec.decode(stream, guidance=2.5)
    assert engine_of(backend, "flow_guided").calls[0].feeds["guidance"] == [2.5]
    assert not same(plain, guided)
    assert same(codec.decode(stream, guidance=1), plain)


@pytest.mark.parametrize(
    "choice",
    [{"steps": 0}, {"steps": 1.5}, {"guidance": -1}, {"guidance": 2.0}, {"seed": -1}],
)
def test_bad_arguments_are_refused_before_any_engine_is_loaded(
    codec: Codec, backend: FakeBackend, fakes: Any, choice: dict[str, Any]
) -> None:
    stream = codec.encode(fakes.photo(9, 9))
    backend.engines.clear()
    for decode in decoders(codec, stream, **choice):
        with pytest.raises(UsageError, match=f"expected {next(iter(choice))}"):
            decode()
    assert backend.engines == []


@pytest.mark.parametrize(
    "choice",
    [
        {"schedule": "zigzag"},
        {"schedule": ""},
        {"passes": 0},
        {"passes": 5},
        {"passes": 6, "schedule": "quincunx"},
        {"passes": 1.5},
        {"passes": 2, "max_bytes": 1000},
        {"max_bytes": 1000, "caption": "x" * 1025},
        {"seed": 1 << 32},
        {"caption": "x" * 1025},
    ],
)
def test_bad_arguments_of_an_encoder_are_refused_before_any_engine_is_loaded(
    codec: Codec, backend: FakeBackend, fakes: Any, choice: dict[str, Any]
) -> None:
    with pytest.raises(UsageError):
        codec.encode(fakes.photo(9, 9), **choice)
    assert backend.engines == []


# ---- what is refused ----------------------------------------------------------------------------


def test_large_images_are_refused_before_any_engine_is_loaded(
    codec: Codec, backend: FakeBackend, fakes: Any
) -> None:
    stream = codec.encode(fakes.photo(10, 20))
    bomb = pack(Header(16384, 16384), b"", codec.bundle.fingerprint)
    backend.engines.clear()
    cases: list[tuple[bytes, dict[str, int]]] = [(stream, {"max_pixels": 199}), (bomb, {})]
    for data, options in cases:
        for decode in decoders(codec, data, **options):
            with pytest.raises(StreamError, match="max_pixels"):
                decode()
    with pytest.raises(StreamError, match="max_pixels"):
        codec.decode_tokens(bomb)
    assert backend.engines == []
    assert codec.decode(stream, max_pixels=200).size == (20, 10)


def test_what_decoders_refuse_is_not_encoded(codec: Codec, backend: FakeBackend) -> None:
    large = np.broadcast_to(np.uint8(0), (8192, DEFAULT_MAX_PIXELS // 8192 + 1))
    small = np.zeros((10, 20), np.uint8)
    for encode in (codec.encode, codec.tokens):
        with pytest.raises(ImageError, match=f"at most {DEFAULT_MAX_PIXELS}; allow more with max"):
            encode(large)
        with pytest.raises(ImageError, match="at most 199"):
            encode(small, max_pixels=199)
        assert backend.engines == []
    assert codec.encode(small, max_pixels=200)


def test_streams_of_another_bundle_are_refused(
    codec: Codec, fakes: Any, make_bundle: MakeBundle
) -> None:
    other = Codec.load(make_bundle(schedule="quincunx"), fakes.backend())
    photo = fakes.photo(10, 20)
    stream = other.encode(photo)
    with pytest.raises(BundleMismatchError, match=codec.bundle.fingerprint.hex()):
        codec.decode(stream)
    assert codec.info(stream)["bundle"] == "another one"
    codec.decode(other.encode(photo, bare=True), bare=True)  # nothing tells them apart


def test_more_passes_than_the_bundles_schedule_has_are_refused(codec: Codec) -> None:
    stream = pack(Header(8, 8, passes_sent=5), b"", codec.bundle.fingerprint)
    with pytest.raises(StreamError, match=r"at most 4 passes.*got 5"):
        codec.decode(stream)


def test_a_flow_that_gives_nan_is_told(fake_bundle: Bundle, fakes: Any) -> None:
    broken = fakes.backend(flow=lambda feeds: {"x_next": feeds["x"] * np.float32("nan")})
    codec = Codec.load(fake_bundle, broken)
    with pytest.raises(BackendError, match="NaN"):
        codec.decode(codec.encode(fakes.photo(20, 20)))
    assert dict(broken.engines)["decoder"].calls == []


def test_damage_never_raises_anything_but_stream_errors(codec: Codec, fakes: Any) -> None:
    whole = codec.encode(fakes.photo(20, 30), caption="a boat", passes=3, seed=1)
    rng = np.random.default_rng(2)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= int(rng.integers(1, 256))
        with pytest.raises(StreamError):
            codec.decode(bytes(damaged))
        with contextlib.suppress(StreamError):
            codec.decode(bytes(damaged), cut=True, max_pixels=1600)


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("left", [None, 0.5])
@pytest.mark.parametrize("sent", [None, 3])
def test_the_first_passes_alone_are_what_a_progressive_decode_gives_after_them(
    codec: Codec, fakes: Any, sent: int | None, left: float | None, bare: bool
) -> None:
    stream = codec.encode(fakes.photo(64, 72), passes=sent, bare=bare)
    whole = len(stream)
    data = stream if left is None else stream[: whole - int((whole - 16) * left)]
    options: dict[str, bool] = {"bare": bare, "cut": left is not None}
    images = [each.image for each in codec.decode_progressive(data, **options)]
    for number, image in enumerate(images, 1):
        assert codec.decode(data, passes=number, **options) == image
    assert codec.decode(data, passes=9, **options) == codec.decode(data, **options) == images[-1]
    assert left or images[0] != images[-1]
    with pytest.raises(UsageError, match="passes"):
        codec.decode(data, passes=0, **options)


# ---- batches ------------------------------------------------------------------------------------


def test_a_batch_is_what_one_by_one_gives_in_order(
    codec: Codec, backend: FakeBackend, fakes: Any
) -> None:
    streams = [
        codec.encode(fakes.photo(20, 30)),
        codec.encode(fakes.photo(44, 12)),
        codec.encode(fakes.photo(20, 30, seed=1), caption="a boat"),
        codec.encode(fakes.photo(20, 30, seed=2), schedule="checkerboard"),
        codec.encode(fakes.photo(20, 30, seed=3), passes=2),
        codec.encode(fakes.photo(20, 30, seed=4), seed=9),
        codec.encode(fakes.photo(20, 30, seed=5), passes=2, seed=10),
        codec.encode(fakes.photo(19, 30)),
    ]
    single = [codec.decode(stream) for stream in streams]
    flow = engine_of(backend, "flow")
    flow.calls.clear()
    batch = codec.decode_batch(streams)
    assert all(same(a, b) for a, b in zip(batch, single, strict=True))
    assert max(len(call.feeds["x"]) for call in flow.calls) == 3
    assert codec.decode_batch([]) == []


@pytest.mark.parametrize("low_memory", [False, True])
def test_a_batch_goes_through_the_graphs_in_parts(
    fake_bundle: Bundle, fakes: Any, monkeypatch: pytest.MonkeyPatch, low_memory: bool
) -> None:
    """However large a batch is, no graph sees more of it; engines are not loaded for each part."""
    backend = fakes.backend()
    codec = Codec.load(fake_bundle, backend, low_memory=low_memory)
    streams = [codec.encode(fakes.photo(20, 30, seed=seed)) for seed in range(5)]
    single = [codec.decode(stream) for stream in streams]
    monkeypatch.setattr(tiles, "BATCH_PIXELS", 2 * 24 * 32)  # of whole tokens
    codec.close()
    backend.engines.clear()
    batch = codec.decode_batch(streams)
    assert all(same(a, b) for a, b in zip(batch, single, strict=True))
    assert [kind for kind, _ in backend.engines] == ["entropy", "flow", "decoder"]
    for kind, runs in (("entropy", 4), ("flow", 2), ("decoder", 1)):
        calls = engine_of(backend, kind).calls
        sizes = [len(call.feeds["tokens" if kind == "entropy" else "x"]) for call in calls]
        assert sizes == [2] * runs + [2] * runs + [1] * runs
    monkeypatch.setattr(tiles, "BATCH_PIXELS", 1)
    assert all(same(a, b) for a, b in zip(codec.decode_batch(streams), single, strict=True))


def test_a_batch_is_refused_before_anything_is_decoded(
    codec: Codec, backend: FakeBackend, fakes: Any
) -> None:
    stream = codec.encode(fakes.photo(20, 30))
    backend.engines.clear()
    with pytest.raises(StreamError, match="^stream 1: .*checksum"):
        codec.decode_batch([stream, stream[:-1]])
    with pytest.raises(BundleMismatchError, match="^stream 2: .*61626364"):
        codec.decode_batch([stream, stream, pack(Header(8, 8), b"", b"abcd"), stream[:-1]])
    with pytest.raises(InputError, match="^stream 0: cannot read nowhere"):
        codec.decode_batch(["nowhere"])
    with pytest.raises(UsageError, match="^stream 1: .*None"):
        codec.decode_batch([stream, None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="^expected max_pixels"):
        codec.decode_batch([stream], max_pixels=0)
    assert backend.engines == []


@pytest.mark.parametrize("passes", [None, 2])
@pytest.mark.parametrize("lanes", [1, 2])
def test_a_batch_says_which_stream_has_bad_tokens(
    codec: Codec, fakes: Any, lanes: int, passes: int | None
) -> None:
    photos = (fakes.photo(20, 30), fakes.photo(20, 9))
    good, small = (codec.encode(photo, bare=True, passes=passes) for photo in photos)
    bad = pack(Header(30, 20, passes_sent=passes), b"\xff" * 12, None)
    with pytest.raises(StreamError, match="range-coded"):
        codec.decode(bad, bare=True)
    with pytest.raises(StreamError, match="^stream 2: .*range-coded"):
        codec.decode_batch([good, small, bad, good], bare=True, lanes=lanes)


# ---- progress and cut streams -------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("low_memory", [False, True])
def test_progress_ends_with_the_image(
    fake_bundle: Bundle, fakes: Any, schedule: str, low_memory: bool
) -> None:
    codec = Codec.load(fake_bundle, fakes.backend(), low_memory=low_memory)
    stream = codec.encode(fakes.photo(37, 43), schedule=schedule)
    steps = list(codec.decode_progressive(stream))
    known = [step.known for step in steps]
    assert known == sorted(set(known))
    assert known[-1] == steps[-1].total == 30
    assert all(step.image.size == (43, 37) for step in steps)
    assert same(steps[-1].image, codec.decode(stream))


def test_progress_of_a_part_ends_with_what_was_sent(codec: Codec, fakes: Any) -> None:
    stream = codec.encode(fakes.photo(37, 43), passes=2)
    *_, last = codec.decode_progressive(stream)
    assert last.known == (pass_numbers((5, 6), "qlds-4") < 2).sum() < last.total
    assert same(last.image, codec.decode(stream))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("schedule", ["qlds-4", "uniform"])
def test_a_stream_may_be_cut_at_every_byte(
    codec: Codec, fakes: Any, schedule: str, bare: bool
) -> None:
    photo = fakes.photo(20, 37)
    tokens = codec.tokens(photo)
    whole = codec.encode(photo, caption="a small boat", schedule=schedule, seed=4, bare=bare)
    numbers = pass_numbers(tokens.shape, schedule)
    order = [
        (tile.top + row, tile.left + column)
        for number in range(pass_count(schedule))
        for tile in grid_tiles(tokens.shape[0], tokens.shape[1], 4)
        for row, column in np.argwhere(numbers[tile.slices] == number)
    ]
    head = len(whole) - unpack(whole, bare=bare).sizes["tokens"]
    known_before = 0
    for size in range(len(whole)):
        cut = whole[:size]
        if size < head:
            with pytest.raises(StreamError):
                codec.decode(cut, cut=True, bare=bare)
            continue
        *_, last = codec.decode_progressive(cut, bare=bare)
        decoded = codec.decode_tokens(cut, cut=True, bare=bare)
        if bare and last.known == tokens.size:  # a few bytes less cannot be told from a whole one
            assert len(whole) - size <= 6
            continue
        assert all(decoded[place] == tokens[place] for place in order[: last.known])
        assert known_before <= last.known
        known_before = last.known
        assert same(last.image, codec.decode(cut, cut=True, bare=bare))
    assert known_before > tokens.size // 3
    if not bare:
        with pytest.raises(StreamError, match="checksum"):
            codec.decode(whole[:-1])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), height=st.integers(1, 100), width=st.integers(1, 100))
def test_a_whole_stream_that_may_be_cut_is_whole(
    fakes: Any, fake_bundle: Bundle, data: st.DataObject, height: int, width: int
) -> None:
    codec = Codec.load(fake_bundle, fakes.backend())
    photo = fakes.photo(height, width, data.draw(st.integers(0, 99)))
    if data.draw(st.booleans()):
        photo[height // 2 :] = 130  # tokens that are all alike
    schedule = data.draw(st.sampled_from(SCHEDULES))
    passes = data.draw(st.none() | st.integers(1, pass_count(schedule)))
    bare = data.draw(st.booleans())
    stream = codec.encode(photo, schedule=schedule, passes=passes, bare=bare)
    whole = codec.decode_tokens(stream, bare=bare)
    np.testing.assert_array_equal(codec.decode_tokens(stream, bare=bare, cut=True), whole)
    *_, last = codec.decode_progressive(stream, bare=bare)
    assert same(last.image, codec.decode(stream, bare=bare))
    sent = pass_numbers(whole.shape, schedule) < (passes or pass_count(schedule))
    assert last.known == sent.sum()


# ---- engines: loading, residency, memory, time --------------------------------------------------


def test_engines_are_loaded_at_first_use_and_kept(
    codec: Codec, backend: FakeBackend, fakes: Any
) -> None:
    assert backend.engines == []
    stream = codec.encode(fakes.photo(20, 20))
    assert [kind for kind, _ in backend.engines] == ["encoder", "entropy"]
    codec.decode(stream)
    codec.decode(stream)
    assert [kind for kind, _ in backend.engines] == ["encoder", "entropy", "flow", "decoder"]
    assert not any(engine.closed for _, engine in backend.engines)


def test_uniform_needs_no_entropy_engine(codec: Codec, backend: FakeBackend, fakes: Any) -> None:
    codec.decode(codec.encode(fakes.photo(20, 20), schedule="uniform"))
    assert "entropy" not in dict(backend.engines)


def test_a_closed_codec_loads_its_engines_anew(
    fake_bundle: Bundle, backend: FakeBackend, fakes: Any
) -> None:
    with Codec.load(fake_bundle, backend) as codec:
        stream = codec.encode(fakes.photo(20, 20))
        image = codec.decode(stream)
    assert all(engine.closed for _, engine in backend.engines)
    assert same(codec.decode(stream), image)
    codec.close()
    codec.close()
    assert all(engine.closed for _, engine in backend.engines)


@pytest.mark.parametrize("low_memory", [False, True])
def test_closing_spares_what_other_calls_use(
    fake_bundle: Bundle, fakes: Any, low_memory: bool
) -> None:
    backend = fakes.backend()
    codec = Codec.load(fake_bundle, backend, low_memory=low_memory)
    stream = codec.encode(fakes.photo(20, 20))
    images = codec.decode_progressive(stream)
    first = next(images)
    codec.close()
    assert same([first, *images][-1].image, codec.decode(stream))
    codec.close()
    assert all(engine.closed for _, engine in backend.engines)


class OneEngineBackend(FakeBackend):
    """Refuses to load an engine while another one is in memory."""

    def load(self, graph: Graph) -> FakeEngine:
        assert all(engine.closed for _, engine in self.engines)
        return super().load(graph)


def test_low_memory_holds_one_engine_at_a_time(fake_bundle: Bundle, fakes: Any) -> None:
    backend = OneEngineBackend(fakes.backend().functions)
    codec = Codec.load(fake_bundle, backend, low_memory=True)
    plain = Codec.load(fake_bundle, fakes.backend())
    photo = fakes.photo(44, 36)
    codec.load_engines(["encoder", "flow"])
    stream = codec.encode(photo, passes=2)
    assert stream == plain.encode(photo, passes=2)
    assert same(codec.decode(stream), plain.decode(stream))
    assert [p.known for p in codec.decode_progressive(stream)] == [
        p.known for p in plain.decode_progressive(stream)
    ]
    assert all(engine.closed for _, engine in backend.engines)
    assert same(codec.decode_batch([stream, stream])[1], plain.decode(stream))


class WatchingBackend(FakeBackend):
    """Reads graphs, and knows whether the last one is still in memory."""

    def load(self, graph: Graph) -> FakeEngine:
        self.source = weakref.ref(graph.read())
        return super().load(graph)


def test_a_source_is_freed_before_its_engine_is_used(fake_bundle: Bundle, fakes: Any) -> None:
    backend = WatchingBackend(fakes.backend().functions)
    with EngineSet(fake_bundle, backend, low_memory=False).use("flow"):
        assert backend.source() is None


def test_engines_are_freed_when_a_stage_fails(fake_bundle: Bundle, fakes: Any) -> None:
    backend = fakes.backend(flow=lambda feeds: {"x_next": feeds["x"] * np.float32("inf")})
    codec = Codec.load(fake_bundle, backend, low_memory=True)
    with pytest.raises(BackendError):
        codec.decode(codec.encode(fakes.photo(9, 9)))
    assert all(engine.closed for _, engine in backend.engines)


def test_latents_stay_on_the_device(codec: Codec, backend: FakeBackend, fakes: Any) -> None:
    codec.decode(codec.encode(fakes.photo(30, 25)), steps=4)
    flow, decoder = engine_of(backend, "flow"), engine_of(backend, "decoder")
    assert [buffer.fetches for buffer in flow.buffers] == [0, 0, 0, 1]
    assert decoder.calls[0].from_device == {"x"}


def test_noise_is_made_while_a_device_reads_tokens(
    fake_bundle: Bundle, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, and before the first pass is done; on a CPU where it is needed."""
    made, threads = threading.Event(), []

    def noted(*args: Any) -> Any:
        threads.append(threading.get_ident())
        made.set()
        return noise(*args)

    def waiting(feeds: Any) -> Any:
        assert made.wait(60)
        return fakes.functions["entropy"](feeds)

    monkeypatch.setattr("percoedge.runtime.decoding.noise", noted)
    cpu, device = Codec(fake_bundle, fakes.backend()), fakes.backend(entropy=waiting)
    device.max_batch = 2
    streams = [cpu.encode(fakes.photo(20, 20, seed)) for seed in range(3)]
    wanted = [cpu.decode(stream) for stream in streams]
    here = threading.get_ident()
    assert threads == [here] * 3
    threads.clear()
    made.clear()
    assert Codec(fake_bundle, device).decode_batch(streams) == wanted
    assert [thread == here for thread in threads] == [False, False, True]


def test_timings_are_those_of_the_last_call(codec: Codec, fakes: Any) -> None:
    stream = codec.encode(fakes.photo(20, 20))
    assert set(codec.timings_ms) == {"read image", "load", "encoder", "entropy coding"}
    codec.decode(stream)
    stages = {"container", "load", "entropy decoding", "noise", "flow", "decoder", "image"}
    assert set(codec.timings_ms) == stages
    codec.decode_tokens(stream)
    assert set(codec.timings_ms) == {"container", "entropy decoding"}
    codec.tokens(fakes.photo(20, 20))
    assert set(codec.timings_ms) == {"encoder"}
    assert all(time >= 0 for time in codec.timings_ms.values())


@pytest.mark.parametrize("low_memory", [False, True])
def test_threads_may_share_a_codec(fake_bundle: Bundle, fakes: Any, low_memory: bool) -> None:
    backend = fakes.backend()
    codec = Codec.load(fake_bundle, backend, low_memory=low_memory)
    photos = [fakes.photo(20 + 8 * index, 30, index) for index in range(8)]
    streams = [codec.encode(photo) for photo in photos]
    expected = [np.asarray(codec.decode(stream)) for stream in streams]

    def decode(stream: bytes) -> tuple[NDArray[np.uint8], dict[str, float]]:
        return np.asarray(codec.decode(stream)), codec.timings_ms

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(decode, streams))
    for (image, timings_ms), wanted in zip(results, expected, strict=True):
        np.testing.assert_array_equal(image, wanted)
        assert {"container", "entropy decoding", "flow", "decoder"} <= set(timings_ms)
    kinds = [kind for kind, _ in backend.engines]
    assert low_memory or len(kinds) == len(set(kinds))  # none was loaded twice


def test_info_decodes_nothing(codec: Codec, backend: FakeBackend, fakes: Any) -> None:
    stream = codec.encode(fakes.photo(20, 30), caption="a boat", passes=3)
    backend.engines.clear()
    info = codec.info(stream)
    expected = {"width": 30, "height": 20, "bytes": len(stream), "schedule": "qlds-4"}
    expected |= {"passes_sent": 3, "steps": 2, "caption": "a boat", "bundle": "fake"}
    assert {key: info[key] for key in expected} == expected
    assert sum(info["bytes_by_part"].values()) == len(stream)
    assert backend.engines == []


def test_a_stream_of_an_earlier_release_is_refused_by_its_name(codec: Codec) -> None:
    header = Header(width=16, height=16)
    stream = pack(header, b"\x01", bytes.fromhex("dd9612dd"))
    with pytest.raises(BundleMismatchError, match=r"the tiny of percoedge 0\.1\.0 .*==0\.1\.0"):
        codec.decode(stream)
