"""A full-size family out of local files: a Stable Diffusion 3 directory and what PerCoV2 adds.

The directory is laid out by diffusers: transformer, vae, text_encoder (CLIP-L), text_encoder_2
(CLIP-G), text_encoder_3 (T5, optional) and a tokenizer folder for each; their configurations tell
the sizes. Three safetensors files come besides, named as tensors are in ``Family.state_dict()``:
the hyper-encoder with its quantiser (``hyper.``, ``quantizer.``), the entropy model (``mim.``) and,
where the flow was finetuned, all of it (``flow.``, or diffusers' own names of its transformer).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor

from percoedge.errors import BundleError
from percoedge.export.config import Config
from percoedge.export.models.checkpoints import (
    fill,
    fill_at_random,
    read_config,
    read_tensors,
    without_weights,
)
from percoedge.export.models.mim import Mim
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.text import byte_tokenizer, read_tokenizer, tower_length

TOWER_FOLDERS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5": "text_encoder_3"}
_PATCH = "pos_embed.proj.weight"
_TIED = ("shared.weight", "encoder.embed_tokens.weight")  # two names of T5's embedding


@dataclass(frozen=True)
class Sources:
    """Where the parts of a family lie. ``flow`` replaces the directory's transformer.

    ``tiny_vae``: TAESD3, as diffusers stores it, in place of the autoencoder's decoder. ``t5``:
    whether to take the T5 tower, if the directory has it.
    """

    sd3: Path
    hyper: Path
    mim: Path
    flow: Path | None = None
    tiny_vae: Path | None = None
    t5: bool = True


@dataclass(frozen=True)
class Assembly:
    """A family, the configuration that describes it, and the JSON of each tower's tokenizer."""

    family: Family
    config: Config
    tokenizers: dict[str, str] = field(default_factory=dict)


def assemble(config: Config, sources: Sources) -> Assembly:
    """Load a family whose sizes are those of the files, its float parts in FP16.

    ``config`` tells what the files do not: rate, hyper-encoder and entropy model. Raises
    BundleError naming the file, folder or tensor that is missing or does not fit.
    """
    config = _config_of(config, sources)
    with without_weights():
        family = Family(config)
    half, single = torch.float16, torch.float32
    flow = sources.flow or sources.sd3 / "transformer"
    fill(family.flow.transformer, _flow_tensors(flow, config), half, flow, ("pos_embed.pos_embed",))
    vae = read_tensors(sources.sd3 / "vae")
    if sources.tiny_vae is not None:
        vae = {name: tensor for name, tensor in vae.items() if not name.startswith("decoder.")}
        decoder = _below(read_tensors(sources.tiny_vae), "decoder.")
        fill(family.vae.tiny_decoder, decoder, half, sources.tiny_vae)
    fill(family.vae.vae, vae, half, sources.sd3 / "vae")
    hyper = read_tensors(sources.hyper)
    fill(family.hyper, _below(hyper, "hyper."), half, sources.hyper)
    fill(family.quantizer, _below(hyper, "quantizer."), single, sources.hyper)
    fill(family.mim, _below(read_tensors(sources.mim), "mim."), single, sources.mim)
    tokenizers = {}
    for name, tower in family.text.items():
        folder = sources.sd3 / TOWER_FOLDERS[name]
        tensors = read_tensors(folder)
        if name == "t5":
            embedding = next((tensors[key] for key in _TIED if key in tensors), None)
            if embedding is not None:
                tensors |= dict.fromkeys(_TIED, embedding)
        fill(tower, tensors, half, folder, ("position_ids",))
        tokenizer = sources.sd3 / TOWER_FOLDERS[name].replace("text_encoder", "tokenizer")
        tokenizers[name] = read_tokenizer(tokenizer, tower_length(config, name))
    return Assembly(family.eval(), config, tokenizers)


def random_family(config: Config) -> Assembly:
    """A family of random weights, to measure speed and memory with; large parts in FP16."""
    with without_weights():
        family = Family(config)
    for number, part in enumerate((family.vae, family.flow, family.text)):
        fill_at_random(part, torch.float16, seed=number)
    for part in (family.hyper, family.quantizer):
        fill_at_random(part, torch.float32)
    family.mim = Mim(config.mim, config.codec.codebook_size)
    tokenizers = {name: byte_tokenizer(config, name) for name in config.text}
    return Assembly(family.eval(), config, tokenizers)


def _config_of(config: Config, sources: Sources) -> Config:
    """``config`` with the sizes that the directory states."""
    flow, vae = read_config(sources.sd3 / "transformer"), read_config(sources.sd3 / "vae")
    if flow.get("qk_norm") or flow.get("dual_attention_layers"):
        raise BundleError(
            f"{sources.sd3}: expected the transformer of Stable Diffusion 3 medium, got one with "
            "normalised queries and keys, as 3.5 has; use the directory of 3 medium"
        )
    text: dict[str, dict[str, Any]] = {}
    for name, folder in TOWER_FOLDERS.items():
        if name != "t5" or (sources.t5 and (sources.sd3 / folder).is_dir()):
            text[name] = read_config(sources.sd3 / folder)
    try:
        return replace(
            config,
            codec=replace(config.codec, latent_channels=vae["latent_channels"]),
            flow=replace(
                config.flow,
                layers=flow["num_layers"],
                heads=flow["num_attention_heads"],
                head_dim=flow["attention_head_dim"],
                joint_attention_dim=flow["joint_attention_dim"],
                pooled_projection_dim=flow["pooled_projection_dim"],
                pos_embed_max_size=flow["pos_embed_max_size"],
                pos_embed_base_size=flow["sample_size"] // 2,
            ),
            vae=replace(
                config.vae,
                block_out_channels=vae["block_out_channels"],
                layers_per_block=vae["layers_per_block"],
                scaling_factor=vae["scaling_factor"],
                shift_factor=vae["shift_factor"],
                tiny_decoder=sources.tiny_vae is not None,
            ),
            text=text,
        )
    except KeyError as error:
        raise BundleError(
            f"{sources.sd3}: expected {error} in the config.json of transformer and vae; use a "
            "directory of Stable Diffusion 3 medium as diffusers writes it"
        ) from error


def _flow_tensors(path: Path, config: Config) -> dict[str, Tensor]:
    """Tensors of the flow's transformer, its first layer widened for z_l if it is not yet."""
    tensors = read_tensors(path)
    if path.is_file():
        tensors = {name.removeprefix("flow.transformer."): t for name, t in tensors.items()}
    patch = tensors.get(_PATCH)
    if patch is not None and patch.shape[1] == config.codec.latent_channels:
        fresh = patch.new_zeros(len(patch), config.flow.condition_channels, *patch.shape[2:])
        tensors[_PATCH] = torch.cat([patch, fresh], dim=1)
    return tensors


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    found = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    return found
