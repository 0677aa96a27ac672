"""Writes the graphs of ``percoedge.engines.tiling``: python -m percoedge.export.graphs.tiling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from percoedge.engines import tiling

_OPSET = 18  # the first whose ReduceSum and Unsqueeze TensorRT 10.3 and ONNX Runtime 1.22 share
_LATENT, _TILES = ("n", "c", "a", "b"), ("t", "c", "y", "x")


def tiling_models() -> dict[str, bytes]:
    """Serialised models by name."""
    return {"cut": _cut(), "blend": _blend()}


def _cut() -> bytes:
    return _model(
        "cut",
        [
            helper.make_node("Transpose", ["x"], ["channels"], perm=[1, 0, 2, 3]),
            helper.make_node("Reshape", ["channels", "flat"], ["cells"]),
            helper.make_node("Unsqueeze", ["rows", "last"], ["down"]),
            helper.make_node("Unsqueeze", ["columns", "second"], ["across"]),
            helper.make_node("Add", ["down", "across"], ["index"]),
            helper.make_node("Gather", ["cells", "index"], ["gathered"], axis=1),
            helper.make_node("Transpose", ["gathered"], ["tiles"], perm=[1, 0, 2, 3]),
        ],
        {"x": _LATENT, "rows": ("t", "y"), "columns": ("t", "x")},
        {"tiles": _TILES},
        {"flat": [0, -1], "last": [2], "second": [1]},
    )


def _blend() -> bytes:
    return _model(
        "blend",
        [
            helper.make_node("Transpose", ["tiles"], ["channels"], perm=[1, 0, 2, 3]),
            helper.make_node("Reshape", ["channels", "flat"], ["cells"]),
            # (n,a,1,k,1) and (b,1,k)
            helper.make_node("Unsqueeze", ["rows", "around_row"], ["down"]),
            helper.make_node("Unsqueeze", ["columns", "before_last"], ["across"]),
            helper.make_node("Add", ["down", "across"], ["index"]),
            helper.make_node("Gather", ["cells", "index"], ["gathered"], axis=1),
            # (a,1,k,1) and (b,1,k)
            helper.make_node("Unsqueeze", ["row_weights", "around_weight"], ["weights_down"]),
            helper.make_node("Unsqueeze", ["column_weights", "before_last"], ["weights_across"]),
            helper.make_node("Mul", ["weights_down", "weights_across"], ["weights"]),
            helper.make_node("Mul", ["gathered", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "last_two"], ["summed"], keepdims=0),
            helper.make_node("Transpose", ["summed"], ["blended"], perm=[1, 0, 2, 3]),
            helper.make_node("Mul", ["x", "keep"], ["kept"]),
            helper.make_node("Add", ["kept", "blended"], ["x_next"]),
        ],
        {
            **{"tiles": _TILES, "rows": ("n", "a", "k"), "columns": ("b", "k")},
            **{"row_weights": ("a", "k"), "column_weights": ("b", "k")},
            **{"x": _LATENT, "keep": (1,)},
        },
        {"x_next": _LATENT},
        {
            **{"flat": [0, -1], "around_row": [2, 4], "before_last": [1]},
            **{"around_weight": [1, 3], "last_two": [4, 5]},
        },
    )


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int | str, ...]],
    outputs: dict[str, tuple[int | str, ...]],
    constants: dict[str, list[int]],
) -> bytes:
    def described(tensors: dict[str, tuple[int | str, ...]]) -> list[onnx.ValueInfoProto]:
        indices = ("rows", "columns")
        return [
            helper.make_tensor_value_info(
                tensor, TensorProto.INT32 if tensor in indices else TensorProto.FLOAT, shape
            )
            for tensor, shape in tensors.items()
        ]

    held = [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, name, described(inputs), described(outputs), held)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="percoedge")
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


if __name__ == "__main__":
    for _kind, _content in tiling_models().items():
        (Path(tiling.__file__).parent / f"{_kind}.onnx").write_bytes(_content)
