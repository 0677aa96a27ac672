"""The right answers: the integers of an entropy graph, read back from its file, run in int64.

No inference library takes part: the integers come out of the file's constants, and
percoedge.export.exact computes with them in numpy. test_reference.py proves that nothing of the
graph is overlooked, by building the graph anew from what was read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from cases import Case, digest
from numpy.typing import NDArray
from onnx import numpy_helper

from percoedge.export.exact import IntegerLayer, IntegerMim, reference_weights


def integers_of_graph(graph: onnx.GraphProto) -> IntegerMim:
    """Read the model off a graph that ``export.exact.entropy_graph`` built."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    maker = {name: node for node in graph.node for name in node.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)

    def carried(name: str) -> NDArray[np.int64]:
        """A constant that is stored in a narrow type and cast to float."""
        stored: NDArray[Any] = constants[maker[name].input[0]]
        return stored.astype(np.int64)

    def constant_input(node: onnx.NodeProto) -> NDArray[Any]:
        return next(constants[name] for name in node.input if name in constants)

    def layer(product: onnx.NodeProto) -> IntegerLayer:
        weight, last = carried(product.input[1]), product
        if product.op_type == "Conv":
            weight, offset = weight[:, 0], carried(product.input[2])
        else:
            (last,) = users[product.output[0]]  # Add
            offset = carried(last.input[1])
        (scale,) = users[last.output[0]]  # Mul
        shift = -np.log2(constant_input(scale).ravel()).astype(np.int64)
        return IntegerLayer(weight, offset - (1 << (shift - 1)), shift)

    layers = [layer(node) for node in graph.node if node.op_type in ("Conv", "MatMul")]
    tables = [node.input[0] for node in graph.node if node.op_type == "Gather"]
    embedding, norm_table, weight_table = tables[0], tables[1], tables[-1]
    triples = zip(layers[0:-1:3], layers[1:-1:3], layers[2:-1:3], strict=True)
    return IntegerMim(
        embedding=carried(embedding),
        blocks=tuple(triples),
        head=layers[-1],
        norm_table=constants[norm_table],
        weight_table=constants[weight_table].astype(np.int64),
    )


def answered(model: IntegerMim, cases: Iterable[Case]) -> list[Case]:
    """The cases with the digests of the right weights; each grid is computed by itself."""
    return [
        dataclasses.replace(
            case,
            digests=tuple(
                digest(
                    reference_weights(
                        model, grid[None].astype(np.int64), case.positions.astype(np.int64)
                    )[0]
                )
                for grid in case.tokens
            ),
        )
        for case in cases
    ]
