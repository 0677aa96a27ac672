"""Looks into a serialised ONNX model for what must not be left to a runtime: file names, engines.

A model can name files that hold its weights, and some runtimes read any path on the machine for it.
It can also carry a compiled engine (an ``EPContext`` node), which runs its own code. This is a walk
over the protocol-buffer encoding of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto that
follows only the fields which lead there, so that no ONNX package is needed at run time.
``message_fields`` reads one message of that encoding for whoever looks for something else.
"""

from __future__ import annotations

from collections.abc import Iterator

from percoedge.engines.contract import GraphSource
from percoedge.errors import BackendError

__all__ = ["check_model", "external_locations", "message_fields", "read_varint"]

# message -> field number -> message in that field
_PATHS: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 25: "Function"},
    "Function": {7: "Node"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {
        5: "Tensor",
        6: "Graph",
        10: "Tensor",
        11: "Graph",
        22: "SparseTensor",
        23: "SparseTensor",
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_MAX_DEPTH = 100
_VARINT, _LENGTH_DELIMITED = 0, 2  # wire types
_FIXED_BYTES = {1: 8, 5: 4}
_MOST = (1 << 64) - 1


def check_model(source: GraphSource) -> None:
    """Refuse a model that names files beyond ``source.data`` or carries a compiled engine.

    Raises BackendError.
    """
    where = f"graph {source.kind!r} ({source.variant})"
    if b"EPContext" in source.model:
        raise BackendError(
            f"{where}: expected standard operators, got a compiled engine (EPContext), which would "
            "run its own code; export the graph without it"
        )
    try:
        unlisted = external_locations(source.model) - source.data.keys()
    except ValueError as error:
        raise BackendError(
            f"{where}: expected an ONNX model, {error}; export the graph again"
        ) from error
    if unlisted:
        raise BackendError(
            f"{where}: expected external data in {sorted(source.data) or 'no file'}, got "
            f"{sorted(unlisted)}; list these files in the manifest"
        )


def external_locations(model: bytes) -> set[str]:
    """File names that the tensors of a serialised ModelProto refer to, as written there.

    Raises ValueError when the bytes are not well-formed.
    """
    if b"location" not in model:  # the key stands in every reference; most models have none
        return set()
    return set(_walk(memoryview(model), "Model", 0))


def message_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and content of every field of one protocol-buffer message, in order.

    The content is an unsigned int for a number, whatever its wire type, and the bytes of a string,
    a message or packed numbers, which are not copied. Nothing beyond ``data`` is read. Raises
    ValueError when the bytes are not well-formed.
    """
    at, end = 0, len(data)
    while at < end:
        tag, at = read_varint(data, at)
        wire = tag & 7
        if wire == _VARINT:
            value, at = read_varint(data, at)
            yield tag >> 3, value
            continue
        if wire == _LENGTH_DELIMITED:
            size, at = read_varint(data, at)
        elif wire in _FIXED_BYTES:
            size = _FIXED_BYTES[wire]
        else:
            raise ValueError(f"got wire type {wire}")
        if size > end - at:
            raise ValueError("got a cut message")
        content = data[at : at + size]
        at += size
        yield tag >> 3, content if wire == _LENGTH_DELIMITED else int.from_bytes(content, "little")


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a base-128 number of at most 10 bytes; returns it and the position behind it.

    Raises ValueError when it is cut or longer.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & _MOST, at
    raise ValueError("got a cut or overlong number")


def _walk(data: memoryview, message: str, depth: int) -> Iterator[str]:
    """Yield the external locations below one message."""
    if depth > _MAX_DEPTH:
        raise ValueError(f"got messages nested deeper than {_MAX_DEPTH}")
    inner = [(n, value) for n, value in message_fields(data) if isinstance(value, memoryview)]
    if message == "Entry":
        entry = dict(inner)
        if bytes(entry.get(1, b"")) == b"location":
            yield bytes(entry.get(2, b"")).decode("utf-8", errors="replace")
        return
    paths = _PATHS[message]
    for number, value in inner:
        if number in paths:
            yield from _walk(value, paths[number], depth + 1)
