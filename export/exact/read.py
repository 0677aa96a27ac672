"""The way back from the graph of an exact entropy model to its integers, without the onnx package.

Reads what ``percoedge.export.exact.graph`` writes: constants that are stored in a narrow type and
cast to float32, times a power of two for each channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.graph_scan import message_fields, read_varint
from percoedge.engines.contract import GraphSource
from percoedge.errors import BundleError
from percoedge.export.exact.integers import IntArray, IntegerLayer, IntegerMim

_DTYPES = {1: "<f4", 2: "|u1", 3: "|i1", 6: "<i4", 7: "<i8", 10: "<f2"}  # of TensorProto


@dataclass(frozen=True)
class _Node:
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def integers_of(bundle: Bundle) -> IntegerMim:
    """Read the model off a bundle's graph of floats.

    Raises BundleError when the graph is not one of this project's export.
    """
    source = bundle.read("entropy", "fp32")
    try:
        nodes, constants = _graph(source)
        return _model(nodes, constants)
    except (IndexError, KeyError, ValueError) as error:
        raise BundleError(
            f"{bundle.path}: expected an entropy graph as percoedge.export.bundle writes it, got "
            f"one that cannot be read back ({error}); export the bundle again"
        ) from error


def _model(nodes: list[_Node], constants: dict[str, NDArray[Any]]) -> IntegerMim:
    maker = {name: node for node in nodes for name in node.outputs}

    def carried(name: str) -> IntArray:
        """A constant that is stored in a narrow type and cast to float."""
        return constants[maker[name].inputs[0]].astype(np.int64)

    def scaled(name: str) -> tuple[IntArray, IntArray]:
        """The integers of a scaled constant, and the shift per output channel."""
        while maker[name].op in ("Transpose", "Unsqueeze"):
            name = maker[name].inputs[0]
        value, factor = maker[name].inputs
        return carried(value), -np.log2(constants[factor]).astype(np.int64)

    def layer(product: _Node) -> IntegerLayer:
        weight, shift = scaled(product.inputs[1])
        bias, again = scaled(product.inputs[2])
        if not np.array_equal(again, shift):
            raise ValueError(f"{product.op} has two shifts for one channel")
        return IntegerLayer(weight.transpose(2, 0, 1) if weight.ndim == 3 else weight, bias, shift)

    layers = [layer(node) for node in nodes if node.op in ("Conv", "Gemm")]
    tables = [node.inputs[0] for node in nodes if node.op == "Gather"]
    embedding, norm_table, weight_table = tables[0], tables[1], tables[-1]
    triples = zip(layers[0:-1:3], layers[1:-1:3], layers[2:-1:3], strict=True)
    return IntegerMim(
        embedding=carried(embedding),
        blocks=tuple(triples),
        head=layers[-1],
        norm_table=constants[maker[norm_table].inputs[0]].astype(np.float32),
        weight_table=constants[weight_table].astype(np.int64),
    )


# Below, numbers of fields are those of onnx.proto.


def _graph(source: GraphSource) -> tuple[list[_Node], dict[str, NDArray[Any]]]:
    """The nodes in order, and the constants by name, those in files of weights too."""
    nodes: list[_Node] = []
    constants: dict[str, NDArray[Any]] = {}
    for number, graph in _parts(memoryview(source.model)):
        if number != 7:
            continue
        for part, content in _parts(graph):
            if part == 1:
                nodes.append(_node(content))
            elif part == 5:
                name, constants[name] = _constant(content, source)
    return nodes, constants


def _node(data: memoryview) -> _Node:
    parts: dict[int, list[str]] = {1: [], 2: [], 4: []}
    for number, content in _parts(data):
        if number in parts:
            parts[number].append(_string(content))
    return _Node(parts[4][-1], tuple(parts[1]), tuple(parts[2]))


def _constant(data: memoryview, source: GraphSource) -> tuple[str, NDArray[Any]]:
    name, dtype, shape, raw, place = "", 0, [], memoryview(b""), {}
    for number, content in message_fields(data):
        if number == 1:
            shape += _numbers(content)
        elif isinstance(content, int):
            dtype = content if number == 2 else dtype
        elif number == 8:
            name = _string(content)
        elif number == 9:
            raw = content
        elif number == 13:
            entry = dict(_parts(content))
            place[_string(entry[1])] = _string(entry[2])
    if place:
        offset = int(place["offset"])
        raw = memoryview(source.data[place["location"]])[offset : offset + int(place["length"])]
    return name, np.frombuffer(raw, _DTYPES[dtype]).reshape(shape)


def _string(content: memoryview) -> str:
    return str(content, "utf-8")


def _parts(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The fields that are no numbers."""
    for number, content in message_fields(data):
        if isinstance(content, memoryview):
            yield number, content


def _numbers(content: int | memoryview) -> list[int]:
    """Numbers of a repeated field: one that stands alone, or packed ones."""
    if isinstance(content, int):
        return [content]
    numbers, at = [], 0
    while at < len(content):
        number, at = read_varint(content, at)
        numbers.append(number)
    return numbers
