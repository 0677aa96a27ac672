"""Graphs beside PyTorch: what every source makes of a graph, and overflow that others hide."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.export.checks.__main__ import main
from percoedge.export.checks.reference import Reference


@pytest.mark.slow
def test_every_source_agrees_with_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, on the shipped bundle."""
    bundle, file = Bundle.open("tiny"), tmp_path / "checks.json"
    options = ["tiny", "--backend", "onnxruntime-cpu:fp16", "--save", str(file)]
    monkeypatch.setattr(sys, "argv", ["checks", *options])
    assert main() == 0
    record = json.loads(file.read_text())
    rows = record["differences"]
    cpu = "onnxruntime-cpu"
    for kind in bundle.kinds:
        sources = [row["b"] for row in rows if row["graph"] == kind]
        variants = [f"{cpu} {variant}" for variant in bundle.manifest.graphs[kind].variants]
        torch_half = [] if kind == "entropy" else ["torch fp16"]
        assert sources == [*torch_half, "reference fp16", *variants, f"{cpu} fp16"]
    assert {row["a"] for row in rows} == {"torch fp32"} and all(row["ok"] for row in rows)
    largest = record["largest_fp16"]
    assert largest["entropy"] == 0 and 0 < largest["flow"] < 65504
    assert record["fingerprint"] == bundle.fingerprint.hex()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + len(rows) + 1 and printed[0].split()[:2] == ["graph", "output"]


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
