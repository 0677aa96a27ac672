"""Tiles that stay on the device give what the host's cutting and blending gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import TensorSpec, check_tensors
from percoedge.engines.fake import FakeBuffer, FakeEngine
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.plans.profiles import profile_for
from percoedge.engines.tiling import TILING, tiling_graph
from percoedge.runtime.bench.alone import graphs_alone
from percoedge.runtime.flow import decode_latent, noise, sample
from percoedge.runtime.tiling.device import cut_feeds
from percoedge.runtime.tiling.tiles import Tile, context_tiles

SIZES = st.integers(1, 11)


class Counted:
    """An engine of ONNX Runtime on the fakes' device; notes the sizes of its runs."""

    def __init__(self, kind: str) -> None:
        self.engine: Any = OnnxRuntimeBackend(threads=1).load(tiling_graph(kind))
        self.inputs, self.outputs, self.max_batch = self.engine.inputs, self.engine.outputs, 64
        self.sizes: list[dict[str, int]] = []

    def run(self, feeds: Any, *, on_device: bool = False) -> Any:
        assert on_device
        self.sizes.append(check_tensors("", self.inputs, feeds))
        host = {
            name: feed._array if isinstance(feed, FakeBuffer) else np.asarray(feed)
            for name, feed in feeds.items()
        }
        return self.engine.run(host, on_device=True)


@pytest.fixture(scope="module")
def tilers() -> dict[str, Any]:
    return {kind: Counted(kind) for kind in TILING}


def conditioned(fakes: Any) -> FakeEngine:
    """A flow that depends on the place in a tile, on tokens and on the image's caption."""

    def function(feeds: Any) -> dict[str, Any]:
        x = feeds["x"] * 0.5 + feeds["tokens"].mean((1, 2))[:, None, None, None]
        slope = np.arange(x.shape[-1]) - np.arange(x.shape[-2])[:, None]
        return {"x_next": ((x + slope) * feeds["caption"][:, :, None, None]).astype(np.float32)}

    engine: FakeEngine = fakes.engine("flow", function)
    engine.inputs = (*engine.inputs, TensorSpec("caption", "float32", ("n", 1)))
    return engine


@settings(max_examples=40, deadline=None)
@given(
    height=SIZES,
    width=SIZES,
    overlap=st.integers(0, 2),
    count=st.integers(1, 3),
    most=st.integers(1, 12),
)
def test_the_device_blends_what_the_host_blends(
    fakes: Any, tilers: Any, height: int, width: int, overlap: int, count: int, most: int
) -> None:
    start = np.stack([noise(seed, 4, 2 * height, 2 * width) for seed in range(count)])
    tokens = np.random.default_rng(5).integers(0, 64, (count, height, width), np.int32)
    constants = fakes.constants(flow_overlap=overlap, flow_batch=most)
    caption = {"caption": np.arange(1, count + 1, dtype=np.float32)[:, None]}
    args = (tokens, start, 2, None, constants, caption)
    wanted = np.asarray(sample(conditioned(fakes), *args))
    flow = conditioned(fakes)
    flow.max_batch = count * most
    for one in tilers.values():
        one.sizes.clear()
    got = sample(flow, *args, tilers)
    assert flow.fetches == 0 or max(height, width) <= constants.flow_tile
    np.testing.assert_allclose(np.asarray(got), wanted, rtol=1e-4, atol=1e-3)
    size = (width * constants.stride, height * constants.stride)
    for kind, one in tilers.items():
        profile = profile_for(kind, (*one.inputs, *one.outputs), constants, [size], [count])
        assert all(profile.covers(sizes) for sizes in one.sizes)


def test_tiles_go_through_in_as_few_runs_as_rectangles_allow(fakes: Any, tilers: Any) -> None:
    """Of 5x4 tiles; a run of the flow has one of each graph around it."""
    tokens, start = np.zeros((1, 13, 10), np.int32), noise(1, 4, 26, 20)[None]
    constants = fakes.constants(flow_overlap=1)
    for most, runs in ((1, 12), (3, 4), (5, 3), (6, 2), (12, 1), (32, 1)):
        flow = fakes.engine("flow")
        flow.max_batch = most
        for one in tilers.values():
            one.sizes.clear()
        sample(flow, tokens, start, 2, None, constants, None, tilers)
        assert len(flow.calls) == 2 * runs
        assert [len(one.sizes) for one in tilers.values()] == [2 * runs] * 2
        assert all(call.on_device for call in flow.calls)


def test_what_is_not_finite_stays_so(fakes: Any, tilers: Any) -> None:
    tokens, start = np.zeros((1, 6, 6), np.int32), noise(1, 4, 12, 12)[None]
    start[0, 1, 3, 3] = np.nan
    flow = fakes.engine("flow")
    flow.max_batch = 1
    end = sample(flow, tokens, start, 3, None, fakes.constants(), None, tilers)
    assert np.isnan(np.asarray(end)).any()


@settings(max_examples=20, deadline=None)
@given(height=SIZES, width=SIZES, count=st.integers(1, 2), most=st.integers(1, 5))
def test_the_decoder_takes_tiles_of_one_shape_together(
    fakes: Any, tilers: Any, height: int, width: int, count: int, most: int
) -> None:
    """From the device, and from the host."""
    latent = 60 + 30 * np.stack([noise(s, 4, 2 * height, 2 * width) for s in range(count)])
    constants = fakes.constants()
    wanted = decode_latent(fakes.engine("decoder"), latent, constants)
    pairs = context_tiles(height, width, constants.decoder_tile, constants.decoder_margin)
    for here, cut in ((FakeBuffer(latent), tilers["cut"]), (latent, None)):
        decoder = fakes.engine("decoder")
        decoder.max_batch = count * most
        np.testing.assert_array_equal(decode_latent(decoder, here, constants, cut), wanted)
        shapes = [call.feeds["x"].shape for call in decoder.calls]
        assert len({shape[1:] for shape in shapes}) == 1
        assert len(shapes) == -(-len(pairs) // most)
        assert sum(shape[0] for shape in shapes) == count * len(pairs)


def test_bench_knows_these_graphs() -> None:
    tiny = Bundle.open("tiny")
    tiles = [Tile(0, 8, 0, 8), Tile(0, 8, 4, 12)]
    x = noise(1, 16, 8, 12)[None]
    feeds = {"cut": {"x": x, **cut_feeds(tiles, 1, (8, 12))}}
    (row,) = graphs_alone(tiny, OnnxRuntimeBackend(threads=1), feeds, 0.01)
    assert (row["graph"], row["sizes"]["t"]) == ("cut", 2)
