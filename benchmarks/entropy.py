"""Bits, passes and time of every schedule, and what exactness costs in time.

    python -m benchmarks.entropy DIR [--rounds 10] [--save NAME]

Bits are those of the range-coded tokens. The float model that the time is compared
with is a MIM of the same size with LayerNorm and GELU (random weights: time does not depend on
them) in the same library, behind the same coding loop.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks.environment import report
from benchmarks.timing import interleaved, summary
from percoedge import Codec
from percoedge.bitstream.rangecoder import MAX_WEIGHT
from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.export.config import load_config
from percoedge.export.graphs.onnx_files import OPSET
from percoedge.export.models.mim import Mim
from percoedge.runtime.entropy import EntropyCodec
from percoedge.runtime.images import read_image


class FloatGraph(nn.Module):
    """tokens (n,h,w), positions (p,) -> probabilities float32 (n,p,K)."""

    def __init__(self, mim: Mim) -> None:
        super().__init__()
        self.mim = mim

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        stream = self.mim.stream(tokens.long(), positions)
        return torch.softmax(self.mim.logits(stream), dim=-1)


class FloatEngine:
    """The float baseline behind the part of an engine's contract that the coding loop uses."""

    def __init__(self, config_name: str, threads: int) -> None:
        config = load_config(config_name)
        mim = Mim(config.mim, config.codec.codebook_size, classic=True).eval()
        tokens, positions = torch.zeros(1, 5, 7, dtype=torch.int32), torch.arange(3)
        program = torch.onnx.export(
            FloatGraph(mim),
            (tokens, positions),
            dynamic_shapes=({1: "h", 2: "w"}, {0: "p"}),
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.force_spinning_stop", "1")
        model = program.model_proto.SerializeToString()
        self._session = onnxruntime.InferenceSession(model, options)

    def run(self, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """Weights int32 (1,p,K) from the probabilities of the graph."""
        given = {**feeds, "positions": feeds["positions"].astype(np.int64)}
        (probabilities,) = self._session.run(None, given)
        return {"weights": np.maximum(1, probabilities * MAX_WEIGHT).astype(np.int32)}


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
        coders = {
            "exact": coder,
            "float": EntropyCodec(FloatEngine("tiny", args.threads), size, tile),
        }
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
