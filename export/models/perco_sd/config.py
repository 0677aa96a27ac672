"""What the JSON files of a published folder say of the networks and of the sampler, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
from diffusers import DDIMScheduler

from percoedge.errors import BundleError
from percoedge.export.config import RATES
from percoedge.export.models.checkpoints import read_config, read_json

# What the graphs and the runtime's loop compute; everything else is read.
_SAMPLER = {
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
}
_UNET = {"class_embed_type": None, "addition_embed_type": None, "encoder_hid_dim_type": None}
_SIDES = (8, 16, 32, 64)
_SIDE_PIXELS = 512


@dataclass(frozen=True)
class Config:
    """Sizes of the networks, and tables of diffusers and transformers where these make them.

    ``side``: tokens a side of 512x512 pixels. ``width``, ``features`` and ``code_channels``: of the
    hyper-encoder. ``angles``: of the sampler, as in the manifest.
    """

    side: int
    codebook_size: int
    width: int
    features: int
    code_channels: int
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    angles: tuple[float, ...]

    @property
    def stride(self) -> int:
        """Pixels a side that a token covers."""
        return _SIDE_PIXELS // self.side

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae["latent_channels"])

    @property
    def latent_stride(self) -> int:
        """Pixels a side that a latent cell covers."""
        return 1 << (len(self.vae["block_out_channels"]) - 1)

    @property
    def cells(self) -> int:
        """Latent cells a side that a token covers."""
        return self.stride // self.latent_stride

    @property
    def flow_multiple(self) -> int:
        """Tokens a side of which the network takes whole multiples: it halves them so often."""
        halvings = len(self.unet["block_out_channels"]) - 1
        return max(1, (1 << halvings) // self.cells)

    @property
    def rate(self) -> str:
        """Bits per pixel of tokens at 512x512, as the authors write them where they have such."""
        for name, rate in RATES.items():
            if (rate.grid, rate.codebook_size) == (self.side, self.codebook_size):
                return name
        return f"{log2(self.codebook_size) / self.stride**2:.4f}"


def read_folder(folder: Path) -> Config:
    """The model in a folder. Raises BundleError naming the file and the entry that differs."""
    hyper, unet, vae, text = (
        read_config(folder / part) for part in ("hyper_enc", "unet", "vae", "text_encoder")
    )
    where = folder / "hyper_enc" / "config.json"
    given = [hyper.get(name) for name in ("cfg_ss", "cfg_cs", "N", "M", "codebook_dim")]
    sizes = [size for size in given if isinstance(size, int) and size > 1]
    if len(sizes) < len(given) or sizes[0] not in _SIDES:
        raise BundleError(
            f"{where}: expected integers cfg_ss (8, 16, 32 or 64), cfg_cs, N, M and codebook_dim, "
            f"got {given}; take the folder that its authors published"
        )
    side, codebook_size, width, features, code_channels = sizes
    channels = vae.get("latent_channels")
    expected = {**_UNET, "in_channels": channels, "out_channels": channels}
    _require(folder / "unet" / "config.json", unet, expected)
    _require(where, hyper, {"in_channels": channels})
    return Config(
        side=side,
        codebook_size=codebook_size,
        width=width,
        features=features,
        code_channels=code_channels,
        unet=unet,
        vae=vae,
        text=text,
        angles=_angles(folder / "scheduler" / "scheduler_config.json"),
    )


def _require(path: Path, table: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if table.get(name) != value:
            raise BundleError(
                f"{path}: expected {name} to be {value}, as in the published model, got "
                f"{table.get(name)}; this is another model"
            )


def _angles(path: Path) -> tuple[float, ...]:
    """arctan(sigma / alpha) of each step of training, in radians."""
    table = read_json(path)
    # what an older release did not write is what diffusers takes it for
    filled = {**dict(DDIMScheduler().config), **table}
    _require(path, filled, {"_class_name": "DDIMScheduler", **_SAMPLER})
    try:
        scheduler = DDIMScheduler.from_config(table)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise BundleError(f"{path}: expected a scheduler of diffusers: {error}") from error
    kept = scheduler.alphas_cumprod.double().numpy()
    return tuple(np.arctan2(np.sqrt(1 - kept), np.sqrt(kept)).tolist())
