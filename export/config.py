"""One TOML file per model family: sizes of the parts and the training recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

CONFIG_DIR = Path(__file__).parent / "configs"


class Rate(NamedTuple):
    """Tokens a side of a 512x512 picture, and how many different ones there are."""

    grid: int
    codebook_size: int


# PerCo (SD), arXiv 2409.20255, by bits per pixel of raw tokens at 512x512; 8196 is as published.
RATES = {
    "0.1250": Rate(64, 256),
    "0.0937": Rate(64, 64),
    "0.0507": Rate(32, 8196),
    "0.0313": Rate(32, 256),
    "0.0098": Rate(16, 1024),
    "0.0024": Rate(8, 1024),
    "0.0019": Rate(8, 256),
}


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class VaeConfig(_Strict, frozen=True):
    """Widths and residual blocks per level; ``kind`` picks AutoencoderKL at full size.

    ``tiny_decoder``: TAESD's small decoder in place of AutoencoderKL's.
    """

    kind: str = "tiny"
    encoder_widths: list[int] = []
    encoder_blocks: list[int] = []
    decoder_widths: list[int] = []
    decoder_blocks: list[int] = []
    block_out_channels: list[int] = []
    layers_per_block: int = 2
    tiny_decoder: bool = False
    scaling_factor: float = 1.5305
    shift_factor: float = 0.0609


class HyperConfig(_Strict, frozen=True):
    """ELIC-style hyper-encoder: N, M, dimension of the cosine codes, number of stride-2 stages."""

    width: int
    features: int
    code_dim: int
    downsamplings: int


class FlowConfig(_Strict, frozen=True):
    """``SD3Transformer2DModel`` with extra input channels for z_l.

    ``guided``: whether bundles get the graph ``flow_guided``, for guidance other than 1.
    ``text_tokens``: those of CLIP, then those of T5. ``pos_embed_base_size``: patches a side over
    which positions count from 0 to that number (None: the whole table).
    """

    condition_channels: int
    layers: int
    heads: int
    head_dim: int
    pos_embed_max_size: int
    text: bool
    guided: bool
    condition_dropout: float = 0.1
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 2048
    text_tokens: int = 154
    pos_embed_base_size: int | None = None


class MimConfig(_Strict, frozen=True):
    """Mixer of the exact entropy model: ``layers`` blocks of a depthwise convolution and an MLP."""

    width: int
    hidden: int
    layers: int
    kernel: int = 7


class StageConfig(_Strict, frozen=True):
    """Hyper-parameters of one training stage; fields that a stage does not use stay at None."""

    steps: int
    batch: int
    crop: int
    lr: float
    warmup: int
    weight_decay: float = 0.01
    latent_noise: float = 0.1
    kl_weight: float = 1e-4
    ssim_weight: float = 0.1
    one_step_share: float = 0.5
    pixel_weight: float = 1.0
    pixel_batch: int = 8
    square_weight: float = 0.0
    feature_weight: float = 0.0
    rate_weight: float = 0.0
    synthetic_share: float = 0.0
    codebook_decay: float = 0.99
    ema: float = 0.999
    momentum: float = 0.9
    few_pixel_weight: float = 1.0
    half_way_share: float = 1.0
    adversarial_weight: float = 0.0
    adversarial_ramp: float = 0.0
    discriminator_rate: float = 1.0
    discriminator_width: int = 64


class Config(_Strict, frozen=True):
    """A whole model family with its recipe.

    ``text``: towers by name (``clip_l``, ``clip_g``, ``t5``), each a table of transformers'
    CLIPTextConfig or T5Config.
    """

    family: str
    seed: int
    codec: CodecConstants
    vae: VaeConfig
    hyper: HyperConfig
    flow: FlowConfig
    mim: MimConfig
    text: dict[str, dict[str, Any]] = {}
    train: dict[str, StageConfig] = {}

    def __post_init__(self) -> None:
        if self.codec.guidance != 1 and not self.flow.guided:
            raise ValueError(
                f"expected codec.guidance 1 where flow.guided is false, got {self.codec.guidance}; "
                "set flow.guided, or guidance to 1"
            )


def load_config(name_or_path: str | Path, **overrides: Any) -> Config:
    """Read a family's TOML file, by shipped name (``tiny``, ``sd3-medium``) or path.

    ``overrides`` replace fields of one level down, as in ``flow={"layers": 2}``.
    Raises FileNotFoundError, or msgspec.ValidationError naming the field that is wrong.
    """
    path = Path(name_or_path)
    if not path.suffix:
        path = CONFIG_DIR / f"{name_or_path}.toml"
    table = tomllib.loads(path.read_text())
    for section, fields in overrides.items():
        table[section].update(fields)
    return msgspec.convert(table, Config)


def at_rate(config: Config, name: str) -> Config:
    """The configuration at one of RATES; tiles keep their size in pixels.

    Raises UsageError for another family, and listing the names when there is no such rate.
    """
    if config.family != "sd3-medium":
        raise UsageError(f"expected a rate of sd3-medium, got one of {config.family}; leave it out")
    if name not in RATES:
        raise UsageError(f"expected a rate of {', '.join(RATES)}, got {name!r}")
    rate = RATES[name]
    stride = 512 // rate.grid
    codec = replace(
        config.codec,
        stride=stride,
        codebook_size=rate.codebook_size,
        entropy_tile=1024 // stride,
        flow_tile=512 // stride,
        flow_overlap=64 // stride,
        decoder_tile=512 // stride,
        encoder_margin=128 // stride,
        decoder_margin=-(-160 // stride),  # TAESD's decoder reaches 152 pixels
    )
    downsamplings = (stride // config.codec.latent_stride).bit_length() - 1
    return replace(config, codec=codec, hyper=replace(config.hyper, downsamplings=downsamplings))
