"""A published folder into networks, with every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from percoedge.errors import BundleError
from percoedge.export.models.checkpoints import fill, read_tensors, without_weights
from percoedge.export.models.perco_sd.config import Config
from percoedge.export.models.perco_sd.network import HyperEncoder, Vae, build_text, build_unet

# Tensors that take no part: the running averages that trained the codebook, the layer that
# conv_in_extended stands in for, and positions that transformers counts by itself.
_LEFT = {
    "hyper_enc": re.compile(r"quantizer\._codebook\.(initted|cluster_size|embed_avg)"),
    "unet": re.compile(r"conv_in\.(weight|bias)"),
    "text_encoder": re.compile(r"(text_model\.)?embeddings\.position_ids"),
}
# Names that older releases of diffusers gave to the layers of the autoencoder's attention.
_OLD_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
_OLD_LAYER = re.compile(rf"(attentions\.\d+)\.({'|'.join(_OLD_ATTENTION)})\.")


class Networks(nn.Module):
    """The published networks in float32: ``hyper``, ``unet``, ``vae``, ``text``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.hyper = HyperEncoder(config)
        self.unet: UNet2DConditionModel = build_unet(config)
        self.vae = Vae(config)
        self.text: CLIPTextModel = build_text(config)


def load_networks(folder: Path, config: Config) -> Networks:
    """The networks of a folder.

    Raises BundleError when a configuration cannot be built, and naming the file and the tensor that
    is missing, unknown, of another shape, no float or not finite.
    """
    try:
        with without_weights():
            networks = Networks(config)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise BundleError(
            f"{folder}: expected configurations of diffusers and transformers: {error}; take the "
            "folder that its authors published"
        ) from error
    parts: Mapping[str, nn.Module] = {
        "hyper_enc": networks.hyper,
        "unet": networks.unet,
        "vae": networks.vae.vae,
        "text_encoder": networks.text,
    }
    for name, module in parts.items():
        tensors = _tensors_of(folder, name)
        if name == "text_encoder":
            tensors = {n.removeprefix("text_model."): t for n, t in tensors.items()}
        fill(module, tensors, torch.float32, folder / name)
    return networks.requires_grad_(False).eval()


def _tensors_of(folder: Path, part: str) -> dict[str, Tensor]:
    tensors = read_tensors(folder / part)
    if part == "vae":
        tensors = {_OLD_LAYER.sub(_renamed, name): tensor for name, tensor in tensors.items()}
    left = _LEFT.get(part)
    return {n: t for n, t in tensors.items() if left is None or not left.fullmatch(n)}


def _renamed(match: re.Match[str]) -> str:
    return f"{match[1]}.{_OLD_ATTENTION[match[2]]}."
