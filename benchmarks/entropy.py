"""Bits, passes and time of every schedule, and what exactness costs in time.

    python -m benchmarks.entropy DIR [--rounds 10] [--save NAME]

Bits are those of the range-coded tokens. The float model that the time is compared
with is a MIM of the same size with LayerNorm and GELU (random weights: time does not depend on
them) in the same library, behind the same coding loop.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.environment import report
from benchmarks.timing import interleaved, summary
from percoedge import Codec
from percoedge.bitstream.rangecoder import MAX_WEIGHT
from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.engines.contract import GraphSource
from percoedge.export.config import load_config
from percoedge.export.graphs.onnx_files import OPSET
from percoedge.export.models.mim import Mim
from percoedge.runtime.entropy import EntropyCodec
from percoedge.runtime.images import read_image


class FloatGraph(nn.Module):
    """tokens int32 (n,h,w), positions int32 (p,) -> weights int32 (n,p,K)."""

    def __init__(self, mim: Mim) -> None:
        super().__init__()
        self.mim = mim

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Weights as the exact graph gives them, from probabilities in floating point."""
        stream = self.mim.stream(tokens.long(), positions.long())
        probabilities = torch.softmax(self.mim.logits(stream), dim=-1)
        return torch.clamp(probabilities * MAX_WEIGHT, min=1).to(torch.int32)


def float_source(exact: GraphSource) -> GraphSource:
    """A float model of the size of ``tiny``'s, with the names and shapes of the exact one."""
    config = load_config("tiny")
    mim = Mim(config.mim, config.codec.codebook_size, classic=True).eval()
    example = torch.zeros(2, 5, 7, dtype=torch.int32), torch.arange(3, dtype=torch.int32)
    program = torch.onnx.export(
        FloatGraph(mim).eval(),
        example,
        input_names=[spec.name for spec in exact.inputs],
        output_names=[spec.name for spec in exact.outputs],
        dynamic_shapes=({0: "n", 1: "h", 2: "w"}, {0: "p"}),
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto.SerializeToString()
    return replace(exact, variant="fp32", model=model, data={})


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    photos = sorted(args.folder.iterdir())
    table: dict[str, Any] = {}
    with Codec.load("tiny", threads=args.threads) as codec:
        constants = codec.bundle.codec
        grids = [codec.tokens(read_image(photo).pixels) for photo in photos]
        source = codec.bundle.read("entropy", codec.backend.variant)
        engine = codec.backend.load(source)
        coder = EntropyCodec(engine, constants.codebook_size, constants.entropy_tile)
        cells = sum(grid.size for grid in grids)
        for name in SCHEDULES:
            size = sum(len(coder.encode(grid, name)) for grid in grids)
            table[name] = {"passes": pass_count(name), "bits_per_token": round(8 * size / cells, 4)}
        uniform = table["uniform"]["bits_per_token"]
        for row in table.values():
            row["saved_against_uniform"] = round(1 - row["bits_per_token"] / uniform, 4)

        grid, schedule = grids[0], constants.schedule
        size, tile = constants.codebook_size, constants.entropy_tile
        rival = codec.backend.load(float_source(source))
        coders = {"exact": coder, "float": EntropyCodec(rival, size, tile)}
        streams = {name: [one.encode(grid, schedule)] for name, one in coders.items()}
        times = interleaved(
            {
                name: partial(one.decode, streams[name], grid.shape, schedule)
                for name, one in coders.items()
            },
            args.rounds,
        )
    ratio = statistics.median(times["exact"]) / statistics.median(times["float"])
    report(
        args.save or "entropy",
        {
            "photos": len(photos),
            "tokens": cells,
            "schedules": table,
            "decoding_times": {name: summary(values) for name, values in times.items()},
            "exact_over_float_time": round(ratio, 3),
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
