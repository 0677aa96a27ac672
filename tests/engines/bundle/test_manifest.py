"""The manifest: what it may hold, and that nothing else gets through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import (
    CodecConstants,
    check_file_name,
    decode_manifest,
    encode_manifest,
    fingerprint_of,
)
from percoedge.errors import BundleError


@pytest.fixture
def document(pristine: Path) -> Any:
    return json.loads((pristine / "manifest.json").read_bytes())


def decode(document: Any) -> None:
    decode_manifest(json.dumps(document).encode(), "here")


def test_it_survives_a_round_trip(bundle: Bundle) -> None:
    data = encode_manifest(bundle.manifest)
    assert decode_manifest(data, "here") == bundle.manifest
    assert data.endswith(b"}\n")


def test_the_fingerprint_is_frozen(constants: CodecConstants) -> None:
    # SHA-256 of "1111.. 4 256 qlds-8 64\n", the digit 64 times
    fingerprint = fingerprint_of("1" * 64, constants)
    assert fingerprint == "ea953c2666aec83661fda7f6ea3a62b6d6475d91c7fdf48af2d15910009c5882"


def test_how_streams_are_read_decides_the_fingerprint_and_nothing_else(
    constants: CodecConstants,
) -> None:
    fingerprint = fingerprint_of("1" * 64, constants)
    assert fingerprint_of("2" * 64, constants) != fingerprint
    for change in ({"stride": 8}, {"codebook_size": 99}, {"schedule": "var"}, {"entropy_tile": 9}):
        assert fingerprint_of("1" * 64, msgspec.structs.replace(constants, **change)) != fingerprint
    later = msgspec.structs.replace(constants, steps=1, guidance=2.0, flow_tile=99, flow_overlap=1)
    assert fingerprint_of("1" * 64, later) == fingerprint


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["extra"], 1, "unknown field `extra`"),
        (["codec", "extra"], 1, "unknown field `extra`"),
        (["graphs", "flow", "extra"], 1, "unknown field `extra`"),
        (["graphs", "flow", "inputs", 0, "extra"], 1, "unknown field `extra`"),
        (["graphs", "flow", "variants", "fp32", "extra"], 1, "unknown field `extra`"),
        (["graphs", "flow", "variants", "fp32", "model", "extra"], 1, "unknown field `extra`"),
        (["format"], 2, "Invalid enum value 2"),
        (["name"], "../tiny", "matching regex"),
        (["name"], "tiny\n", "matching regex"),
        (["family"], "Other one", "matching regex"),
        (["codec", "latent_channels"], 0, "latent_channels above 0 beside a graph 'flow'"),
        (["graphs", "flow", "pixel_bytes"], 0, "`int` >= 1"),
        (["codec", "steps"], "4", "Expected `int`, got `str`"),
        (["codec", "steps"], 0, "`int` >= 1"),
        (["codec", "stride"], 3, "multiple of latent_stride"),
        (["codec", "flow_overlap"], 17, "at most half of flow_tile"),
        (["codec", "flow_multiple"], 3, "flow_tile to be a multiple"),
        (["codec", "angles"], [0.1, 0.2], "more than 255 that rise, got 2"),
        (["codec", "angles"], [0.1] * 256, "that rise, got 256"),
        (["codec", "angles"], [2.0], "`float` <= 1.5708"),
        (["codec", "guidance"], None, "Expected `float`, got `null`"),
        (["graphs"], {}, "length >= 1"),
        (["graphs", "flow", "inputs", 0, "dtype"], "object", "Invalid enum value 'object'"),
        (["graphs", "flow", "inputs", 0, "shape"], ["2h"], "expected a symbolic axis"),
        (["graphs", "flow", "inputs", 0, "shape"], [0], "`int` >= 1"),
        (["graphs", "flow", "inputs", 0, "name"], "x_next", "each tensor name once"),
        (["graphs", "flow", "variants", "fp32", "model", "sha256"], "A" * 64, "matching regex"),
        (["graphs", "flow", "variants", "fp32", "model", "size"], -1, "`int` >= 0"),
        (["graphs", "flow", "variants", "fp32", "model", "file"], "/etc/passwd", "relative path"),
        (["graphs", "flow", "variants", "fp32", "model", "file"], "a/m.onnx", "in its folder"),
        (["graphs", "flow", "variants", "fp32", "data", 0, "size"], 1, "one hash and size"),
        (
            ["graphs", "flow", "cost"],
            {"macs": {"n*z": 1}, "weights": 1},
            "expected costs in .*got z",
        ),
        (["graphs", "flow", "cost"], {"macs": {"2*n": 1}, "weights": 1}, "matching regex"),
        (["graphs", "flow", "cost"], {"macs": {"n": -1}, "weights": 1}, "`int` >= 0"),
        (["graphs", "flow", "cost"], {"macs": {}}, "missing required field `weights`"),
        (["fingerprint"], "0" * 64, "expected fingerprint [0-9a-f]{64} .*, got 0{64}"),
    ],
)
def test_what_breaks_a_rule_is_refused(
    document: Any, path: list[Any], value: object, message: str
) -> None:
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BundleError, match=f"^here: expected a manifest of format 1; .*{message}"):
        decode(document)


def test_costs_are_for_every_size(document: Any) -> None:
    document["graphs"]["flow"]["cost"] = {
        **{"macs": {"n*h*w": 10, "n*h*w*h*w": 3, "n": 7}, "weights": 100},
        **{"int8_macs": {"n*h*w": 4}, "int8_weights": 60},
    }
    cost = decode_manifest(json.dumps(document).encode(), "here").graphs["flow"].cost
    assert cost is not None
    sizes = {"n": 2, "h": 3, "w": 5}
    macs = 2 * (10 * 15 + 3 * 15**2 + 7)
    assert cost.operations("fp32", sizes) == cost.operations("fp16", sizes) == (2 * macs, 0)
    assert cost.operations("int8", sizes) == (2 * (macs - 120), 2 * 120)
    assert [cost.weight_bytes(v) for v in ("fp32", "fp16", "int8")] == [400, 200, 160 + 60]
    with pytest.raises(KeyError):
        cost.operations("fp32", {"n": 1})


def test_bundles_without_costs_are_as_they_were(bundle: Bundle) -> None:
    assert b'"cost"' not in encode_manifest(bundle.manifest)
    assert all(graph.cost is None for graph in bundle.manifest.graphs.values())


@pytest.mark.parametrize(
    "field", ["format", "fingerprint", "language", "codec", "graphs", "licence"]
)
def test_missing_fields_are_refused(document: Any, field: str) -> None:
    del document[field]
    with pytest.raises(BundleError, match=f"missing required field `{field}`"):
        decode(document)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"format": 1e999}', b'"\xff"', b"\xef\xbb\xbf{}"]
)
def test_malformed_json_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError, match="^here: expected a manifest"):
        decode_manifest(data, "here")


def test_nesting_without_end_is_refused() -> None:
    with pytest.raises(BundleError, match="^here: expected a manifest"):
        decode_manifest(b'{"provenance":' + b'{"a":' * 200_000, "here")


@given(st.binary(max_size=64), st.integers(0, 10_000))
def test_spoilt_bytes_raise_nothing_else(pristine: Path, junk: bytes, at: int) -> None:
    data = (pristine / "manifest.json").read_bytes()
    at %= len(data)
    try:
        decode_manifest(data[:at] + junk + data[at + len(junk) :], "here")
    except BundleError as error:
        assert str(error).startswith("here: ")


@pytest.mark.parametrize("name", ["a", "flow.onnx", "a/b-c_d+e/weights.bin", "..a", "a..b/c.."])
def test_safe_names(name: str) -> None:
    check_file_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a/..",
        "./a",
        "a//b",
        "a/",
        "a\\b",
        "C:/a",
        "C:a",
        "a\x00b",
        "a\n",
        "a b",
        "ä",
        "a" * 256,
    ],
)
def test_unsafe_names(name: str) -> None:
    with pytest.raises(ValueError, match="expected a relative path"):
        check_file_name(name)
