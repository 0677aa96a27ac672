"""The graphs compute what diffusers' own classes do, and a bundle what its networks do."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler
from numpy.typing import NDArray
from transformers import CLIPTokenizer

from percoedge import Codec as Runtime
from percoedge.engines.bundle import Bundle
from percoedge.errors import UsageError
from percoedge.export.checks.parity import check_graphs
from percoedge.export.graphs.modules import DecoderGraph, EncoderGraph
from percoedge.export.graphs.writing import write_bundle
from percoedge.export.models.exportable import Exportable
from percoedge.export.models.perco_sd import source
from percoedge.export.models.perco_sd.checkpoint import Networks, load_networks
from percoedge.export.models.perco_sd.config import read_folder
from percoedge.export.models.perco_sd.graphs import FlowGraph, GuidedFlowGraph, TextGraph
from percoedge.runtime.flow import noise, step_times

pytestmark = pytest.mark.slow

FINEST = {"hyper_enc": {"cfg_ss": 64}}  # a token for each latent cell


def photo(height: int, width: int) -> NDArray[np.uint8]:
    generator = np.random.Generator(np.random.Philox(key=7))
    return generator.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(make_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model"), **FINEST)


@pytest.fixture(scope="module")
def published(folder: Path) -> Networks:
    """The networks as they are in the folder, nothing folded."""
    return load_networks(folder, read_folder(folder))


@pytest.fixture(scope="module")
def exported(folder: Path) -> Exportable:
    return source.load(Namespace(checkpoint=folder, without_text=False))


def published_velocity(networks: Networks, x: Any, tokens: Any, t: Any, text: Any) -> Any:
    """As published: the first layer over the latent and the codes, repeated up to its size."""
    codes = networks.hyper.quantizer.table()[tokens.long()].permute(0, 3, 1, 2)
    unet = networks.unet
    unet.conv_in = unet.conv_in_extended
    try:
        whole = torch.cat([x, F.interpolate(codes, size=x.shape[2:], mode="nearest")], dim=1)
        return unet(whole, t, text, return_dict=False)[0]
    finally:
        del unet.conv_in


@pytest.mark.parametrize(
    "changes", [FINEST, {"hyper_enc": {"cfg_ss": 8}}, {"unet": {"upcast_attention": False}}]
)
@torch.no_grad()
def test_the_denoiser_is_the_published_one(
    make_folder: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = make_folder(tmp_path / "model", **changes)
    config = read_folder(folder)
    codec = source.load(Namespace(checkpoint=folder, without_text=True)).module
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, 256, (2, 2, 4), generator=generator).int()
    x = torch.randn(2, 4, 2 * config.cells, 4 * config.cells, generator=generator)
    text = torch.randn(2, 77, 16, generator=generator)
    t = torch.tensor([351.0])
    condition = codec.denoiser.condition(tokens)
    expected = published_velocity(load_networks(folder, config), x, tokens, t, text)
    torch.testing.assert_close(
        codec.denoiser(x, condition, t, text), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("steps", [1, 3, 5, 20, 255])
def test_steps_are_those_of_diffusers_scheduler(
    folder: Path, exported: Exportable, steps: int
) -> None:
    """Same times to the integer; the rotation differs by the rounding of its float32 numbers."""
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(steps)
    times = step_times(exported.codec, steps)
    assert [t for t, _ in times] == scheduler.timesteps.tolist()
    generator = torch.Generator().manual_seed(0)
    x, velocity = torch.randn(2, 1, 4, 8, 8, generator=generator)
    for t, dt in times:
        angle = torch.tensor(dt, dtype=torch.float32)
        turned = torch.cos(angle) * x - torch.sin(angle) * velocity
        expected = scheduler.step(velocity, int(t), x).prev_sample
        torch.testing.assert_close(turned, expected, rtol=0, atol=2e-6)
        x = expected


@torch.no_grad()
def test_decoding_is_what_diffusers_makes_of_the_networks(
    folder: Path, published: Networks, exported: Exportable
) -> None:
    """Three guided steps by the scheduler, captions by the tokenizer and tower of transformers."""
    codec, config = exported.module, read_folder(folder)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text, null = (
        published.text(
            **tokenizer(
                caption, padding="max_length", max_length=77, truncation=True, return_tensors="pt"
            )
            | {"attention_mask": None}
        ).last_hidden_state
        for caption in ("a dog", "")
    )
    torch.testing.assert_close(codec.null_text, null.half().float())
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 4, 6), np.int32))
    x = start = torch.from_numpy(noise(5, 4, 4, 6))[None]
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(3)
    for time in scheduler.timesteps:
        v, away = (published_velocity(published, x, tokens, time, c) for c in (text, null))
        x = scheduler.step(away + 3 * (v - away), time, x).prev_sample
    ours, plain = start, start
    guided, unguided = GuidedFlowGraph(codec, torch.float32), FlowGraph(codec, torch.float32)
    for step in step_times(exported.codec, 3):
        t, dt = (torch.tensor([number], dtype=torch.float32) for number in step)
        ours = guided(ours, tokens, t, dt, torch.tensor([3.0]), text)
        plain = unguided(plain, tokens, t, dt)
    torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-3)
    assert (plain - x).abs().max() > 0.01
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    image = vae.decode(x / vae.config.scaling_factor).sample
    rounded = (255 * (image / 2 + 0.5).clamp(0, 1)).round().permute(0, 2, 3, 1)
    decoded = DecoderGraph(codec, torch.float32)(x)
    assert decoded.shape == (1, 8 * 4, 8 * 6, 3)
    assert (decoded.float() - rounded).abs().max() <= 1
    assert config.latent_stride == 8


@torch.no_grad()
def test_tokens_are_those_of_the_mean_of_the_posterior(
    folder: Path, published: Networks, exported: Exportable
) -> None:
    image = torch.from_numpy(photo(32, 48))[None]
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    posterior = vae.encode(image.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist
    features = published.hyper.backbone(0.18215 * posterior.mean).permute(0, 2, 3, 1)
    codes = F.normalize(published.hyper.quantizer.project_in(features), dim=-1)
    similar = codes @ published.hyper.quantizer._codebook.embed[0].t()
    tokens = EncoderGraph(exported.module, torch.float32)(image)
    assert tokens.shape == (1, 4, 6)
    assert torch.equal(tokens.long(), similar.argmax(-1))


@torch.no_grad()
def test_without_text_captions_are_empty_and_nothing_guides(
    folder: Path, exported: Exportable
) -> None:
    alone = source.load(Namespace(checkpoint=folder, without_text=True))
    assert {*alone.plans} == {"encoder", "flow", "decoder"}
    assert [spec.name for spec in alone.plans["flow"].inputs] == ["x", "tokens", "t", "dt"]
    assert (alone.codec.guidance, alone.codec.captions_condition) == (1.0, False)
    assert not alone.tokenizers
    assert alone.language == exported.language
    tokens = torch.zeros(1, 2, 2, dtype=torch.int32)
    feeds = (torch.ones(1, 4, 2, 2), tokens, torch.tensor([501.0]), torch.tensor([0.5]))
    given = alone.plans["flow"].build(alone.module, torch.float32)(*feeds)
    text = exported.module.null_text
    expected = exported.plans["flow"].build(exported.module, torch.float32)(*feeds, text)
    torch.testing.assert_close(given, expected)


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Exportable, Bundle]:
    (folder / "LICENSE.md").write_text("Use it well.")
    codec = source.load(Namespace(checkpoint=folder, without_text=False))
    # "flow" is "flow_guided" less the guidance: its export is spared
    plans = {kind: plan for kind, plan in codec.plans.items() if kind != "flow"}
    codec = replace(codec, plans=plans)
    return codec, write_bundle(codec, tmp_path_factory.mktemp("bundle"), variants=("fp32",))


def test_a_bundle_computes_what_its_networks_do(bundle: tuple[Exportable, Bundle]) -> None:
    codec, written = bundle
    assert {*written.kinds} == {"encoder", "flow_guided", "decoder", "text_clip"}
    rows = check_graphs(codec.module, codec.plans, written)
    assert [str(row) for row in rows if not row.ok] == []
    assert len(rows) == len(written.kinds)


@torch.no_grad()
def test_photos_of_any_size_are_decoded_as_the_networks_do(
    bundle: tuple[Exportable, Bundle], exported: Exportable
) -> None:
    """45x30 pixels are 4x6 tokens, filled up to the 4x6 of whole 16 pixels; then 3x5 to 4x6."""
    module = exported.module
    with Runtime.load(bundle[1]) as runtime:
        for height, width in ((30, 45), (19, 33)):
            data = runtime.encode(photo(height, width), caption="two birds", seed=9)
            tokens = runtime.decode_tokens(data)
            assert tokens.shape == (-(-height // 8), -(-width // 8))
            assert runtime.info(data)["caption"] == "two birds"
            filled = np.pad(tokens, [(0, -side % 2) for side in tokens.shape], mode="edge")
            assert len(data) <= 13 + 1 + len("two birds") + tokens.size + 1
            pictures = []
            for steps in (2, 5):
                image = runtime.decode(data, steps=steps)
                assert image.size == (width, height)
                pictures.append(np.asarray(image))
                expected = _decoded(module, exported.codec, filled, "two birds", steps)
                expected = expected[:height, :width]
                assert np.abs(pictures[-1].astype(int) - expected).max() <= 2
            assert (pictures[0] != pictures[1]).any()
            assert runtime.decode(data).tobytes() == runtime.decode(data, steps=20).tobytes()
            other = np.asarray(runtime.decode(data, steps=2, guidance=1.5))
            assert (other != pictures[0]).any()


def _decoded(module: Any, codec: Any, tokens: Any, caption: str, steps: int) -> Any:
    """A picture by the modules, guided, from the noise of seed 9."""
    ids = torch.tensor([source_ids(module, caption)], dtype=torch.int32)
    text = TextGraph(module.text)(ids)
    graph = GuidedFlowGraph(module, torch.float32)
    x = torch.from_numpy(noise(9, 4, *tokens.shape))[None]
    for step in step_times(codec, steps):
        t, dt = (torch.tensor([number], dtype=torch.float32) for number in step)
        x = graph(x, torch.from_numpy(tokens)[None], t, dt, torch.tensor([3.0]), text)
    return DecoderGraph(module, torch.float32)(x)[0].numpy().astype(int)


def source_ids(module: Any, caption: str) -> list[int]:
    """Ids of a caption of single letters, as the tokenizer of the fixtures splits them."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = []
    for word in caption.split():
        ids += [letters.index(letter) for letter in word[:-1]]
        ids.append(len(letters) + letters.index(word[-1]))
    return ([512, *ids, 513] + [0] * 77)[:77]


def test_large_photos_are_decoded_in_tiles(bundle: tuple[Exportable, Bundle]) -> None:
    pixels = np.kron(photo(4, 9), np.ones((16, 64, 1), np.uint8))  # 64x576
    with Runtime.load(bundle[1]) as runtime:
        data = runtime.encode(pixels)
        assert runtime.decode(data, steps=1).size == (576, 64)
        with pytest.raises(UsageError, match="a number of 0 to 16"):
            runtime.decode(data, guidance=17)


def test_the_manifest_says_what_a_decode_needs(bundle: tuple[Exportable, Bundle]) -> None:
    manifest = bundle[1].manifest
    codec = manifest.codec
    assert manifest.name == "perco-sd-0_1250"
    assert (codec.stride, codec.latent_channels, codec.latent_stride) == (8, 4, 8)
    assert (codec.schedule, codec.steps, codec.guidance) == ("uniform", 20, 3.0)
    assert (codec.flow_tile, codec.flow_overlap, codec.flow_multiple) == (64, 8, 2)
    assert len(codec.angles) == 1000 and codec.captions_condition
    assert manifest.tokenizers.keys() == {"text_clip"}
    assert manifest.licence.startswith("CreativeML Open RAIL++-M")
    assert manifest.licence.endswith("Use it well.")
    hashes = manifest.provenance["checkpoint_sha256"]
    assert len(hashes["unet/diffusion_pytorch_model.safetensors"]) == 64
    assert manifest.provenance["margins"].keys() == {"encoder_margin", "decoder_margin"}
    assert manifest.graphs["flow_guided"].cost is not None
