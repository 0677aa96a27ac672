"""A published PerCo (SD) folder, ready for export."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.export.graphs.modules import DecoderGraph, EncoderGraph
from percoedge.export.models.checkpoints import file_digest
from percoedge.export.models.exportable import Exportable, GraphPlan, codebook_language
from percoedge.export.models.perco_sd.checkpoint import Networks, load_networks
from percoedge.export.models.perco_sd.config import Config, read_folder
from percoedge.export.models.perco_sd.graphs import (
    Codec,
    Denoiser,
    FlowGraph,
    GuidedFlowGraph,
    TextGraph,
)
from percoedge.export.models.percov2.text import read_tokenizer

LICENCE = (
    "CreativeML Open RAIL++-M, with its restrictions of use: the licence of Stable Diffusion 2.1, "
    "of which the published weights are a fine-tuning; their authors state none of their own. "
    "Published code (github.com/Nikolai10/PerCo): Apache-2.0"
)
_STEPS, _GUIDANCE = 20, 3.0
_TILE, _OVERLAP = 512, 64  # pixels: the size of the training crops
_ENTROPY_TILE = 64
# Both look at the whole picture; larger ones go through them in tiles, with so many pixels around.
_MARGINS = {"encoder": 128, "decoder": 160}
_TEXT = "text_clip"
_TRACED = {"n": 2, "h": 3, "w": 5}
# Diffusers copies larger batches before it upsamples them, which a graph would take for a limit.
_MOST = 31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See FamilySource."""
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="folder with hyper_enc, unet, vae and so on"
    )
    parser.add_argument(
        "--without-text",
        action="store_true",
        help="leave the text tower out: captions are empty, guidance is 1, a step is half the work",
    )


def load(args: argparse.Namespace) -> Exportable:
    """See FamilySource."""
    folder: Path = args.checkpoint
    config = read_folder(folder)
    networks = load_networks(folder, config)
    length = int(networks.text.config.max_position_embeddings)
    tokenizer = read_tokenizer(folder / "tokenizer", length)
    provenance: dict[str, object] = {
        "checkpoint": folder.resolve().name,
        "checkpoint_sha256": {
            path.relative_to(folder).as_posix(): file_digest(path)
            for part in ("hyper_enc", "unet", "vae", "text_encoder", "scheduler", "tokenizer")
            for path in sorted((folder / part).iterdir())
            if path.is_file()
        },
        "rate_bpp": config.rate,
        "paper": "arXiv 2409.20255, after arXiv 2310.10325",
        "margins": {
            f"{kind}_margin": f"an approximation: the {kind} looks at the whole image, and tiles "
            f"of a larger one at {pixels} pixels around them"
            for kind, pixels in _MARGINS.items()
        },
    }
    texts = [p.read_text("utf-8", errors="replace") for p in sorted(folder.glob("LICEN[CS]E*"))]
    return exportable(
        networks,
        config,
        tokenizer,
        text=not args.without_text,
        licence="\n\n".join([LICENCE, *texts]),
        provenance=provenance,
    )


def exportable(
    networks: Networks,
    config: Config,
    tokenizer: str,
    *,
    text: bool = True,
    licence: str = LICENCE,
    provenance: dict[str, object] | None = None,
) -> Exportable:
    """What a bundle needs of networks, which are taken over. ``tokenizer``: JSON of the tower's.

    ``text``: whether captions condition the decoder.
    """
    language = codebook_language(networks.hyper.quantizer._codebook.embed[0])
    codec = codec_of(networks, config, tokenizer, text=text)
    per_token = {kind: -(-pixels // config.stride) for kind, pixels in _MARGINS.items()}
    return Exportable(
        family="perco-sd",
        name=f"perco-sd-{config.rate}".replace(".", "_"),
        module=codec,
        plans=graph_plans(codec, config),
        codec=CodecConstants(
            stride=config.stride,
            codebook_size=config.codebook_size,
            latent_channels=config.latent_channels,
            latent_stride=config.latent_stride,
            schedule="uniform",
            steps=_STEPS,
            guidance=_GUIDANCE if text else 1.0,
            angles=config.angles,
            entropy_tile=_ENTROPY_TILE,
            flow_tile=_TILE // config.stride,
            flow_overlap=_OVERLAP // config.stride,
            flow_multiple=config.flow_multiple,
            decoder_tile=_TILE // config.stride,
            encoder_margin=per_token["encoder"],
            decoder_margin=per_token["decoder"],
            captions_condition=text,
        ),
        language=language,
        licence=licence,
        provenance=provenance or {},
        tokenizers={_TEXT: tokenizer} if text else {},
    )


def codec_of(networks: Networks, config: Config, tokenizer: str, *, text: bool) -> Codec:
    """The parts of a bundle, the codebook folded into the first layer of the denoiser."""
    with torch.no_grad():
        table = networks.hyper.quantizer.table()
        denoiser = Denoiser(networks.unet, table, config.cells)
        codec = Codec(
            networks.vae,
            networks.hyper.backbone,
            networks.hyper.quantizer,
            denoiser,
            networks.text if text else None,
            _null_text(networks, tokenizer),
        )
    return codec.requires_grad_(False).eval()


def _null_text(networks: Networks, tokenizer: str) -> Tensor:
    """The condition (1,77,D) of an empty caption: values of FP16 in float32."""
    from tokenizers import Tokenizer

    ids = torch.tensor([Tokenizer.from_str(tokenizer).encode("").ids], dtype=torch.int32)
    null: Tensor = TextGraph(networks.text)(ids)
    return null.half().float()


def graph_plans(codec: Codec, config: Config) -> dict[str, GraphPlan]:
    """The graphs of a codec by kind; sides of those of the flow are in multiples of tokens."""
    stride, cells, many = config.stride, config.cells, config.flow_multiple
    latent = config.latent_channels
    image = TensorSpec("image", "uint8", ("n", f"{stride}*h", f"{stride}*w", 3))
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    x = TensorSpec("x", "float32", ("n", latent, f"{cells}*h", f"{cells}*w"))
    grid = TensorSpec("tokens", "int32", ("n", f"{many}*h", f"{many}*w"))
    start, end = (
        TensorSpec(name, "float32", ("n", latent, f"{many * cells}*h", f"{many * cells}*w"))
        for name in ("x", "x_next")
    )
    t, dt, guidance = (TensorSpec(name, "float32", (1,)) for name in ("t", "dt", "guidance"))
    text = TensorSpec("text", "float32", ("n", *codec.null_text.shape[1:]))

    most = _TILE // (stride * many)
    bounds = {"n": _MOST, "h": most, "w": most}

    def step(build: type[nn.Module], *inputs: TensorSpec) -> GraphPlan:
        flow = (start, grid, t, dt, *inputs)
        return GraphPlan(
            build, flow, (end,), "flow.weights", ("denoiser",), bounds, _TRACED, guarded=False
        )

    plans = {
        "encoder": GraphPlan(
            EncoderGraph, (image,), (tokens,), "encoder.weights", ("vae", "hyper")
        ),
        "flow": step(FlowGraph, *([text] if codec.text is not None else [])),
        "decoder": GraphPlan(DecoderGraph, (x,), (image,), "decoder.weights", ("vae",)),
    }
    if codec.text is not None:
        ids = TensorSpec("ids", "int32", ("n", codec.null_text.shape[1]))
        plans["flow_guided"] = step(GuidedFlowGraph, guidance, text)
        plans[_TEXT] = GraphPlan(
            lambda codec, dtype: TextGraph(codec.text),
            (ids,),
            (text,),
            f"{_TEXT}.weights",
            ("text",),
        )
    return plans
