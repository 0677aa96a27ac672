"""What a model refers to must be found wherever it hides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from percoedge.engines.bundle.graph_scan import (
    check_model,
    external_locations,
    message_fields,
)
from percoedge.engines.contract import GraphSource
from percoedge.errors import BackendError


@pytest.fixture(scope="module")
def nested() -> bytes:
    """A model with a reference in every place that can hold one."""

    def tensor(location: str) -> TensorProto:
        made = TensorProto(name=location, data_type=TensorProto.FLOAT, dims=[2])
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="offset", value="0")
        made.external_data.add(key="location", value=location)
        return made

    def sparse(location: str) -> onnx.SparseTensorProto:
        return onnx.SparseTensorProto(
            values=tensor(location), indices=tensor(location + "-indices"), dims=[4]
        )

    inner = helper.make_graph([], "inner", [], [], [tensor("subgraph")])
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner)
    node.attribute.append(helper.make_attribute("value", tensor("attribute")))
    node.attribute.append(helper.make_attribute("values", [tensor("attributes")]))
    node.attribute.append(helper.make_attribute("graphs", [inner]))
    node.attribute.append(helper.make_attribute("sparse_value", sparse("sparse")))
    node.attribute.append(helper.make_attribute("sparse_values", [sparse("sparses")]))
    graph = helper.make_graph([node], "outer", [], [], [tensor("initializer")])
    graph.sparse_initializer.append(sparse("sparse-initializer"))
    opset = helper.make_opsetid("", 20)
    call = helper.make_node("Constant", [], ["z"], value=tensor("function"))
    function = helper.make_function("local", "f", [], ["z"], [call], [opset])
    return bytes(helper.make_model(graph, functions=[function]).SerializeToString())


EXPECTED = {
    "attribute",
    "attributes",
    "function",
    "initializer",
    "subgraph",
    *(
        name + end
        for name in ("sparse", "sparses", "sparse-initializer")
        for end in ("", "-indices")
    ),
}


def test_every_place_is_found(nested: bytes) -> None:
    assert external_locations(nested) == EXPECTED


def test_it_agrees_with_the_onnx_package(nested: bytes) -> None:
    def strings(message: Any) -> Iterator[str]:
        for field, value in message.ListFields():
            if field.message_type is None:
                continue
            for item in [value] if hasattr(value, "ListFields") else value:
                if isinstance(item, onnx.StringStringEntryProto) and item.key == "location":
                    yield item.value
                yield from strings(item)

    assert set(strings(onnx.load_from_string(nested))) == external_locations(nested)


def test_models_without_references_have_none(toy: Any) -> None:
    assert external_locations(toy.encoder_model()) == set()


@given(st.binary(max_size=12), st.integers(0, 10_000))
def test_spoilt_models_raise_nothing_else(nested: bytes, junk: bytes, at: int) -> None:
    at %= len(nested)
    try:
        external_locations(nested[:at] + junk + nested[at + len(junk) :])
    except ValueError as error:
        assert str(error).startswith("got ")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (b"\x3a\x7flocation", "got a cut message"),
        (b"location\x0b", "got wire type"),
        (b"\x82\x01\x08location" + b"\xff" * 11, "got a cut or overlong number"),
        (b"\x0a\x08location\x0d\x00", "got a cut message"),
    ],
)
def test_what_is_not_well_formed_is_refused(model: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        external_locations(model)


def test_fields_are_those_of_the_onnx_package() -> None:
    tensor = TensorProto(name="w", dims=[3, 70_000], data_type=TensorProto.INT8, raw_data=b"\1\xff")
    attribute = helper.make_attribute("alpha", 0.5)
    number = onnx.AttributeProto(name="i", i=-2)
    fields = dict(message_fields(memoryview(tensor.SerializeToString())))
    assert (fields[2], bytes(fields[8]), bytes(fields[9])) == (TensorProto.INT8, b"w", b"\1\xff")
    assert dict(message_fields(memoryview(attribute.SerializeToString())))[2] == 0x3F000000
    assert dict(message_fields(memoryview(number.SerializeToString())))[3] == (1 << 64) - 2
    sizes = [v for n, v in message_fields(memoryview(tensor.SerializeToString())) if n == 1]
    assert sizes == [3, 70_000]


def test_a_key_is_not_hidden_behind_a_field_of_another_type() -> None:
    """Readers of the format skip a field whose wire type is not the declared one."""
    entry = b"\x0a\x08location\x12\x01x" + b"\x0d\x00\x00\x00\x00" + b"\x10\x07"
    tensor = b"\x6a" + varint(len(entry)) + entry
    assert TensorProto.FromString(tensor).external_data[0].key == "location"
    graph = b"\x2a" + varint(len(tensor)) + tensor
    assert external_locations(b"\x3a" + varint(len(graph)) + graph) == {"x"}


def test_depth_is_bounded() -> None:
    data = b"location"
    for number in [6, 5, 1] * 40:  # attribute.g, node.attribute, graph.node
        data = bytes([number << 3 | 2]) + varint(len(data)) + data
    with pytest.raises(ValueError, match="nested deeper than 100"):
        external_locations(b"\x3a" + varint(len(data)) + data)


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def source(model: bytes, **data: bytes) -> GraphSource:
    return GraphSource("flow", "fp32", model, data, (), ())


def test_files_beyond_the_manifest_are_refused(nested: bytes) -> None:
    check_model(source(nested, **dict.fromkeys(EXPECTED, b"")))
    names = dict.fromkeys(EXPECTED - {"subgraph"}, b"")
    with pytest.raises(BackendError, match=r"graph 'flow' \(fp32\): .*got \['subgraph'\]"):
        check_model(source(nested, **names))


def test_compiled_engines_are_refused() -> None:
    node = helper.make_node("EPContext", [], ["y"], domain="com.microsoft", ep_cache_context=b"")
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([node], "g", [], [output])
    with pytest.raises(BackendError, match="got a compiled engine"):
        check_model(source(helper.make_model(graph).SerializeToString()))


def test_broken_models_are_named() -> None:
    with pytest.raises(BackendError, match="expected an ONNX model, got wire type"):
        check_model(source(b"location\x0b"))
