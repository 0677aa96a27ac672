"""Folders of PerCo (SD) with random weights, in the layout that its authors publish."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from percoedge.export.models.checkpoints import fill_at_random
from percoedge.export.models.perco_sd.checkpoint import Networks
from percoedge.export.models.perco_sd.config import Config

UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.27.0",
    "act_fn": "silu",
    "attention_head_dim": [2, 4],
    "block_out_channels": [32, 64],
    "cross_attention_dim": 16,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "out_channels": 4,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 32, 32, 32],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "scaling_factor": 0.18215,
}
HYPER: dict[str, Any] = {
    "_class_name": "HyperEncoder",
    "cfg_ss": 32,
    "cfg_cs": 256,
    "N": 16,
    "M": 24,
    "codebook_dim": 8,
    "in_channels": 4,
}
TEXT: dict[str, Any] = {
    "architectures": ["CLIPTextModel"],
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 1,
    "hidden_act": "gelu",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "max_position_embeddings": 77,
}
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
FILES = {
    "unet": "diffusion_pytorch_model",
    "hyper_enc": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}


def random_state(config: Config) -> dict[str, dict[str, Tensor]]:
    """Tensors by part and name, those besides that take no part."""
    networks = Networks(config)
    fill_at_random(networks, torch.float32)
    generator = torch.Generator().manual_seed(1)
    codebook = torch.randn(1, config.codebook_size, config.code_channels, generator=generator)
    codebook = torch.nn.functional.normalize(codebook, dim=-1)
    networks.hyper.quantizer._codebook.embed.copy_(codebook)
    text = {f"text_model.{name}": t for name, t in networks.text.state_dict().items()}
    unet = networks.unet.state_dict()
    conv_in = {f"conv_in.{n}": unet[f"conv_in_extended.{n}"].clone() for n in ("weight", "bias")}
    hyper = networks.hyper.state_dict()
    averages = {
        "initted": torch.ones(1),
        "cluster_size": torch.zeros(1, config.codebook_size),
        "embed_avg": codebook.clone(),
    }
    return {
        "unet": {**unet, **conv_in},
        "hyper_enc": {**hyper, **{f"quantizer._codebook.{n}": t for n, t in averages.items()}},
        "vae": dict(networks.vae.vae.state_dict()),
        "text_encoder": {**text, "text_model.embeddings.position_ids": torch.arange(77)[None]},
    }


def write_configs(folder: Path, **changes: dict[str, Any]) -> None:
    """All JSON files of a folder; ``changes`` of entries by part."""
    tables = {
        "unet": UNET,
        "vae": VAE,
        "hyper_enc": HYPER,
        "text_encoder": TEXT,
        "scheduler": SCHEDULER,
    }
    for part, table in tables.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / name).write_text(json.dumps({**table, **changes.get(part, {})}))


def write_tokenizer(folder: Path) -> None:
    """CLIP's kind of tokenizer over single bytes, padded with "!", id 0."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # "!" is the first
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "pad_token": "!",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save(path: Path, tensors: dict[str, Any], suffix: str = ".safetensors") -> None:
    """Tensors as a file in either form."""
    for old in path.parent.glob(f"{path.name}.*"):
        old.unlink()
    if suffix == ".bin":
        torch.save(tensors, path.with_suffix(suffix))
    else:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, path.with_suffix(suffix))


@pytest.fixture(scope="session")
def fakes() -> Any:
    """What test modules, which import nothing from one another, make folders with."""
    return SimpleNamespace(**{name: globals()[name] for name in _SHARED})


_SHARED = ("FILES", "random_state", "save", "write_configs", "write_tokenizer")


@pytest.fixture(scope="session")
def make_folder(fakes: Any) -> Callable[..., Path]:
    """A whole folder with random weights; ``changes`` of configurations by part."""
    from percoedge.export.models.perco_sd.config import read_folder

    def make(folder: Path, suffix: str = ".safetensors", **changes: dict[str, Any]) -> Path:
        write_configs(folder, **changes)
        write_tokenizer(folder / "tokenizer")
        for part, tensors in random_state(read_folder(folder)).items():
            save(folder / part / FILES[part], tensors, suffix)
        (folder / "checkpoint-10").mkdir()
        return folder

    return make
