"""What the YAML file beside a published checkpoint says of the network, checked strictly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from percoedge.errors import BundleError

PATCH = 16
"""Pixels a side of a cell of the denoiser's grid."""

STRIDES = (4, 8, 16, 32)

# What every published network has in common; the sizes are read.
_FIXED = {"pred": "x", "in_channels": 3, "patch_size": PATCH, "light": True, "up2x": True}
_SIZES = (
    "ds",
    "codebook_bits",
    "hidden_size",
    "hidden_size_x",
    "num_blocks",
    "num_cond_blocks",
)
_TRAINING_ONLY = {"fix_encoder", "net_ckpt_path", "pretrain_prefix"}
# The default of noise_level depends on the class: only this one leaves the noise out by default.
_NOISELESS_CLASS = "FinetunedOneStepCoD"


@dataclass(frozen=True)
class Config:
    """Sizes of a network; the defaults are those of all published codecs.

    ``stride``: pixels a side that a token covers. ``bits``: of a token. ``width`` and ``blocks``:
    of the denoiser on the grid of patches, ``width`` of the token decoder too. ``pixel_width`` and
    ``pixel_blocks``: of the network on pixels. ``encoder_width``: channels of the encoder's first
    level. ``code_channels``: length of a codebook vector. Raises ValueError.
    """

    stride: int
    bits: int
    width: int = 384
    blocks: int = 21
    pixel_width: int = 32
    pixel_blocks: int = 3
    encoder_width: int = 128
    code_channels: int = 128

    def __post_init__(self) -> None:
        if self.stride not in STRIDES or not 1 <= self.bits <= 16:
            raise ValueError(
                f"expected ds of {', '.join(map(str, STRIDES))} and codebook_bits of 1 to 16, got "
                f"{self.stride} and {self.bits}; take the YAML file of a published CoD-Lite codec"
            )

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return 1 << self.bits

    @property
    def rate_bpp(self) -> float:
        """Bits per pixel of tokens that are coded uniformly."""
        return self.bits / self.stride**2


def read_config(path: Path) -> Config:
    """The network that a YAML file of the authors describes.

    Raises BundleError naming the entry that is missing or that the graphs do not support.
    """
    try:
        table: Any = msgspec.yaml.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        raise BundleError(
            f"{path}: expected the YAML file of a checkpoint: {error}; fetch it again"
        ) from error
    for key in ("model", "net"):
        table = table.get(key) if isinstance(table, dict) else None
    if not isinstance(table, dict) or not isinstance(table.get("init_args"), dict):
        raise BundleError(
            f"{path}: expected model.net.init_args, got none; take the YAML file that was "
            "published with the checkpoint"
        )
    arguments = dict(table["init_args"])
    noise = 0.0 if str(table.get("class_path")).endswith(f".{_NOISELESS_CLASS}") else 1.0
    arguments.setdefault("noise_level", noise)
    for name, value in {**_FIXED, "noise_level": 0.0}.items():
        given = arguments.pop(name, None)
        if given != value:
            raise BundleError(
                f"{path}: expected model.net.init_args.{name} to be {value}, as in every published "
                f"one-step CoD-Lite codec, got {given}; this is another network"
            )
    sizes = [arguments.pop(name, None) for name in _SIZES]
    for name, size in zip(_SIZES, sizes, strict=True):
        if not isinstance(size, int):
            raise BundleError(
                f"{path}: expected model.net.init_args.{name} to be an integer, got {size}; take "
                "the YAML file that was published with the checkpoint"
            )
    unknown = arguments.keys() - _TRAINING_ONLY
    if unknown:
        raise BundleError(
            f"{path}: expected no more than the known entries of model.net.init_args, got "
            f"{', '.join(sorted(unknown))}; this is another network"
        )
    stride, bits, width, pixel_width, all_blocks, blocks = sizes
    try:
        return Config(stride, bits, width, blocks, pixel_width, all_blocks - blocks)
    except ValueError as error:
        raise BundleError(f"{path}: {error}") from error
