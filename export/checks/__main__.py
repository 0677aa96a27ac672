"""Every graph of a bundle beside PyTorch: ``python -m percoedge.export.checks tiny [--save F]``.

Each is run on the same feeds as

    torch fp32       PyTorch in FP32: what the others are measured against
    torch fp16       PyTorch in FP16
    reference fp16   onnx.reference, which rounds after every operation, as the FP16 graph says
    BACKEND VARIANT  every variant on onnxruntime-cpu, and what each --backend would decode with

and judged by the bounds of ``percoedge compare``. The largest number that the reference met is
named besides, for FP16 ends at 65504.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import (
    Difference,
    backend_source,
    compare_sources,
    difference_record,
    function_source,
)
from percoedge.engines.contract import Backend
from percoedge.engines.selection import select
from percoedge.errors import BackendError, PercoedgeError
from percoedge.export.checks.parity import format_table, grid_feeds, torch_source, variant_sources
from percoedge.export.checks.reference import LARGEST_FP16, Reference
from percoedge.export.config import Config, load_config
from percoedge.export.models.percov2.family import Family
from percoedge.export.training.warm_start import family_from_bundle

_GRIDS = ((1, 2, 3), (2, 1, 1))
_PACKAGES = ("torch", "onnx", "onnxruntime", "polygraphy", "numpy")


def check_bundle(
    family: Family, config: Config, bundle: Bundle, backends: Sequence[Backend] = ()
) -> tuple[list[Difference], dict[str, float]]:
    """All differences, and the largest FP16 number of each graph (see Reference).

    ``family``: the bundle's weights, on the CPU. ``backends``: besides onnxruntime-cpu.
    """
    cpu = select("onnxruntime-cpu")
    rows: list[Difference] = []
    largest = {}
    for kind in bundle.kinds:
        # the entropy model has no floats
        half = [torch_source(family, config, kind, "fp16")] if kind != "entropy" else []
        reference = Reference(bundle.read(kind, "fp16"))
        others = [
            *half,
            function_source("reference", "fp16", reference),
            *variant_sources(bundle, kind, cpu),
            *(backend_source(each, bundle.graph(kind, each.variant)) for each in backends),
        ]
        base = torch_source(family, config, kind)
        rows += compare_sources(kind, grid_feeds(bundle, kind, _GRIDS), base, others)
        largest[kind] = reference.largest
    return rows, largest


def _record(
    bundle: Bundle, rows: Sequence[Difference], largest: dict[str, float]
) -> dict[str, Any]:
    return {
        **difference_record(bundle, rows),
        "largest_fp16": {kind: v if math.isfinite(v) else None for kind, v in largest.items()},
        "grids": [dict(zip("nhw", grid, strict=True)) for grid in _GRIDS],
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "processor": platform.machine(),
    }


def main() -> int:
    """Command line of the report; exit code 4 when a bound is passed or FP16 overflows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", help="shipped name, directory or .zip")
    parser.add_argument("--config", help="what it was exported with (default: its family's)")
    parser.add_argument("--backend", action="append", default=[], help="besides onnxruntime-cpu")
    parser.add_argument("--save", type=Path, metavar="FILE", help="write the table as JSON too")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    try:
        bundle = Bundle.open(args.bundle)
        config = load_config(args.config or bundle.manifest.family)
        backends = [select(name, bundle=bundle) for name in args.backend]
        family = family_from_bundle(bundle, config)
        rows, largest = check_bundle(family, config, bundle, backends)
    except PercoedgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(format_table(rows))
    numbers = ", ".join(f"{kind} {value:.0f}" for kind, value in largest.items())
    print(f"largest number computed in FP16, which ends at {LARGEST_FP16:.0f}: {numbers}")
    if args.save:
        args.save.write_text(json.dumps(_record(bundle, rows, largest), indent=2) + "\n")
    ok = all(row.ok for row in rows) and all(map(math.isfinite, largest.values()))
    return 0 if ok else BackendError.exit_code


if __name__ == "__main__":
    sys.exit(main())
