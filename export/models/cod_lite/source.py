"""A published CoD-Lite checkpoint with its YAML file, ready for export."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.export.models.checkpoints import file_digest
from percoedge.export.models.cod_lite.checkpoint import load_network
from percoedge.export.models.cod_lite.config import Config, read_config
from percoedge.export.models.cod_lite.graphs import Codec, DecoderGraph, EncoderGraph
from percoedge.export.models.cod_lite.layers import WINDOW
from percoedge.export.models.cod_lite.network import Network
from percoedge.export.models.exportable import Exportable, GraphPlan, codebook_language

LICENCE = (
    "MIT, Copyright (c) 2025 Microsoft: the licence of the published code "
    "(github.com/microsoft/GenCodec); see the page of the weights for theirs"
)
_ENTROPY_TILE = 64
_TRACED = {"n": 2, "h": 40, "w": 72}  # several windows of attention each way
# Measured in FP32 with ONNX Runtime on a CPU: docs/cod-lite.md.
_ENCODER_PIXEL_BYTES = 800
_DECODER_PIXEL_BYTES = 1400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See FamilySource."""
    parser.add_argument("--checkpoint", type=Path, required=True, help="CoD_Lite_bpp_R.pt")
    parser.add_argument("--config", type=Path, required=True, help="CoD_Lite_bpp_R.yaml beside it")


def load(args: argparse.Namespace) -> Exportable:
    """See FamilySource."""
    config = read_config(args.config)
    network = load_network(args.checkpoint, config)
    provenance = {
        "checkpoint": args.checkpoint.name,
        "checkpoint_sha256": file_digest(args.checkpoint),
        "rate_bpp": config.rate_bpp,
        "paper": "arXiv 2604.12525",
    }
    return exportable(network, config, provenance)


def exportable(
    network: Network, config: Config, provenance: dict[str, object] | None = None
) -> Exportable:
    """What a bundle needs of a network; its encoder and token decoder are taken over."""
    stride = config.stride
    return Exportable(
        family="cod-lite",
        name=f"cod-lite-{config.rate_bpp:.4f}".replace(".", "_"),
        module=Codec.of(network, config),
        plans=graph_plans(config),
        codec=CodecConstants(
            stride=stride,
            codebook_size=config.codebook_size,
            schedule="uniform",
            entropy_tile=_ENTROPY_TILE,
        ),
        language=codebook_language(network.y_embedder.bottleneck.embedding.weight),
        licence=LICENCE,
        provenance=provenance or {},
    )


def graph_plans(config: Config) -> dict[str, GraphPlan]:
    """The graphs of a codec by kind."""
    stride = config.stride
    image = TensorSpec("image", "uint8", ("n", f"{stride}*h", f"{stride}*w", 3))
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    return {
        "encoder": GraphPlan(
            EncoderGraph,
            (image,),
            (tokens,),
            "encoder.weights",
            ("encoder",),
            traced=_TRACED,
            guarded=False,
            pixel_bytes=_ENCODER_PIXEL_BYTES,
            whole=WINDOW,
        ),
        "decoder": GraphPlan(
            DecoderGraph,
            (tokens,),
            (image,),
            "decoder.weights",
            ("tokens", "denoiser"),
            traced=_TRACED,
            guarded=False,
            pixel_bytes=_DECODER_PIXEL_BYTES,
            whole=WINDOW,
            int8=tuple(_in_bytes(config)),
        ),
    }


def _in_bytes(config: Config) -> Iterator[str]:
    """The layers on patches: most of the work, and none of them looks at the whole picture."""
    for block in range(config.blocks):
        for layer in ("first", "second", "up", "down"):
            yield f"denoiser.blocks.{block}.{layer}"
