"""The full-size family: its sizes, and a small pipeline in diffusers' layout made into a bundle."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from onnx import TensorProto
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from percoedge import Codec
from percoedge.engines.bundle import Bundle, pack_zip
from percoedge.engines.comparison import example_feeds
from percoedge.engines.selection import select
from percoedge.errors import BackendError, BundleError, UsageError
from percoedge.export import bundle as command
from percoedge.export.assemble import Assembly, Sources, assemble
from percoedge.export.bundle import export_bundle
from percoedge.export.checks.parity import check_parity
from percoedge.export.config import RATES, Config, at_rate, load_config
from percoedge.export.graphs.modules import graph_plans
from percoedge.export.graphs.onnx_files import round_weights, trace
from percoedge.export.models.exportable import in_precision
from percoedge.export.models.mim import Mim
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.flow import FlowModel
from percoedge.export.models.percov2.hyper import HyperEncoder, VectorQuantizer
from percoedge.export.models.percov2.text import T5Graph
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.text import TextConditioner

pytestmark = pytest.mark.slow

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
LONG = "a photo of a cup of coffee on a wooden table beside an open window " * 3


def small_config() -> Config:
    return load_config(
        "sd3-medium",
        hyper={"width": 32, "features": 32},
        flow={"condition_channels": 32, "text_tokens": 97},
        mim={"width": 32, "hidden": 64, "layers": 1},
    )


def t5_model() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=260,
            d_model=64,
            d_kv=8,
            d_ff=96,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def write_pipeline(folder: Path) -> None:
    """All parts of a Stable Diffusion 3 pipeline with T5, of random weights."""
    SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        caption_projection_dim=32,
        pooled_projection_dim=40,
        out_channels=16,
        pos_embed_max_size=32,
    ).save_pretrained(folder / "transformer")
    AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=16,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0609,
        scaling_factor=1.5305,
    ).save_pretrained(folder / "vae")
    vocabulary = [*ALPHABET, *(f"{letter}</w>" for letter in ALPHABET)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    ids = {token: number for number, token in enumerate(vocabulary)}
    for number, pad in (("", "<|endoftext|>"), ("_2", "!")):
        tokenizer = folder / f"tokenizer{number}"
        tokenizer.mkdir()
        (tokenizer / "vocab.json").write_text(json.dumps(ids))
        (tokenizer / "merges.txt").write_text("#version: 0.2\n")
        names = {"bos_token": "<|startoftext|>", "pad_token": pad}
        names |= dict.fromkeys(("eos_token", "unk_token"), "<|endoftext|>")
        settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **names}
        (tokenizer / "tokenizer_config.json").write_text(json.dumps(settings))
        config = CLIPTextConfig(
            vocab_size=len(ids),
            bos_token_id=ids["<|startoftext|>"],
            eos_token_id=ids["<|endoftext|>"],
            hidden_size=32 if number else 24,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            projection_dim=24 if number else 16,
            hidden_act="gelu" if number else "quick_gelu",
        )
        tower = CLIPTextModelWithProjection(config)
        tower.save_pretrained(folder / f"text_encoder{number}")
    t5_model().save_pretrained(folder / "text_encoder_3")
    words = Tokenizer(models.BPE(vocab={c: i + 2 for i, c in enumerate(ALPHABET)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel()
    words.add_special_tokens(["<pad>", "</s>"])
    end = ("</s>", words.token_to_id("</s>"))
    words.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[end])
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")
    fast.save_pretrained(folder / "tokenizer_3")


def write_own_parts(folder: Path, config: Config) -> tuple[Path, Path]:
    """Hyper-encoder and entropy model of a configuration, under the names of a family."""
    codec, hyper = config.codec, config.hyper
    modules = {
        "hyper.": HyperEncoder(hyper, codec.latent_channels),
        "quantizer.": VectorQuantizer(
            hyper.features, hyper.code_dim, codec.codebook_size, config.flow.condition_channels
        ),
        "mim.": Mim(config.mim, codec.codebook_size),
    }
    tensors = {
        prefix: {prefix + name: tensor for name, tensor in module.state_dict().items()}
        for prefix, module in modules.items()
    }
    save_file(tensors["hyper."] | tensors["quantizer."], folder / "hyper.safetensors")
    save_file(tensors["mim."], folder / "mim.safetensors")
    return folder / "hyper.safetensors", folder / "mim.safetensors"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pipeline")
    write_pipeline(folder)
    return Sources(folder, *write_own_parts(folder, small_config()))


@pytest.fixture(scope="module")
def assembly(sources: Sources) -> Assembly:
    return assemble(small_config(), sources)


@pytest.fixture(scope="module")
def bundle(assembly: Assembly, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("sd3")
    return export_bundle(
        assembly.family,
        assembly.config,
        out,
        name="small",
        licence="random weights",
        tokenizers=assembly.tokenizers,
        variants=("fp32",),  # that of CPUs
    )


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_family_has_the_published_sizes() -> None:
    with torch.device("meta"):
        family = Family(load_config("sd3-medium"))
    # SD3-medium's transformer with 16 + 320 channels into its 2x2 patches of 1536
    assert parameters(family.flow) == 2_028_328_000 + 320 * 4 * 1536
    assert len(family.flow.transformer.transformer_blocks) == 24
    assert family.flow.transformer.pos_embed.proj.in_channels == 336
    assert 4e6 < parameters(family.hyper) < 6e6  # PerCo (SD): 4.08 to 5.87 million
    assert parameters(family.vae) == 83_819_683
    assert parameters(family.text["clip_l"]) == 123_650_304
    assert parameters(family.text["clip_g"]) == 694_659_840


@pytest.mark.parametrize("name", RATES)
def test_a_rate_is_a_grid_and_a_codebook(name: str) -> None:
    config = at_rate(load_config("sd3-medium"), name)
    codec = config.codec
    grid = 512 // codec.stride
    # the published figures are rounded, some of them down
    assert grid**2 * np.log2(codec.codebook_size) / 512**2 == pytest.approx(float(name), abs=1e-4)
    assert codec.flow_tile == grid
    latent = torch.zeros(1, codec.latent_channels, 64, 64)
    with torch.device("meta"):
        hyper = HyperEncoder(config.hyper, codec.latent_channels)
    assert hyper(latent.to("meta")).shape[2:] == (grid, grid)


def test_an_unknown_rate_is_told_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"expected a rate of 0\.1250, .*, 0\.0019, got '0\.5'"):
        at_rate(load_config("sd3-medium"), "0.5")


def test_the_transformer_is_widened_and_computes_the_same(
    assembly: Assembly, sources: Sources
) -> None:
    flow = assembly.family.flow.transformer
    original = SD3Transformer2DModel.from_pretrained(sources.sd3 / "transformer").half().float()
    assert flow.pos_embed.proj.in_channels == 48
    x, z = torch.randn(2, 16, 12, 20), torch.randn(2, 32, 3, 5)
    text, pooled, t = torch.randn(2, 97, 64), torch.randn(2, 40), torch.rand(2)
    with torch.no_grad():
        ours = copy.deepcopy(assembly.family.flow).float()(x, z, t, (text, pooled))
        theirs = original(x, text, pooled, 1000 * t, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_the_autoencoder_computes_what_diffusers_does(assembly: Assembly, sources: Sources) -> None:
    vae = copy.deepcopy(assembly.family.vae).float()
    original = AutoencoderKL.from_pretrained(sources.sd3 / "vae").half().float()
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        latent = vae.encode(image)
        mean = original.encode(image).latent_dist.mean
        torch.testing.assert_close(latent, (mean - 0.0609) * 1.5305, atol=1e-5, rtol=1e-5)
        theirs = original.decode(latent / 1.5305 + 0.0609).sample
        torch.testing.assert_close(vae.decode(latent), theirs, atol=1e-5, rtol=1e-5)


def test_every_graph_agrees_with_pytorch(assembly: Assembly, bundle: Bundle) -> None:
    rows = check_parity(assembly.family, assembly.config, bundle)
    assert {row.graph for row in rows} == {
        *("encoder", "entropy", "flow", "flow_guided", "decoder"),
        *("text_clip_l", "text_clip_g", "text_t5", "text_join"),
    }
    assert [row for row in rows if not row.ok] == []


def test_the_flow_takes_text_and_its_guided_form_no_more(bundle: Bundle) -> None:
    names = [spec.name for spec in bundle.read("flow", "fp32").inputs]
    assert names == ["x", "tokens", "t", "dt", "text", "pooled"]
    guided = [spec.name for spec in bundle.read("flow_guided", "fp32").inputs]
    assert guided == ["x", "tokens", "t", "dt", "guidance", "text", "pooled"]


@pytest.mark.parametrize("caption", ["", "A cup of coffee, please!", LONG])
def test_text_is_what_diffusers_pipeline_makes_of_it(
    bundle: Bundle, sources: Sources, caption: str
) -> None:
    folder = sources.sd3
    clips = [
        CLIPTextModelWithProjection.from_pretrained(folder / f"text_encoder{n}") for n in ("", "_2")
    ]
    t5 = T5EncoderModel.from_pretrained(folder / "text_encoder_3")
    for tower in (*clips, t5):
        tower.half().float()
    tokenizers = [AutoTokenizer.from_pretrained(folder / f"tokenizer{n}") for n in ("", "_2", "_3")]
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel.from_pretrained(folder / "transformer"),
        scheduler=None,
        vae=None,
        text_encoder=clips[0],
        tokenizer=tokenizers[0],
        text_encoder_2=clips[1],
        tokenizer_2=tokenizers[1],
        text_encoder_3=t5,
        tokenizer_3=tokenizers[2],
    )
    with torch.no_grad():
        text, _, pooled, _ = pipeline.encode_prompt(
            caption, None, None, do_classifier_free_guidance=False, max_sequence_length=20
        )
    engines = EngineSet(bundle, select("onnxruntime-cpu"), low_memory=True)
    condition = TextConditioner(engines).condition([caption])
    np.testing.assert_allclose(np.asarray(condition["text"]), text.numpy(), atol=1e-5)
    np.testing.assert_allclose(np.asarray(condition["pooled"]), pooled.numpy(), atol=1e-5)


def difference(first: Image.Image, second: Image.Image) -> int:
    return int(np.abs(np.asarray(first, int) - np.asarray(second, int)).max())


def test_a_caption_and_guidance_change_the_image_but_no_token(bundle: Bundle) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (96, 130, 3), np.uint8)
    with Codec.load(bundle, threads=1) as codec:
        plain = codec.encode(photo, seed=1)
        told = codec.encode(photo, seed=1, caption="a red bus")
        np.testing.assert_array_equal(codec.decode_tokens(plain), codec.decode_tokens(told))
        np.testing.assert_array_equal(codec.decode_tokens(told), codec.tokens(photo))
        images = {
            (data, guidance): codec.decode(data, steps=2, guidance=guidance)
            for data in (plain, told)
            for guidance in (1, 3)
        }
        batch = codec.decode_batch([plain, told], steps=2, guidance=3)
        last = [*codec.decode_progressive(told, steps=2, guidance=3)][-1]
    assert images[told, 3].size == (130, 96)
    assert difference(images[plain, 1], images[told, 1]) > 0
    assert difference(images[told, 1], images[told, 3]) > 0
    assert difference(batch[0], images[plain, 3]) <= 1
    assert difference(batch[1], images[told, 3]) <= 1
    assert difference(last.image, images[told, 3]) == 0


def test_without_tokenizers_the_error_says_what_to_install(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with Codec.load(bundle, threads=1) as codec:
        data = codec.encode(np.zeros((32, 32, 3), np.uint8))
        with pytest.raises(BackendError, match=r"pip install 'percoedge\[text\]'"):
            codec.decode(data)


def test_tokenizers_are_files_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    assert list(bundle.manifest.tokenizers) == ["text_clip_l", "text_clip_g", "text_t5"]
    pack_zip(bundle, tmp_path / "small.zip")
    packed = Bundle.open(tmp_path / "small.zip")
    packed.verify()
    shutil.copytree(bundle.path, tmp_path / "altered")
    (tmp_path / "altered/text_t5.tokenizer.json").write_bytes(b"{}")
    with pytest.raises(BundleError, match=r"'text_t5.tokenizer.json': expected \d+ bytes, got 2"):
        Bundle.open(tmp_path / "altered").read_tokenizer("text_t5")
    assert packed.read_tokenizer("text_t5") == bundle.read_tokenizer("text_t5")
    with pytest.raises(BundleError, match="expected a tokenizer of graph 'flow'"):
        packed.read_tokenizer("flow")


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (5, 2)])
def test_at_a_token_per_cell_odd_sides_are_padded(grid: tuple[int, int]) -> None:
    """Patches of the transformer are two cells a side; here a token is one."""
    config = at_rate(
        load_config("sd3-medium", flow={"layers": 1, "heads": 1, "joint_attention_dim": 8}),
        "0.0937",
    ).flow
    flow = FlowModel(msgspec.structs.replace(config, text_tokens=2), 16, 1).eval()
    z = torch.randn(1, 320, *grid)
    text = torch.randn(1, 2, 8), torch.randn(1, 2048)
    with torch.no_grad():
        assert flow(torch.randn(1, 16, *grid), z, torch.ones(1), text).shape[2:] == grid


def test_t5_keeps_in_fp32_what_would_overflow() -> None:
    torch.manual_seed(0)
    tower = t5_model().eval()
    with torch.no_grad():
        for block in tower.encoder.block:
            block.layer[-1].DenseReluDense.wo.weight *= 1e5
    round_weights(tower)
    ids = torch.randint(2, 258, (1, 20), dtype=torch.int32)
    with torch.no_grad():
        expected = T5Graph(tower)(ids)
        kept = T5Graph(tower.half())(ids)
        plain = tower.half()(ids)[0].float()
    assert (kept - expected).norm() / expected.norm() < 5e-3
    assert not (plain - expected).norm() / expected.norm() < 0.1


@pytest.mark.parametrize(
    ("kind", "bound"), [("flow", 5e-3), ("decoder", 0.2), ("text_clip_g", 5e-3), ("text_t5", 5e-3)]
)
def test_graphs_in_fp16_are_close(assembly: Assembly, kind: str, bound: float) -> None:
    config, family = assembly.config, assembly.family
    plan, half = graph_plans(config)[kind], torch.float16
    feeds = example_feeds(plan.inputs, {"n": 2, "h": 2, "w": 3}, config.codec.codebook_size)
    with in_precision(family, plan.parts, half):
        program = trace(plan.build(family, half), plan.inputs, plan.outputs, feeds, plan.bounds)
        model = program.model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString())
    result = session.run(None, feeds)[0]
    with in_precision(family, plan.parts, torch.float32), torch.no_grad():
        tensors = {name: torch.from_numpy(feed) for name, feed in feeds.items()}
        output = plan.build(family, torch.float32)(**tensors)
    expected = (output[0] if isinstance(output, tuple) else output).numpy()
    if expected.dtype == np.uint8:
        assert np.mean(result != expected) < bound
    else:
        assert np.linalg.norm(result - expected) < bound * np.linalg.norm(expected)
    single = [t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    large = [list(tensor.dims) for tensor in single if len(tensor.raw_data) > 4096]
    assert large == ([[96, 64]] * 2 if kind == "text_t5" else [])  # that T5 keeps in FP32


def test_the_command_exports_random_weights(
    config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flow = msgspec.structs.replace(config.flow, guided=False)  # one graph less
    monkeypatch.setattr(
        command, "load_config", lambda name: msgspec.structs.replace(config, flow=flow)
    )
    monkeypatch.setattr(
        sys, "argv", ["bundle", "micro", "--random", "--fp16-only", "--out", str(tmp_path)]
    )
    assert command.main() == 0, capsys.readouterr()
    bundle = Bundle.open(tmp_path)
    assert bundle.manifest.licence == "random weights"
    assert [*bundle.manifest.graphs["flow"].variants] == ["fp16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--random", "--rate", "0.0313"], "expected a rate of sd3-medium"),
        (["sd3-medium", "--random", "--rate", "1"], "expected a rate of 0.1250, 0.0937"),
        (["sd3-medium", "--sd3", "nowhere"], "--sd3 needs --hyper and --mim"),
        (
            ["sd3-medium", "--sd3", "nowhere", "--hyper", "h", "--mim", "m"],
            "in the layout of diffusers",
        ),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["bundle", *arguments, "--out", str(tmp_path / "out")])
    try:
        assert command.main() == 4
    except SystemExit as exit:
        assert exit.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_taesd_decodes_in_place_of_the_autoencoder(sources: Sources, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = AutoencoderTiny(latent_channels=16)
    tiny.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    family = assemble(small_config(), replace(sources, tiny_vae=file, t5=False)).family
    vae = family.vae.float()
    latent = torch.randn(1, 16, 4, 6)
    with torch.no_grad():
        theirs = tiny.half().float().decode(latent).sample
        torch.testing.assert_close(vae.decode(latent), theirs, atol=1e-5, rtol=1e-5)
    assert parameters(vae.tiny_decoder) < 2e6
    assert "t5" not in family.text


def test_a_finetuned_flow_replaces_the_directorys(
    assembly: Assembly, sources: Sources, tmp_path: Path
) -> None:
    tensors = {
        f"flow.{name}": tensor.float() + 0.5
        for name, tensor in assembly.family.flow.state_dict().items()
    }
    save_file(tensors, tmp_path / "flow.safetensors")
    family = assemble(small_config(), replace(sources, flow=tmp_path / "flow.safetensors")).family
    ours, before = (
        f.flow.transformer.pos_embed.proj.weight.float() for f in (family, assembly.family)
    )
    torch.testing.assert_close(ours, before + 0.5, atol=1e-3, rtol=1e-3)


def break_names(sources: Sources, folder: Path) -> Sources:
    tensors = load_file(sources.mim)
    tensors.pop("mim.embedding")
    save_file(tensors, folder / "mim.safetensors")
    return replace(sources, mim=folder / "mim.safetensors")


def break_shapes(sources: Sources, folder: Path) -> Sources:
    config = msgspec.structs.replace(small_config())
    hyper, mim = write_own_parts(folder, at_rate(config, "0.0019"))
    return replace(sources, mim=mim)


def break_numbers(sources: Sources, folder: Path) -> Sources:
    tensors = load_file(sources.sd3 / "transformer/diffusion_pytorch_model.safetensors")
    tensors["proj_out.bias"] = tensors["proj_out.bias"] * 0 + 1e6
    save_file(tensors, folder / "flow.safetensors")
    return replace(sources, flow=folder / "flow.safetensors")


def break_file(sources: Sources, folder: Path) -> Sources:
    (folder / "mim.safetensors").write_bytes(b"not safetensors")
    return replace(sources, mim=folder / "mim.safetensors")


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (break_names, r"expected the tensors of Mim; missing: embedding; unknown: none"),
        (break_shapes, r"expected embedding of \(1025, 32\), got \(257, 32\); .* the rate"),
        (break_numbers, r"expected numbers that fit torch.float16, proj_out.bias has larger"),
        (break_file, r"expected a safetensors file"),
        (lambda s, f: replace(s, sd3=f), r"in the layout of diffusers"),
    ],
)
def test_what_does_not_fit_is_named(
    sources: Sources,
    tmp_path: Path,
    breaks: Callable[[Sources, Path], Sources],
    message: str,
) -> None:
    with pytest.raises(BundleError, match=message):
        assemble(small_config(), breaks(sources, tmp_path))
