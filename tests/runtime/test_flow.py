"""The flow stays on the device where one tile suffices, and leaves no seams where it does not."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from percoedge import Codec
from percoedge.engines.contract import TensorSpec, check_tensors
from percoedge.engines.plans.profiles import profile_for
from percoedge.errors import BackendError
from percoedge.runtime.flow import decode_latent, noise, sample

FloatArray = NDArray[np.float32]


def latents(height: int, width: int, batch: int = 1) -> FloatArray:
    return np.stack([noise(seed, 4, 2 * height, 2 * width) for seed in range(batch)])


def grids(height: int, width: int, batch: int = 1) -> NDArray[np.int32]:
    return np.random.default_rng(5).integers(0, 64, (batch, height, width), np.int32)


def test_noise_is_normal_and_given_by_its_seed() -> None:
    first = noise(7, 4, 32, 48)
    assert first.shape == (4, 32, 48)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(noise(7, 4, 32, 48), first)
    assert abs(first.mean()) < 0.05 and abs(first.std() - 1) < 0.05
    assert abs(np.corrcoef(first.ravel(), noise(8, 4, 32, 48).ravel())[0, 1]) < 0.05


def test_times_go_from_one_down_in_equal_steps(fakes: Any) -> None:
    engine = fakes.engine("flow")
    sample(engine, grids(2, 3), latents(2, 3), 4, None, fakes.constants())
    assert [call.feeds["t"].tolist() for call in engine.calls] == [[1], [0.75], [0.5], [0.25]]
    assert all(call.feeds["dt"].tolist() == [0.25] for call in engine.calls)


def test_steps_of_a_diffusion_model_go_down_to_its_first_angle(fakes: Any) -> None:
    angles = tuple(np.linspace(0.03, 1.5, 1000).tolist())
    engine = fakes.engine("flow")
    sample(engine, grids(2, 3), latents(2, 3), 4, None, fakes.constants(angles=angles))
    assert [call.feeds["t"].tolist() for call in engine.calls] == [[751], [501], [251], [1]]
    turns = [float(call.feeds["dt"][0]) for call in engine.calls]
    expected = [angles[751] - angles[501], angles[501] - angles[251], angles[251] - angles[1]]
    np.testing.assert_allclose(turns, [*expected, angles[1] - angles[0]], rtol=1e-6)


@pytest.mark.parametrize("size", [(40, 24), (25, 9), (90, 17)])
def test_grids_are_filled_up_for_the_flow_and_cropped_after_it(
    fakes: Any, make_bundle: Any, size: tuple[int, int]
) -> None:
    """Stride 8, tiles of 4 tokens: sides of what the flow is given are even."""
    seen = []

    def flow(feeds: Any) -> dict[str, FloatArray]:
        seen.append(feeds["tokens"])
        return {"x_next": feeds["x"] * np.float32(0.5)}

    codec = Codec(make_bundle(flow_multiple=2), fakes.backend(flow=flow))
    data = codec.encode(fakes.photo(*size))
    tokens = codec.decode_tokens(data)
    assert codec.decode(data).size == size[::-1]
    assert all(side % 2 == 0 for given in seen for side in given.shape[1:])
    filled = np.pad(tokens, [(0, -side % 2) for side in tokens.shape], mode="edge")
    if max(filled.shape) <= 4:
        np.testing.assert_array_equal(seen[0][0], filled)
    assert seen[0][0, 0, 0] == tokens[0, 0] and seen[-1][0, -1, -1] == tokens[-1, -1]


def test_every_step_is_applied(fakes: Any) -> None:
    start, tokens = latents(2, 3), grids(2, 3)
    end = np.asarray(sample(fakes.engine("flow"), tokens, start, 3, None, fakes.constants()))
    level = tokens.repeat(2, axis=1).repeat(2, axis=2)[:, None] * 0.5
    np.testing.assert_allclose(end, level + (2 / 3) ** 3 * (start - level), rtol=1e-5, atol=1e-5)


def test_guidance_is_fed_to_the_guided_graph(fakes: Any) -> None:
    engine = fakes.engine("flow_guided")
    for shape in ((2, 3), (6, 6)):
        sample(engine, grids(*shape), latents(*shape), 2, 2.5, fakes.constants())
    assert all(call.feeds["guidance"].tolist() == [2.5] for call in engine.calls)


def test_one_tile_stays_on_the_device(fakes: Any) -> None:
    flow, decoder = fakes.engine("flow"), fakes.engine("decoder")
    constants = fakes.constants()
    end = sample(flow, grids(4, 4, 2), latents(4, 4, 2), 5, None, constants)
    assert all(call.on_device for call in flow.calls)
    assert all("x" in call.from_device for call in flow.calls[1:])
    assert [buffer.fetches for buffer in flow.buffers[:-1]] == [0] * 4
    pixels = decode_latent(decoder, end, constants)
    assert decoder.calls[0].from_device == {"x"}
    assert flow.fetches == 1  # the look at the last latent
    assert pixels.shape == (2, 32, 32, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(2, 2), (6, 3)])
def test_latents_that_are_not_finite_are_refused(fakes: Any, bad: float, shape: Any) -> None:
    def overflow(feeds: Any) -> dict[str, FloatArray]:
        spoilt = feeds["x"].copy()
        spoilt[0, 0, 0, 0] = bad
        return {"x_next": spoilt}

    with pytest.raises(BackendError, match=r"finite latents.*onnxruntime-cpu"):
        engine, constants = fakes.engine("flow", overflow), fakes.constants()
        end = sample(engine, grids(*shape), latents(*shape), 2, None, constants)
        decode_latent(fakes.engine("decoder"), end, constants)


SIZES = st.integers(1, 11)


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, overlap=st.integers(0, 2))
def test_tiles_of_a_pointwise_flow_are_the_whole(
    fakes: Any, height: int, width: int, overlap: int
) -> None:
    start, tokens, engine = latents(height, width), grids(height, width), fakes.engine("flow")
    whole = sample(fakes.engine("flow"), tokens, start, 2, None, fakes.constants(flow_tile=64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        constants = fakes.constants(flow_overlap=overlap)
        tiled = sample(engine, tokens, start, 2, None, constants)
    np.testing.assert_allclose(np.asarray(tiled), np.asarray(whole), rtol=1e-5, atol=1e-5)
    assert np.asarray(tiled).dtype == np.float32
    assert all(max(call.feeds["tokens"].shape[1:]) <= 4 for call in engine.calls)


@pytest.mark.parametrize("together", [2, 3, 100])
def test_tiles_go_through_the_graph_together(fakes: Any, together: int) -> None:
    """Of 2 pictures of 3x2 tiles; what belongs to a picture is there for each of its tiles."""
    start, tokens = latents(9, 5, 2), grids(9, 5, 2)
    caption = np.array([[1.0], [2.0]], np.float32)

    def with_caption(feeds: Any) -> dict[str, FloatArray]:
        moved = feeds["x"] * 0.5 + feeds["tokens"].mean((1, 2))[:, None, None, None]
        return {"x_next": (moved * feeds["caption"][:, :, None, None]).astype(np.float32)}

    results, calls = [], []
    for batch in (1, together):
        engine = fakes.engine("flow", with_caption)
        engine.inputs = (*engine.inputs, TensorSpec("caption", "float32", ("n", 1)))
        constants = fakes.constants(flow_batch=batch)
        results.append(sample(engine, tokens, start, 2, None, constants, {"caption": caption}))
        calls.append([len(call.feeds["x"]) // 2 for call in engine.calls])
    np.testing.assert_array_equal(*results)
    one_by_one, batched = calls
    tiles = len(one_by_one) // 2
    assert set(one_by_one) == {1}
    assert batched == 2 * [min(together, tiles - i) for i in range(0, tiles, together)]


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, batch=st.integers(1, 2), together=st.integers(1, 5))
def test_a_plan_for_a_picture_covers_its_tiles(
    fakes: Any, height: int, width: int, batch: int, together: int
) -> None:
    constants, engine = fakes.constants(flow_batch=together), fakes.engine("flow")
    sample(engine, grids(height, width, batch), latents(height, width, batch), 1, None, constants)
    size = (width * constants.stride, height * constants.stride)
    profile = profile_for("flow", engine.inputs, constants, [size], [batch])
    for call in engine.calls:
        assert profile.covers(check_tensors("flow", engine.inputs, call.feeds))


def test_a_constant_field_has_no_seams(fakes: Any) -> None:
    start = np.full((1, 4, 22, 18), 3, np.float32)
    tokens = np.full((1, 11, 9), 20, np.int32)
    end = np.asarray(sample(fakes.engine("flow"), tokens, start, 3, None, fakes.constants()))
    np.testing.assert_allclose(end, end[0, 0, 0, 0], rtol=1e-6)


def test_tiles_that_disagree_are_blended_gradually(fakes: Any) -> None:
    def count(feeds: Any) -> dict[str, FloatArray]:
        return {"x_next": np.full_like(feeds["x"], len(engine.calls))}

    engine = fakes.engine("flow", count)
    constants = fakes.constants(flow_overlap=2)
    end = np.asarray(sample(engine, grids(4, 6), latents(4, 6), 1, None, constants))
    expected = [1, 1, 1, 1, 1.125, 1.375, 1.625, 1.875, 2, 2, 2, 2]
    np.testing.assert_allclose(end[0, 0, 0], expected)


@settings(max_examples=30, deadline=None)
@given(height=SIZES, width=SIZES, batch=st.integers(1, 2))
def test_the_decoder_gives_the_same_in_tiles(
    fakes: Any, height: int, width: int, batch: int
) -> None:
    x, engine = latents(height, width, batch) * 30 + 60, fakes.engine("decoder")
    whole = decode_latent(fakes.engine("decoder"), x, fakes.constants(decoder_tile=64))
    tiled = decode_latent(engine, x, fakes.constants())
    assert whole.shape == (batch, 8 * height, 8 * width, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(tiled, whole)
    assert all(max(call.feeds["x"].shape[2:]) <= 2 * (4 + 2) for call in engine.calls)


def test_the_margin_of_the_decoder_is_needed(fakes: Any) -> None:
    x = latents(9, 9) * 30 + 60
    whole = decode_latent(fakes.engine("decoder"), x, fakes.constants(decoder_tile=64))
    seamed = decode_latent(fakes.engine("decoder"), x, fakes.constants(decoder_margin=0))
    assert (seamed != whole).any()


class TestBlankPictures:
    @pytest.mark.parametrize("value", [0, 255])
    @pytest.mark.parametrize("shape", [(2, 2), (9, 3)])
    def test_a_decoder_that_overflows(self, fakes: Any, value: int, shape: Any) -> None:
        def overflow(feeds: Any) -> dict[str, NDArray[np.uint8]]:
            n, _, height, width = feeds["x"].shape
            return {"image": np.full((n, 4 * height, 4 * width, 3), value, np.uint8)}

        engine = fakes.engine("decoder", overflow)
        with pytest.raises(BackendError, match=f"got {value} in every pixel.*onnxruntime-cpu"):
            decode_latent(engine, latents(*shape), fakes.constants())

    @pytest.mark.parametrize("level", [0, -500, 500])
    def test_pictures_that_are_black_or_white(self, fakes: Any, level: float) -> None:
        engine = fakes.engine("decoder")
        latent = latents(3, 4, 2)
        latent[1] = level
        pixels = decode_latent(engine, latent, fakes.constants())
        assert set(np.unique(pixels[1])) == {255 if level > 0 else 0}
        assert len(engine.calls) == 2  # a second look

    def test_one_that_overflows_among_others(self, fakes: Any) -> None:
        def overflow(feeds: Any) -> dict[str, NDArray[np.uint8]]:
            image = fakes.engine("decoder").run(feeds)["image"]
            image[1] = 0
            return {"image": image}

        engine = fakes.engine("decoder", overflow)
        with pytest.raises(BackendError, match="got 0 in every pixel"):
            decode_latent(engine, latents(2, 2, 3), fakes.constants())
