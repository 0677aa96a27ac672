"""How time and memory of a decode grow with the picture and with the batch.

    python -m benchmarks.scaling [--sides 256,...,4096] [--batches 1,...,32] [--save NAME]

Every point is a process of its own, measured as ``percoedge bench`` does. Growth is fitted as
a power of the pixels (or of the batch) by least squares of the logarithms: an exponent of 1 is
linear. Pictures up to the size of a tile are left out of that fit, as one tile serves them, and so
are batches that go through a graph as a whole; memory is given, besides, as the bytes that each
further pixel takes, or picture: of a batch, these should be no more than its results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.environment import report
from percoedge.engines.bundle import Bundle
from percoedge.errors import EngineError
from percoedge.runtime.bench.case import Case, Limits
from percoedge.runtime.bench.worker import encode_in_process, measure_in_process
from percoedge.runtime.tiling.tiles import batch_parts

_MIB = 1 << 20


def point(case: Case, limits: Limits, stream: bytes) -> dict[str, Any]:
    """Time and memory of one case, or why there are none."""
    row: dict[str, Any] = {"width": case.width, "height": case.height, "batch": case.batch}
    try:
        result = measure_in_process(case, limits, stream)
    except EngineError as error:
        return {**row, "error": str(error)}
    stages = result["stages_ms"]
    return {
        **row,
        "iterations": result["iterations"],
        "median_ms": result["latency_ms"]["p50"],
        "images_per_s": result["images_per_s"],
        "entropy_ms": round(sum(t for n, t in stages.items() if n.startswith("MIM")), 1),
        "flow_ms": round(sum(t for n, t in stages.items() if n.startswith("flow")), 1),
        "decoder_ms": stages["decoder"],
        "peak_mib": round(result["peak_host_bytes"] / _MIB, 1),
    }


def power(sizes: Sequence[float], values: Sequence[float]) -> dict[str, float] | None:
    """Exponent of the growth, and how well a power describes it; None for fewer than two points."""
    if len(sizes) < 2:
        return None
    x, y = np.log(sizes), np.log(values)
    exponent, offset = np.polyfit(x, y, 1)
    rest = y - (exponent * x + offset)
    spread = float(((y - y.mean()) ** 2).sum())
    fit = 1 - float((rest**2).sum()) / spread if spread else 1.0
    return {"exponent": round(float(exponent), 3), "r_squared": round(fit, 4)}


def fits(rows: Sequence[dict[str, Any]], sizes: Sequence[float]) -> dict[str, Any]:
    """Growth of time and of memory over ``sizes``, one for each row; failed rows are left out."""
    pairs = [(s, row) for s, row in zip(sizes, rows, strict=True) if "error" not in row]
    known, times = [s for s, _ in pairs], [row["median_ms"] for _, row in pairs]
    memory = [row["peak_mib"] for _, row in pairs]
    result: dict[str, Any] = {"points": len(pairs), "time": power(known, times)}
    if len(pairs) > 1:
        slope, base = np.polyfit(known, memory, 1)
        result["memory_mib"] = {
            "at_none": round(float(base), 1),
            "bytes_for_each_more": round(float(slope) * _MIB, 2),
        }
    return result


def main() -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--sides", default="256,384,512,768,1024,1536,2048,3072,4096")
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--batch-side", type=int, default=512, help="of pictures in a batch")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=3.0, help="least time of a point")
    parser.add_argument("--iterations", type=int, default=3, help="least number of decodes")
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    limits = Limits(0.2, args.seconds, args.iterations)
    codec = Bundle.open(args.bundle).codec
    tile = codec.flow_tile * codec.stride

    def measured(side: int, batches: Sequence[int]) -> list[dict[str, Any]]:
        case = Case(args.bundle, args.backend, side, side, 1, args.steps, args.threads)
        stream = encode_in_process(case)
        rows = []
        for batch in batches:
            case = Case(args.bundle, args.backend, side, side, batch, args.steps, args.threads)
            rows.append(point(case, limits, stream))
            print(rows[-1], flush=True)
        return rows

    sides, batches = ([int(n) for n in text.split(",")] for text in (args.sides, args.batches))
    by_size = [row for side in sides for row in measured(side, [1])]
    by_batch = measured(args.batch_side, batches)
    beyond = [row for row in by_size if row["width"] > tile]
    side = -(-args.batch_side // codec.stride) * codec.stride
    at_once = batch_parts(1, side**2)[0].stop
    parted = [row for row in by_batch if row["batch"] >= at_once]
    report(
        args.save or "scaling",
        {
            "bundle": args.bundle,
            "backend": args.backend,
            "steps": args.steps,
            "tile_px": tile,
            "by_size": by_size,
            "by_batch": by_batch,
            "fit_over_pixels_beyond_a_tile": fits(beyond, [row["width"] ** 2 for row in beyond]),
            "pictures_at_once": at_once,
            "fit_over_batch_from_there": fits(parted, [row["batch"] for row in parted]),
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
