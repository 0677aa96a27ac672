"""Counting a graph: shapes are those of a real run, operations those that PyTorch counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import GraphSource, split_axis
from percoedge.runtime.bench.graph_cost import GraphCost, cost_of
from percoedge.runtime.bench.onnx_graph import read_graph
from percoedge.runtime.bench.shape_rules import Tensor
from percoedge.runtime.bench.shapes import shapes_of

SIZES = {"n": 2, "h": 6, "w": 10, "p": 7}


def inputs_of(source: GraphSource, sizes: dict[str, int]) -> dict[str, Tensor]:
    inputs = {}
    for spec in source.inputs:
        pairs = [(axis, 0) if isinstance(axis, int) else split_axis(axis) for axis in spec.shape]
        shape = tuple(n if not symbol else n * sizes[str(symbol)] for n, symbol in pairs)
        inputs[spec.name] = Tensor(shape, spec.dtype)
    return inputs


def cost(source: GraphSource, sizes: dict[str, int]) -> GraphCost:
    outputs = tuple(spec.name for spec in source.outputs)
    return cost_of(read_graph(source.model), inputs_of(source, sizes), outputs)


def variants() -> list[tuple[str, str]]:
    graphs = Bundle.open("tiny").manifest.graphs
    names = [(kind, name) for kind, graph in graphs.items() for name in graph.variants]
    return [(kind, name) for kind, name in names if name != "fp16"]  # not for a CPU


@pytest.mark.parametrize(("kind", "variant"), variants())
def test_shapes_are_those_of_a_run(kind: str, variant: str) -> None:
    source = Bundle.open("tiny").read(kind, variant)
    inputs = inputs_of(source, SIZES)
    counted = shapes_of(read_graph(source.model), inputs)
    model = onnx.load_from_string(source.model)
    own = {output.name for output in model.graph.output}
    inner = [name for node in model.graph.node for name in node.output if name and name not in own]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = list(source.data)
    contents = [source.data[name] for name in names]
    options.add_external_initializers_from_files_in_memory(names, contents, [*map(len, contents)])
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    feeds = {name: np.zeros(tensor.shape, tensor.dtype) for name, tensor in inputs.items()}
    found = dict(zip(inner, session.run(inner, feeds), strict=True))
    assert found
    expected = {name: (array.shape, array.dtype.name) for name, array in found.items()}
    assert {name: (counted[name].shape, counted[name].dtype) for name in inner} == expected
    for name, array in found.items():
        if counted[name].value is not None:
            np.testing.assert_array_equal(counted[name].value, array)


def test_variants_do_the_same_work() -> None:
    bundle = Bundle.open("tiny")
    one = {**SIZES, "n": 1}  # of more pictures, int8 embeds the timestep once
    by_variant = {
        name: cost(bundle.read("flow", name), one)
        for name in bundle.manifest.graphs["flow"].variants
    }
    operations = {one.float_ops + one.int8_ops for one in by_variant.values()}
    assert len(operations) == 1, by_variant
    assert by_variant["fp32"].int8_ops == 0
    assert by_variant["fp16"].weight_bytes == pytest.approx(
        by_variant["fp32"].weight_bytes / 2, rel=0.001
    )
    assert by_variant["fp32"].weight_bytes == pytest.approx(
        2 * bundle.manifest.graphs["flow"].variants["fp32"].data[0].size, rel=0.02
    )


def test_operations_are_those_that_pytorch_counts() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from percoedge.export.config import load_config
    from percoedge.export.graphs.modules import DecoderGraph, FlowGraph
    from percoedge.export.models.family import Family

    family = Family(load_config("tiny")).eval()
    bundle = Bundle.open("tiny")
    modules = {
        "flow": FlowGraph(family, torch.float32),
        "decoder": DecoderGraph(family, torch.float32),
    }
    for kind, module in modules.items():
        source = bundle.read(kind, "fp32")
        feeds = {
            name: torch.zeros(tensor.shape, dtype=getattr(torch, tensor.dtype))
            for name, tensor in inputs_of(source, SIZES).items()
        }
        plain = sdpa_kernel(SDPBackend.MATH)  # the counter knows no other one of a CPU
        with torch.inference_mode(), plain, FlopCounterMode(display=False) as counter:
            module(**feeds)
        assert cost(source, SIZES).float_ops == pytest.approx(counter.get_total_flops(), rel=0.002)


class TestSmallGraphs:
    def model(self, *nodes: Any, weights: dict[str, Any] | None = None) -> bytes:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        stored = [numpy_helper.from_array(w, name) for name, w in (weights or {}).items()]
        graph = helper.make_graph(nodes, "g", [x], [y], stored)
        return bytes(helper.make_model(graph).SerializeToString())

    def count(self, model: bytes, *shape: int) -> GraphCost:
        return cost_of(read_graph(model), {"x": Tensor(shape, "float32")}, ("y",))

    def test_a_product(self) -> None:
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        model = self.model(node, weights={"w": np.zeros((8, 3), np.float32)})
        assert self.count(model, 5, 4, 8) == GraphCost(
            float_ops=2 * 5 * 4 * 8 * 3,
            int8_ops=0,
            weight_bytes=8 * 3 * 4,
            io_bytes=(5 * 4 * 8 + 5 * 4 * 3) * 4,
            traffic_bytes=(8 * 3 + 5 * 4 * 8 + 5 * 4 * 3) * 4,
        )

    def test_a_grouped_convolution(self) -> None:
        node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 2], pads=[1] * 4, group=2)
        model = self.model(node, weights={"w": np.zeros((6, 2, 3, 3), np.float32)})
        assert self.count(model, 1, 4, 8, 8).float_ops == 2 * (6 * 4 * 4) * 2 * 9

    def test_views_and_what_is_known_beforehand_cost_nothing(self) -> None:
        nodes = (
            helper.make_node("Cast", ["half"], ["w"], to=TensorProto.FLOAT),
            helper.make_node("Shape", ["x"], ["s"]),
            helper.make_node("Reshape", ["x", "s"], ["z"]),
            helper.make_node("Add", ["z", "w"], ["y"]),
        )
        model = self.model(*nodes, weights={"half": np.zeros(4, np.float16)})
        assert self.count(model, 3, 4) == GraphCost(0, 0, 16, 96, 96 + 16)

    def test_an_unknown_operator_is_named(self) -> None:
        model = self.model(helper.make_node("NonMaxSuppression", ["x"], ["y"]))
        with pytest.raises(ValueError, match="got NonMaxSuppression"):
            self.count(model, 3)

    def test_sizes_that_depend_on_contents_are_refused(self) -> None:
        cast = helper.make_node("Cast", ["x"], ["s"], to=TensorProto.INT64)
        model = self.model(cast, helper.make_node("Reshape", ["x", "s"], ["y"]))
        with pytest.raises(ValueError, match="shapes that follow from those of the inputs"):
            self.count(model, 3)

    @pytest.mark.parametrize("data", [b"nonsense", b"\x3a\x05\x0a", b"\x3a\x04\x0a\x02\x22\x09"])
    def test_bytes_that_are_no_model(self, data: bytes) -> None:
        with pytest.raises(ValueError, match="ONNX model"):
            read_graph(data)
