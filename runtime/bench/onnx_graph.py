"""Reads the graph of an ONNX model for counting: nodes, attributes, shapes of weights.

A reader of the protocol-buffer encoding of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto, for models that a backend has loaded: it
needs no ONNX package and skips the contents of weights. Subgraphs and local functions, which the
exporter does not write, are not followed.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Graph", "Node", "Weight", "read_graph"]

_SMALL = 64  # elements: shapes, axes and scales are read, weights are not
_DTYPES = {
    **{1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64"},
    **{9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64"},
}
_TYPED_DATA = {4: "<f4", 10: "<f8"}  # float_data, double_data
_DOMAINS = {"", "ai.onnx", "com.microsoft"}  # their operators have different names, or one meaning
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class Weight:
    """An initializer or constant; ``value`` only of small ones."""

    shape: tuple[int, ...]
    dtype: str
    value: NDArray[Any] | None = None


@dataclass(frozen=True)
class Node:
    """An operation; a missing optional input or output is an empty name.

    ``attributes`` are int, float, str, tuple of one of these, or Weight.
    """

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """Nodes in the order in which they run, and weights by name."""

    nodes: tuple[Node, ...]
    weights: dict[str, Weight]


def read_graph(model: bytes) -> Graph:
    """Read a serialised ModelProto. Raises ValueError when it is none, or of unknown types."""
    nodes: list[Node] = []
    weights: dict[str, Weight] = {}
    try:
        for number, content in _fields(memoryview(model)):
            if number != 7:
                continue
            for part, data in _fields(content):
                if part == 1:
                    nodes.append(_node(data))
                elif part == 5:
                    name, weight = _weight(data)
                    weights[name] = weight
    except (IndexError, KeyError, TypeError, struct.error) as error:
        raise ValueError(f"expected an ONNX model, got {error!r}; export it again") from error
    return Graph(tuple(nodes), weights)


def _node(data: memoryview) -> Node:
    inputs, outputs, attributes, op, domain = [], [], {}, "", ""
    for number, value in _fields(data):
        if number == 1:
            inputs.append(_string(value))
        elif number == 2:
            outputs.append(_string(value))
        elif number == 4:
            op = _string(value)
        elif number == 5:
            name, content = _attribute(value)
            attributes[name] = content
        elif number == 7:
            domain = _string(value)
    if domain not in _DOMAINS:
        op = f"{domain}.{op}"
    return Node(op, tuple(inputs), tuple(outputs), attributes)


def _attribute(data: memoryview) -> tuple[str, Any]:
    name = ""
    single: Any = None
    several: list[Any] = []
    for number, value in _fields(data):
        if number == 1:
            name = _string(value)
        elif number == 2:
            (single,) = struct.unpack("<f", value)
        elif number == 3:
            single = _signed(value)
        elif number == 4:
            single = _string(value)
        elif number == 5:
            single = _weight(value)[1]
        elif number == 7:
            several += struct.unpack(f"<{len(value) // 4}f", value)
        elif number == 8:
            several += _integers(value)
        elif number == 9:
            several.append(_string(value))
    return name, tuple(several) if several else single


def _weight(data: memoryview) -> tuple[str, Weight]:
    name, dtype, typed, contents = "", "", "", b""
    dims: list[int] = []
    integers: list[int] = []
    for number, content in _fields(data):
        if number == 1:
            dims += _integers(content)
        elif number == 2:
            if content not in _DTYPES:
                raise ValueError(f"expected a numeric weight, got ONNX's data type {content}")
            dtype = _DTYPES[content]
        elif number == 8:
            name = _string(content)
        elif number == 9:
            contents = bytes(content[: 8 * _SMALL])
        elif number in _TYPED_DATA:
            typed = _TYPED_DATA[number]
            contents += bytes(content)
        elif number in (5, 7):  # int32_data, int64_data
            integers += _integers(content)
    shape = tuple(dims)
    count = int(np.prod(shape, dtype=np.int64))
    value: NDArray[Any] | None = None
    if count <= _SMALL and integers:
        raw = np.array(integers, np.int64)
        half = dtype == "float16"  # its bits lie in int32_data
        value = raw.astype(np.uint16).view(np.float16) if half else raw.astype(dtype)
    elif count <= _SMALL and contents:
        value = np.frombuffer(contents, typed or np.dtype(dtype).newbyteorder("<"))
    if value is not None and value.size == count:
        return name, Weight(shape, dtype, value.reshape(shape))
    return name, Weight(shape, dtype)


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and content of every field: an int for a varint, else the bytes."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"expected an ONNX model, got wire type {wire}")
        if size > end - at:
            raise ValueError("expected a whole ONNX model, got a cut message")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _integers(value: int | memoryview) -> list[int]:
    """Signed integers of one field: one that stands alone, or several that are packed."""
    if isinstance(value, int):
        return [_signed(value)]
    numbers, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(_signed(number))
    return numbers


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _string(value: memoryview) -> str:
    return bytes(value).decode("utf-8", errors="replace")
