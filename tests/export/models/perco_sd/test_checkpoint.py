"""Published folders are read strictly: what does not fit is refused by its name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

from percoedge.errors import BundleError
from percoedge.export.models.perco_sd.checkpoint import load_networks
from percoedge.export.models.perco_sd.config import read_folder
from percoedge.export.models.perco_sd.network import HyperEncoder, Vae, build_text, build_unet

# Tokens a side of 512x512 pixels, codebook, parameters of the hyper-encoder, by published rate.
RATES = {
    "0.1250": (64, 256, 4_100_960),
    "0.0313": (32, 256, 4_985_696),
    "0.0019": (8, 256, 5_888_864),
}
SD21: dict[str, dict[str, Any]] = {
    "unet": {
        "attention_head_dim": [5, 10, 20, 20],
        "block_out_channels": [320, 640, 1280, 1280],
        "cross_attention_dim": 1024,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
    },
    "hyper_enc": {"N": 192, "M": 320, "codebook_dim": 32},
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
    },
}
TENSORS = {
    "unet": ("conv_in_extended.weight", "mid_block.attentions.0.proj_in.bias"),
    "hyper_enc": ("quantizer._codebook.embed", "backbone.14.conv_b.2.conv.4.bias"),
    "vae": ("encoder.mid_block.attentions.0.to_k.weight", "post_quant_conv.weight"),
    "text_encoder": (
        "text_model.encoder.layers.1.mlp.fc1.weight",
        "text_model.final_layer_norm.bias",
    ),
}


def _missing(state: dict[str, Any], name: str) -> None:
    del state[name]


def _renamed(state: dict[str, Any], name: str) -> None:
    state[f"{name}s"] = state.pop(name)


def _reshaped(state: dict[str, Any], name: str) -> None:
    state[name] = torch.cat([state[name], state[name]])


def _extra(state: dict[str, Any], name: str) -> None:
    state[f"{name}_copy"] = state[name].clone()


def _nan(state: dict[str, Any], name: str) -> None:
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = float("nan")


def _integers(state: dict[str, Any], name: str) -> None:
    state[name] = state[name].int()


TAMPERED = {
    "missing": (_missing, "missing: {name}; unknown: none"),
    "renamed": (_renamed, "missing: {name}; unknown: .*{name}s"),
    "reshaped": (_reshaped, r"expected {name} of \("),
    "extra": (_extra, "missing: none; unknown: {name}_copy"),
    "nan": (_nan, "expected finite numbers in {name}"),
    "integers": (_integers, "expected {name} as a tensor of floats, got torch.int32"),
}


@pytest.fixture(scope="module")
def folder(make_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize("rate", RATES)
def test_the_networks_have_the_published_sizes(fakes: Any, tmp_path: Path, rate: str) -> None:
    side, codebook_size, parameters = RATES[rate]
    changes = {**SD21, "hyper_enc": {**SD21["hyper_enc"], "cfg_ss": side, "cfg_cs": codebook_size}}
    fakes.write_configs(tmp_path, **changes)
    config = read_folder(tmp_path)
    assert (config.rate, config.stride, config.latent_stride) == (rate, 512 // side, 8)
    assert config.flow_multiple * config.stride == 64
    with torch.device("meta"):
        hyper = HyperEncoder(config)
        assert sum(p.numel() for p in hyper.parameters()) == parameters
        if rate != "0.0313":
            return
        unet, vae, text = build_unet(config), Vae(config), build_text(config)
    unused = 320 * 4 * 9 + 320  # conv_in, which the file holds besides
    assert sum(p.numel() for p in unet.parameters()) + unused == 866_844_164
    assert len(unet.state_dict()) + 2 == 688
    assert sum(p.numel() for p in vae.parameters()) == 34_163_664 + 49_490_199
    assert sum(p.numel() for p in text.parameters()) == 340_387_840


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_every_tensor_is_loaded(
    make_folder: Callable[..., Path], fakes: Any, tmp_path: Path, suffix: str
) -> None:
    folder = make_folder(tmp_path / "model", suffix)
    config = read_folder(folder)
    networks = load_networks(folder, config)
    given = fakes.random_state(config)
    loaded = {
        "unet": networks.unet.state_dict(),
        "hyper_enc": networks.hyper.state_dict(),
        "vae": networks.vae.vae.state_dict(),
    }
    for part, tensors in loaded.items():
        assert all(torch.equal(given[part][name], tensor) for name, tensor in tensors.items())
    left = given["hyper_enc"].keys() - loaded["hyper_enc"].keys()
    assert left == {f"quantizer._codebook.{n}" for n in ("initted", "cluster_size", "embed_avg")}
    words = networks.text.get_input_embeddings().weight
    name = "text_model.embeddings.token_embedding.weight"
    assert torch.equal(words, given["text_encoder"][name])


def test_old_names_of_the_autoencoders_attention_are_read(
    make_folder: Callable[..., Path], fakes: Any, tmp_path: Path
) -> None:
    folder = make_folder(tmp_path / "model")
    path = folder / "vae" / fakes.FILES["vae"]
    expected = load_file(path.with_suffix(".safetensors"))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = dict(expected)
    for name in expected:
        for new, before in old.items():
            if f".{new}." in name:
                tensors[name.replace(f".{new}.", f".{before}.")] = tensors.pop(name)
    assert tensors.keys() != expected.keys()
    fakes.save(path, tensors)
    networks = load_networks(folder, read_folder(folder))
    loaded = networks.vae.vae.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", TAMPERED)
@pytest.mark.parametrize(("part", "index"), [(part, i) for part in TENSORS for i in (0, 1)])
def test_a_tampered_checkpoint_is_refused(
    fakes: Any, folder: Path, tmp_path: Path, part: str, index: int, kind: str
) -> None:
    name = TENSORS[part][index]
    tamper, message = TAMPERED[kind]
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        if path.name != part:
            (copy / path.name).symlink_to(path)
    (copy / part).mkdir()
    (copy / part / "config.json").symlink_to(folder / part / "config.json")
    state = load_file((folder / part / fakes.FILES[part]).with_suffix(".safetensors"))
    tamper(state, name)
    fakes.save(copy / part / fakes.FILES[part], state)
    shown = name.removeprefix("text_model.")
    with pytest.raises(BundleError, match=message.format(name=shown)) as raised:
        load_networks(copy, read_folder(copy))
    assert str(copy / part) in str(raised.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("hyper_enc", {"cfg_ss": 16}, r"backbone\.4\.weight of"),
        ("hyper_enc", {"cfg_cs": 64}, r"quantizer\._codebook\.embed of"),
        ("hyper_enc", {"cfg_ss": 24}, "expected integers cfg_ss"),
        ("hyper_enc", {"cfg_cs": "256"}, "expected integers cfg_ss"),
        ("hyper_enc", {"in_channels": 16}, "expected in_channels to be 4"),
        ("unet", {"in_channels": 9}, "expected in_channels to be 4"),
        ("unet", {"class_embed_type": "timestep"}, "expected class_embed_type to be None"),
        ("unet", {"down_block_types": ["Nothing", "DownBlock2D"]}, "expected configurations"),
        ("unet", {"block_out_channels": [32, 32]}, "expected .* of "),
        ("scheduler", {"_class_name": "PNDMScheduler"}, "_class_name to be DDIMScheduler"),
        ("scheduler", {"prediction_type": "epsilon"}, "prediction_type to be v_prediction"),
        ("scheduler", {"set_alpha_to_one": True}, "set_alpha_to_one to be False"),
        ("scheduler", {"timestep_spacing": "trailing"}, "timestep_spacing to be leading"),
        ("scheduler", {"steps_offset": 0}, "steps_offset to be 1"),
        ("scheduler", {"beta_schedule": "cubic"}, "expected a scheduler of diffusers"),
    ],
)
def test_another_model_is_refused(
    fakes: Any, folder: Path, tmp_path: Path, part: str, changes: dict[str, Any], message: str
) -> None:
    fakes.write_configs(tmp_path, **{part: changes})
    for name, file in fakes.FILES.items():
        (tmp_path / name / f"{file}.safetensors").symlink_to(folder / name / f"{file}.safetensors")
    with pytest.raises(BundleError, match=message):
        load_networks(tmp_path, read_folder(tmp_path))


def test_a_file_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.name != "hyper_enc":
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(BundleError, match=r"hyper_enc/config\.json"):
        read_folder(tmp_path)
    (tmp_path / "hyper_enc").mkdir()
    (tmp_path / "hyper_enc" / "config.json").symlink_to(folder / "hyper_enc" / "config.json")
    with pytest.raises(BundleError, match="hyper_enc: expected one .safetensors or .bin file"):
        load_networks(tmp_path, read_folder(tmp_path))


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_a_checkpoint_runs_no_code(
    make_folder: Callable[..., Path], fakes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_folder(tmp_path / "model")
    fakes.save(folder / "unet" / fakes.FILES["unet"], {"conv_out.bias": _Code()}, ".bin")
    with pytest.raises(BundleError, match="holds tensors only"):
        load_networks(folder, read_folder(folder))
    assert "unpickled" not in capsys.readouterr().out


def test_angles_are_those_of_diffusers_scheduler(folder: Path) -> None:
    angles = torch.tensor(read_folder(folder).angles, dtype=torch.float64)
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    torch.testing.assert_close(
        torch.cos(angles) ** 2, scheduler.alphas_cumprod.double(), rtol=0, atol=1e-12
    )
