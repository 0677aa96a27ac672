"""The report on FP16: what every runner makes of a graph, and overflow that others hide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.engines.selection import select
from percoedge.export.checks.fp16_report import Reference, format_report, fp16_report
from percoedge.export.config import load_config
from percoedge.export.training.warm_start import family_from_bundle


def test_every_runner_agrees_with_pytorch() -> None:
    bundle, config = Bundle.open("tiny"), load_config("tiny")
    family = family_from_bundle(bundle, config)
    rows = fp16_report(family, config, bundle, [select("onnxruntime-cpu:fp16")])
    table = {row["graph"]: row for row in rows}
    assert table.keys() == set(bundle.kinds)
    for kind, row in table.items():
        runners = [name for name in row["errors"] if not name.startswith("onnxruntime")]
        assert runners == ["torch fp16", "reference fp16"][kind == "entropy" :]
        assert {"onnxruntime-cpu fp32", "onnxruntime-cpu fp16"} < row["errors"].keys()
        errors = [error for name, error in row["errors"].items() if not name.endswith("int8")]
        assert max(errors) <= {"entropy": 0, "encoder": 0.2}.get(kind, 0.01), row
    assert table["entropy"]["largest"] == 0 and 0 < table["flow"]["largest"] < 65504
    lines = format_report(rows).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == list(table)


def squares(nodes: Sequence[onnx.NodeProto]) -> GraphSource:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in "xy")
    graph = helper.make_graph(nodes, "squares", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    specs = [(TensorSpec(n, "float32", (2,)),) for n in "xy"]
    return GraphSource("flow", "fp16", model.SerializeToString(), {}, *specs)


def test_the_reference_tells_of_overflow_inside() -> None:
    """x * x / x in FP16: 300 * 300 is more than it holds."""
    reference = Reference(
        squares(
            [
                helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
                helper.make_node("Mul", ["half", "half"], ["square"]),
                helper.make_node("Div", ["square", "half"], ["again"]),
                helper.make_node("Cast", ["again"], ["y"], to=TensorProto.FLOAT),
            ]
        )
    )
    small = reference({"x": np.array([3, 200], np.float32)})
    np.testing.assert_allclose(small["y"], [3, 200], rtol=1e-3)
    assert reference.largest == 40000
    assert np.isinf(reference({"x": np.array([3, 300], np.float32)})["y"][1])
    assert np.isinf(reference.largest)
