"""The report on FP16: what every runner makes of a graph, and overflow that others hide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from percoedge.engines.backends import select
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.export.bundle import export_bundle
from percoedge.export.config import Config
from percoedge.export.family import Family
from percoedge.export.fp16_report import Reference, format_report, fp16_report


def test_every_runner_agrees_with_pytorch(family: Family, config: Config, tmp_path: Path) -> None:
    bundle = export_bundle(
        family, config, tmp_path, name="micro", licence="Apache-2.0", variants=("fp16",)
    )
    rows = fp16_report(family, config, bundle, [select("onnxruntime-cpu:fp16")])
    table = {row["graph"]: row for row in rows}
    assert table.keys() == set(bundle.kinds)
    for kind, row in table.items():
        torch_runner = [] if kind == "entropy" else ["torch fp16"]
        expected = [*torch_runner, "reference fp16", "onnxruntime-cpu fp16"]
        assert list(row["errors"]) == expected
        assert max(row["errors"].values()) <= {"entropy": 0, "encoder": 0.2}.get(kind, 0.02), row
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
