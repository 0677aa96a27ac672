"""What is put into graphs to compute in bytes, and the ranges it rests on."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from percoedge.export.config import Config
from percoedge.export.exact.integers import WEIGHT_MAX
from percoedge.export.graphs.int8.builder import Affine, Int8Graph
from percoedge.export.graphs.int8.calibration import layer_ranges
from percoedge.export.graphs.int8.decoder import int8_decoder
from percoedge.export.graphs.modules import graph_plans
from percoedge.export.models.percov2.family import Family

RNG = np.random.default_rng(0)
RANGE = (np.zeros(3, np.float32), np.array([0.5, 2.55, 1.0], np.float32))


def model(inputs: int, outputs: int, **constants: NDArray[np.float32]) -> onnx.ModelProto:
    """x (n,inputs) -> y (n,outputs), with constants and no node yet."""
    graph = helper.make_graph(
        [],
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def run(proto: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(proto.SerializeToString())
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


@pytest.mark.parametrize(
    "low, high", [(-1.0, 3.0), (0.0, 5.0), (-2.0, 0.0), (1.0, 2.0), (0.0, 0.0)]
)
def test_bytes_cover_a_range_and_zero(low: float, high: float) -> None:
    affine = Affine.over(np.array([low]), np.array([high]))
    ends = affine.step * (np.array([0, 255]) - float(affine.zero))
    assert ends[0] <= min(low, 0) + affine.step / 2
    assert ends[1] >= max(high, 0) - affine.step / 2


def test_what_is_beyond_the_range_becomes_its_end() -> None:
    graph = Int8Graph(model(3, 3))
    graph.add("Identity", graph.dequantize(graph.quantize("x", Affine.over(*RANGE))), output="y")
    values = run(graph.finish(), np.array([[-4.0, 1.234, 9.0]], np.float32))
    np.testing.assert_allclose(values, [[0.0, 1.23, 2.55]], rtol=1e-6)


def test_a_linear_layer_is_close_and_keeps_zero_channels() -> None:
    weight = RNG.standard_normal((64, 32)).astype(np.float32)
    weight[:, 7] = 0
    bias = RNG.standard_normal(32).astype(np.float32)
    graph = Int8Graph(model(64, 32, weight=weight, bias=bias))
    x = RNG.standard_normal((50, 64)).astype(np.float32)
    entering = graph.quantize("x", Affine.over(x.min(0), x.max(0)))
    graph.linear(entering, graph.weights("weight", weight, 1), "bias", "y")
    found, expected = run(graph.finish(), x), x @ weight + bias
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    np.testing.assert_array_equal(found[:, 7], np.full(50, bias[7]))


def test_pairs_of_products_fit_into_sixteen_bits() -> None:
    """Else x86 CPUs without VNNI give other sums than those with it."""
    weight = RNG.standard_normal((16, 8)).astype(np.float32)
    graph = Int8Graph(model(16, 8, weight=weight))
    integers = graph.weights("weight", weight, 1)
    graph.add("Cast", integers.name, to=TensorProto.FLOAT, output="y")
    largest = np.abs(run(graph.finish(), np.zeros((1, 16), np.float32))).max()
    assert largest == WEIGHT_MAX
    assert 2 * 255 * largest < 1 << 15


def test_ranges_are_those_of_encoder_flow_and_decoder(family: Family, config: Config) -> None:
    ranges = layer_ranges(family, config)
    layers = {
        name
        for name, module in family.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        and not name.startswith(("mim.", "quantizer."))
    }
    assert len(layers) > 20 and layers <= ranges.keys()
    again = layer_ranges(family, config)
    for name, found in ranges.items():
        for end in ("low_in", "high_in", "low_out", "high_out"):
            values = getattr(found, end)
            assert ((values <= 0) if "low" in end else (values >= 0)).all()
            np.testing.assert_array_equal(values, getattr(again[name], end))
    assert not any(module._forward_hooks for module in family.modules())


def test_channels_without_weights_give_their_bias(family: Family, config: Config) -> None:
    vae = copy.deepcopy(family.vae)
    with torch.no_grad():
        vae.decoder[1].conv2.weight[3] = 0
        vae.decoder[1].conv2.weight[4] *= 1e-12
        vae.decoder[1].conv2.bias[3:5] = 0.25
    changed = copy.deepcopy(family)
    changed.vae = vae
    plan = graph_plans(config)["decoder"]
    names = ("x", "image")
    latent = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = plan.build(changed, torch.float32)(latent).numpy()
    graph = helper.make_graph(
        [],
        "decoder",
        [helper.make_tensor_value_info(names[0], TensorProto.FLOAT, ["n", 4, "H", "W"])],
        [helper.make_tensor_value_info(names[1], TensorProto.UINT8, ["n", "Y", "X", 3])],
        [
            numpy_helper.from_array(value.numpy(), f"vae.{name}")
            for name, value in vae.state_dict().items()
            if name.startswith("decoder.")
        ],
    )
    opsets = [helper.make_opsetid("", 20)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    found = run(int8_decoder(proto, changed, layer_ranges(changed, config)), latent.numpy())
    assert np.abs(found.astype(int) - expected).mean() < 4
