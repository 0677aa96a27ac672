"""The network computes what the published classes compute, and its bundle what the network does."""

from __future__ import annotations

import binascii
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from percoedge import Codec as Runtime
from percoedge.engines.bundle import Bundle, GraphFiles
from percoedge.export import bundle as command
from percoedge.export.graphs.int8 import linear as int8_linear
from percoedge.export.models.cod_lite.checkpoint import load_network
from percoedge.export.models.cod_lite.config import Config
from percoedge.export.models.cod_lite.graphs import Codec, DecoderGraph, EncoderGraph
from percoedge.export.models.cod_lite.source import graph_plans
from percoedge.runtime.images.metrics import psnr_db

# Made by the published classes (github.com/microsoft/GenCodec, commit c49eb0d) with the weights of
# conftest.py at width 64 and one block, on the image below, by stride, bits, height and width:
# CRC-32 and beginning of the tokens, samples and standard deviation of the decoded image. The
# second size of each has more than one window of attention.
Figures = tuple[int, list[int], list[float], float]
PUBLISHED: dict[tuple[int, int, int, int], Figures] = {
    (32, 4, 64, 96): (
        *(0x105819F9, [0, 5, 5, 13, 3, 13]),
        *([0.1739, 0.3885, 0.6307, -0.5447, -0.5300, 0.7119], 0.9676),
    ),
    (32, 4, 32, 1056): (
        *(0x2B560458, [11, 12, 12, 11, 10, 10]),
        *([0.2010, -0.2962, -1.7022, -0.1289, -0.5455, -0.4640], 0.9684),
    ),
    (32, 8, 64, 96): (
        *(0x3A887CCD, [39, 110, 159, 187, 225, 102]),
        *([-0.6504, -1.4920, -0.2395, -0.7773, -0.2097, 0.4210], 0.9328),
    ),
    (32, 8, 32, 1056): (
        *(0x40FA5CDE, [234, 222, 144, 75, 75, 75]),
        *([-0.5928, -0.5109, 0.1970, -0.3835, -0.4254, -0.3111], 0.9214),
    ),
    (16, 4, 64, 96): (
        *(0xE03792E0, [15, 11, 11, 14, 15, 9]),
        *([0.5102, -0.2540, -1.2502, 2.0268, 0.4037, -0.9304], 1.1805),
    ),
    (16, 4, 32, 544): (
        *(0x1218BBBE, [11, 0, 15, 15, 15, 15]),
        *([0.2237, -0.2302, -0.5207, 0.2834, -1.7670, -1.0264], 1.1607),
    ),
    (16, 8, 64, 96): (
        *(0x7F099127, [24, 138, 235, 235, 169, 146]),
        *([0.3404, 1.2634, 1.3464, 0.5549, 1.0675, 1.5218], 0.8974),
    ),
    (16, 8, 32, 544): (
        *(0x9CC3F050, [50, 235, 77, 235, 146, 77]),
        *([1.2368, 0.1918, 0.2276, 0.3723, 0.8228, -0.2868], 0.8833),
    ),
    (8, 8, 64, 96): (
        *(0x80751BF7, [199, 196, 232, 255, 189, 115]),
        *([-1.7030, -0.4893, -1.1623, -1.7963, 0.0894, -1.4646], 0.9854),
    ),
    (8, 8, 32, 288): (
        *(0x2AE16004, [227, 202, 255, 189, 251, 90]),
        *([-1.4891, -1.3649, -0.9317, -2.1960, -0.9121, -0.1719], 0.9928),
    ),
    (4, 8, 64, 96): (
        *(0x8B79A10F, [103, 116, 169, 89, 30, 213]),
        *([-0.3187, -0.3661, 1.0852, 0.9809, 0.0512, 0.2344], 0.9113),
    ),
    (4, 8, 32, 160): (
        *(0x9FFCDF2A, [255, 104, 126, 27, 213, 52]),
        *([0.9691, -0.2377, 0.6266, 0.9914, -0.1975, 0.4890], 0.9040),
    ),
}


def photo(height: int, width: int) -> NDArray[np.uint8]:
    generator = np.random.Generator(np.random.Philox(key=7))
    return generator.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def make_codec(
    fakes: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Config], tuple[Codec, Path]]:
    """A codec of random weights that went through a checkpoint, and where that lies."""

    def make(config: Config) -> tuple[Codec, Path]:
        path = tmp_path_factory.mktemp("checkpoint") / "CoD_Lite_bpp.pt"
        torch.save({f"net.{name}": t for name, t in fakes.random_state(config).items()}, path)
        return Codec.of(load_network(path, config), config), path

    return make


@pytest.mark.slow
@pytest.mark.parametrize(("stride", "bits"), dict.fromkeys(key[:2] for key in PUBLISHED))
@torch.no_grad()
def test_it_computes_what_the_published_classes_do(
    make_codec: Callable[[Config], tuple[Codec, Path]], stride: int, bits: int
) -> None:
    codec, _ = make_codec(Config(stride, bits, width=64, blocks=1, pixel_blocks=1))
    encoder, decoder = EncoderGraph(codec, torch.float32), DecoderGraph(codec, torch.float32)
    for (s, b, height, width), (digest, begin, samples, deviation) in PUBLISHED.items():
        if (s, b) != (stride, bits):
            continue
        tokens = encoder(torch.from_numpy(photo(height, width))[None])
        assert tokens.shape == (1, height // stride, width // stride)
        assert tokens.flatten()[: len(begin)].tolist() == begin
        assert binascii.crc32(tokens.numpy().astype("<i4").tobytes()) == digest
        codes = codec.codebook[tokens.long()].permute(0, 3, 1, 2)
        image = codec.denoiser(codec.tokens(codes))
        step = height * width * 3 // 6
        np.testing.assert_allclose(image.flatten()[::step][:6], samples, atol=2e-4)
        assert float(image.std()) == pytest.approx(deviation, abs=2e-4)
        rounded = ((image + 1) * 127.5 + 0.5).floor().clamp(0, 255)
        assert torch.equal(decoder(tokens).float(), rounded)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 7)])
@torch.no_grad()
def test_pictures_of_any_number_of_tokens_are_filled_up_and_cropped(
    narrow: Callable[..., Config],
    make_codec: Callable[[Config], tuple[Codec, Path]],
    stride: int,
    grid: tuple[int, int],
) -> None:
    codec, _ = make_codec(narrow(stride, 8))
    unit = max(1, 16 // stride)
    whole = [-(-side // unit) * unit for side in grid]
    image = photo(grid[0] * stride, grid[1] * stride)
    filled = np.pad(
        image,
        [(0, whole[0] * stride - len(image)), (0, whole[1] * stride - image.shape[1]), (0, 0)],
        mode="edge",
    )
    encoder, decoder = EncoderGraph(codec, torch.float32), DecoderGraph(codec, torch.float32)
    tokens = encoder(torch.from_numpy(image)[None])
    expected = encoder(torch.from_numpy(filled)[None])[:, : grid[0], : grid[1]]
    assert torch.equal(tokens, expected)
    pad = [(0, 0), (0, whole[0] - grid[0]), (0, whole[1] - grid[1])]
    repeated = torch.from_numpy(np.pad(tokens.numpy(), pad, mode="edge"))
    assert torch.equal(decoder(tokens), decoder(repeated)[:, : image.shape[0], : image.shape[1]])


@pytest.fixture(scope="module")
def exported(
    make_codec: Callable[[Config], tuple[Codec, Path]],
    fakes: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Codec, Bundle]:
    """A codec, and the bundle that the command line makes of its checkpoint."""
    config = Config(16, 8, width=32, blocks=1, pixel_blocks=1)
    codec, path = make_codec(config)
    out = tmp_path_factory.mktemp("bundle")
    yaml = path.with_suffix(".yaml")
    yaml.write_text(fakes.yaml_of(config))
    arguments = ["cod-lite", "--checkpoint", str(path), "--config", str(yaml), "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["bundle", *arguments, "--full-precision", "--skip-parity"])
        assert command.main() == 0
    return codec, Bundle.open(out)


@pytest.mark.slow
def test_a_bundle_computes_what_its_network_does(exported: tuple[Codec, Bundle]) -> None:
    codec, bundle = exported
    encoder, decoder = EncoderGraph(codec, torch.float32), DecoderGraph(codec, torch.float32)
    with Runtime.load(bundle, "onnxruntime-cpu:fp32") as runtime:
        for height, width in ((16, 16), (61, 90), (20, 530), (520, 40)):
            pixels = photo(height, width)
            grid = (-(-height // 16), -(-width // 16))
            whole = np.pad(
                pixels,
                [(0, grid[0] * 16 - height), (0, grid[1] * 16 - width), (0, 0)],
                mode="edge",
            )
            with torch.no_grad():
                tokens = encoder(torch.from_numpy(whole)[None])
                image = decoder(tokens)[0, :height, :width].numpy()
            data = runtime.encode(pixels)
            np.testing.assert_array_equal(runtime.decode_tokens(data), tokens[0])
            decoded = np.asarray(runtime.decode(data))
            assert np.abs(decoded.astype(int) - image).max() <= 1
            assert (decoded != image).mean() < 0.01
            assert len(data) <= 13 + tokens.numel() + 1


@pytest.mark.slow
def test_half_precision_gives_nearly_the_same_picture(exported: tuple[Codec, Bundle]) -> None:
    codec, bundle = exported
    tokens = torch.randint(0, 256, (1, 4, 5), generator=torch.Generator().manual_seed(0)).int()
    with torch.no_grad():
        image = DecoderGraph(codec, torch.float32)(tokens).numpy()
    with Runtime.load(bundle) as runtime:
        engine = runtime.backend.load(bundle.read("decoder", "fp16"))
        half = np.asarray(engine.run({"tokens": tokens.numpy()})["image"])
    assert psnr_db(half, image) > 40


@pytest.mark.slow
def test_the_manifest_says_what_a_decode_needs(exported: tuple[Codec, Bundle]) -> None:
    manifest = exported[1].manifest
    assert exported[1].kinds == ("encoder", "decoder")
    assert manifest.name == "cod-lite-0_0312"
    assert manifest.codec.schedule == "uniform"
    assert manifest.codec.latent_channels == 0
    assert manifest.codec.encoder_margin is manifest.codec.decoder_margin is None
    assert manifest.licence.startswith("MIT, Copyright (c) 2025 Microsoft")
    assert len(manifest.provenance["checkpoint_sha256"]) == 64


@pytest.mark.slow
def test_layers_on_patches_multiply_bytes_where_the_picture_stays(
    exported: tuple[Codec, Bundle],
) -> None:
    bundle = exported[1]
    decoder = bundle.manifest.graphs["decoder"].variants
    assert bundle.manifest.provenance["int8_psnr_db"]["decoder"] >= 40
    assert decoder["int8"].data == decoder["fp32"].data
    assert "int8" not in bundle.manifest.graphs["encoder"].variants
    model = onnx.load_from_string(bundle.read("decoder", "int8").model)
    assert [node.op_type for node in model.graph.node].count("MatMulIntegerToFloat") == 4
    pixels = photo(61, 90)
    with Runtime.load(bundle, "onnxruntime-cpu:fp32") as exact, Runtime.load(bundle) as fast:
        data = exact.encode(pixels)
        pictures = [np.asarray(runtime.decode(data)) for runtime in (exact, fast)]
    assert 40 <= psnr_db(*pictures) < 90


@pytest.mark.slow
def test_bytes_that_change_the_picture_are_left_out(
    exported: tuple[Codec, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, bundle = exported
    files = shutil.copytree(bundle.path, tmp_path / "copy")
    plans = {"decoder": graph_plans(codec.config)["decoder"]}
    graph = bundle.manifest.graphs["decoder"]
    given = GraphFiles(
        graph.input_specs,
        graph.output_specs,
        {"fp32": tuple(record.file for record in graph.variants["fp32"].files)},
    )
    monkeypatch.setattr(int8_linear, "LEAST_PSNR_DB", 1000.0)
    graphs, found = int8_linear.with_int8_linear({"decoder": given}, codec, plans, 256, files)
    assert graphs == {"decoder": given}
    assert 40 < found["decoder"] < 1000
    assert not (files / "decoder.int8.onnx").exists()


@pytest.mark.slow
def test_costs_are_those_of_whole_windows_of_attention(exported: tuple[Codec, Bundle]) -> None:
    codec, bundle = exported
    cost = bundle.manifest.graphs["decoder"].cost
    assert cost is not None
    tokens = torch.zeros(2, 32, 96, dtype=torch.int32)
    plain = sdpa_kernel(SDPBackend.MATH)
    with FakeTensorMode(allow_non_fake_inputs=True), plain, torch.no_grad():
        graph = DecoderGraph(codec, torch.float32)
        with FlopCounterMode(display=False) as counter:
            graph(tokens)
    sizes = {"n": 2, "h": 32, "w": 96}
    assert cost.operations("fp32", sizes) == (counter.get_total_flops(), 0)
    block = exported[0].denoiser.blocks[0]
    layers = (block.first, block.second, block.up, block.down)
    weights = sum(layer.weight.numel() for layer in layers)
    assert cost.int8_weights == weights
    assert cost.operations("int8", sizes)[1] == 2 * 2 * 32 * 96 * weights
    assert bundle.manifest.graphs["encoder"].cost is not None
