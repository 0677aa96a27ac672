"""percoedge convert: .cod and .pkl to .pco and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from percoedge.bitstream.cod import pack_cod, unpack_cod
from percoedge.bitstream.container import MAX_SIDE, Header, pack, unpack
from percoedge.bitstream.perco import pack_perco, unpack_perco
from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.runtime.entropy import EntropyCodec

Run = Any


@pytest.fixture(params=[(16, 4), (16, 8), (4, 8), (32, 8)], ids=str)
def bundle(request: pytest.FixtureRequest, tmp_path: Path) -> Bundle:
    stride, bits = request.param
    return make_bundle(tmp_path, stride, 1 << bits)


def make_bundle(tmp_path: Path, stride: int, codebook_size: int) -> Bundle:
    """A bundle whose graphs no conversion looks into."""
    root = tmp_path / "bundle"
    root.mkdir()
    (root / "graph.onnx").write_bytes(b"none")
    image = TensorSpec("image", "uint8", ("n", f"{stride}*h", f"{stride}*w", 3))
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    return write_manifest(
        root,
        name="cod",
        family="cod-lite",
        language="1" * 64,
        codec=CodecConstants(
            stride=stride, codebook_size=codebook_size, schedule="uniform", entropy_tile=64
        ),
        graphs={"decoder": GraphFiles((tokens,), (image,), {"fp32": ("graph.onnx",)})},
        licence="CC0-1.0",
    )


def _bits(bundle: Bundle) -> int:
    return bundle.codec.codebook_size.bit_length() - 1


@pytest.mark.parametrize("bare", [False, True])
def test_there_and_back(run: Run, bundle: Bundle, tmp_path: Path, bare: bool) -> None:
    """More tokens than a tile of the entropy model has, in its own order."""
    rng = np.random.default_rng(0)
    size = bundle.codec.codebook_size
    tokens = rng.integers(0, size, (4, 72), np.int32)
    cod = pack_cod(tokens, bundle.codec.stride, _bits(bundle))
    (tmp_path / "a.cod").write_bytes(cod)
    options = ("--bundle", bundle.path, *(["--bare"] if bare else []))
    result = run("convert", "a.cod", "--json", *options)
    assert result.code == 0, result.err
    pco = (tmp_path / "a.pco").read_bytes()
    assert json.loads(result.out)["bytes"] == len(pco)
    header = unpack(pco, bare=bare).header
    assert (header.width, header.height) == (72 * bundle.codec.stride, 4 * bundle.codec.stride)
    # the authors' payload and the framing, and no more
    assert len(pco) <= len(cod) - 4 + (4 if bare else 13)
    assert run("convert", "a.pco", "back.cod", *options).code == 0
    assert (tmp_path / "back.cod").read_bytes() == cod


@pytest.mark.parametrize("bare", [False, True])
def test_a_pickle_there_and_back(run: Run, bundle: Bundle, tmp_path: Path, bare: bool) -> None:
    tokens = np.random.default_rng(0).integers(0, bundle.codec.codebook_size, (4, 72), np.int32)
    pickled = pack_perco(tokens, bundle.codec.stride, _bits(bundle), "two red barns")
    (tmp_path / "a.pkl").write_bytes(pickled)
    options = ("--bundle", bundle.path, *(["--bare"] if bare else []))
    assert run("convert", "a.pkl", *options).code == 0
    pco = (tmp_path / "a.pco").read_bytes()
    stream = unpack(pco, bare=bare)
    assert stream.header.caption == "two red barns"
    assert (stream.header.width, stream.header.height) == tuple(
        side * bundle.codec.stride for side in (72, 4)
    )
    payload = EntropyCodec(None, bundle.codec.codebook_size, 64).encode(tokens, "uniform")
    assert stream.tokens == payload
    assert run("convert", "a.pco", "back.pkl", *options).code == 0
    assert (tmp_path / "back.pkl").read_bytes() == pickled


def test_the_size_of_a_pickle_is_that_of_whole_tokens(
    run: Run, bundle: Bundle, tmp_path: Path
) -> None:
    stride = bundle.codec.stride
    tokens = np.arange(15, dtype=np.int32).reshape(3, 5)
    data = EntropyCodec(None, bundle.codec.codebook_size, 64).encode(tokens, "uniform")
    header = Header(5 * stride - 1, 3 * stride - 2)
    (tmp_path / "a.pco").write_bytes(pack(header, data, bundle.fingerprint))
    assert run("convert", "a.pco", "a.pkl", "--bundle", bundle.path).code == 0
    width, height, caption, read = unpack_perco(
        (tmp_path / "a.pkl").read_bytes(), stride, _bits(bundle)
    )
    assert (width, height, caption) == (5 * stride, 3 * stride, "")
    np.testing.assert_array_equal(read, tokens)


def test_other_sizes_are_filled_up(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    stride = bundle.codec.stride
    tokens = np.arange(15, dtype=np.int32).reshape(3, 5)
    data = EntropyCodec(None, bundle.codec.codebook_size, 64).encode(tokens, "uniform")
    header = Header(5 * stride - 1, 3 * stride - 2)
    (tmp_path / "a.pco").write_bytes(pack(header, data, bundle.fingerprint))
    assert run("convert", "a.pco", "--bundle", bundle.path).code == 0
    width, height, read = unpack_cod((tmp_path / "a.cod").read_bytes(), stride, _bits(bundle))
    assert width % 16 == height % 16 == 0
    np.testing.assert_array_equal(read[:3, :5], tokens)
    assert (read[:, 5:] == read[:, 4:5]).all() and (read[3:] == read[2:3]).all()


def test_tokens_without_whole_bits_are_not_converted(run: Run, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, 16, 8196)
    tokens = np.array([[8195, 0]], np.int32)
    data = EntropyCodec(None, 8196, 64).encode(tokens, "uniform")
    (tmp_path / "a.pco").write_bytes(pack(Header(32, 16), data, bundle.fingerprint))
    for output in ("a.pkl", "a.cod"):
        result = run("convert", "a.pco", output, "--bundle", bundle.path)
        assert (result.code, "power of two, got 8196" in result.err) == (2, True)
        assert not (tmp_path / output).exists()


def test_what_does_not_fit_is_refused(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "a.cod").write_bytes(b"\x20\x00\x20\x00" + b"\x01" * 999)
    (tmp_path / "a.bin").write_bytes(b"")
    (tmp_path / "a.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    options = ("--bundle", bundle.path)
    for arguments, code, words in (
        (("a.cod", *options), 3, "a.cod: expected a .cod stream of"),
        (("a.bin", *options), 2, "ends in .cod, .pkl or .pco"),
        (("a.pkl", *options), 3, "a.pkl: expected a pickle"),
        (("b.cod", *options), 3, "b.cod"),
        (("a.cod", "--bundle", "tiny"), 3, "of its rate"),
        (("a.cod", "a.png", *options), 2, "an output that ends in .pco"),
        (("a.pco", "a.png", *options), 2, "an output that ends in .cod or .pkl"),
    ):
        result = run("convert", *arguments)
        assert (result.code, words in result.err) == (code, True), result.err
        assert not (tmp_path / "a.pco").exists()


def test_sizes_beyond_the_limits(run: Run, bundle: Bundle, tmp_path: Path) -> None:
    stride = bundle.codec.stride
    tokens = np.zeros((max(1, 16 // stride), (MAX_SIDE + 64) // stride), np.int32)
    (tmp_path / "a.cod").write_bytes(pack_cod(tokens, stride, _bits(bundle)))
    result = run("convert", "a.cod", "--bundle", bundle.path)
    assert (result.code, "at most 16384 pixels a side" in result.err) == (3, True), result.err
    few = tokens[:, : 256 // stride]
    pixels = few.size * stride**2
    (tmp_path / "b.cod").write_bytes(pack_cod(few, stride, _bits(bundle)))
    options = ("--bundle", bundle.path, "--max-pixels")
    assert run("convert", "b.cod", "b.pco", *options, pixels - 1).code == 3
    assert run("convert", "b.cod", "b.pco", *options, pixels).code == 0
    assert run("convert", "b.pco", "c.cod", *options, pixels - 1).code == 3
    assert run("convert", "b.pco", "c.cod", *options, pixels).code == 0
