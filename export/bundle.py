"""Make a bundle: ``python -m percoedge.export.bundle tiny --weights family.pt --out DIR``.

Exports every graph of a trained family, proves the bounds of its entropy model, writes the
manifest, and compares each graph with PyTorch; a graph outside its bound fails the export.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import msgspec
import torch

from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.manifest import CodecConstants
from percoedge.errors import BundleError, PercoedgeError
from percoedge.export.config import Config, load_config
from percoedge.export.exact import entropy_graph, integer_mim, prove
from percoedge.export.family import Family
from percoedge.export.graphs import entropy_specs, graph_plans
from percoedge.export.onnx_files import (
    OPSET,
    WeightFile,
    example_feeds,
    round_weights,
    save,
    store_in_half,
    trace,
)
from percoedge.export.parity import check_parity, format_table

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_EXAMPLE_SIZES = {"n": 2, "h": 5, "w": 7}  # odd and unequal, so that nothing is baked in


def rounded_family(family: Family) -> Family:
    """A copy with the weights as the bundle stores them; the entropy model has its own integers."""
    rounded = copy.deepcopy(family).eval()
    for part in (rounded.vae, rounded.hyper, rounded.quantizer, rounded.flow):
        round_weights(part)
    return rounded


def half_family(family: Family) -> Family:
    """A copy whose convolutions and transformer are in FP16; the codebook stays in FP32."""
    half = copy.deepcopy(family)
    for part in (half.vae, half.hyper, half.flow):
        part.half()
    return half


def export_bundle(
    family: Family,
    config: Config,
    out: Path,
    *,
    name: str,
    licence: str,
    provenance: dict[str, Any] | None = None,
) -> Bundle:
    """Write all graphs and the manifest of a family into the directory ``out``.

    ``family`` must be on the CPU. Raises ExactnessError when the entropy model's bounds do not
    hold, and BundleError when a file cannot be described.
    """
    out.mkdir(parents=True, exist_ok=True)
    rounded = rounded_family(family)
    families = {"fp32": rounded, "fp16": half_family(rounded)}
    ranges = {"image": 256, "tokens": config.codec.codebook_size}
    weight_files: dict[str, WeightFile] = {}
    graphs: dict[str, GraphFiles] = {}
    for kind, plan in graph_plans(config).items():
        weights = weight_files.setdefault(plan.weights, WeightFile(plan.weights))
        feeds = example_feeds(plan.inputs, _EXAMPLE_SIZES, ranges)
        variants = {}
        for variant, dtype in _DTYPES.items():
            module = plan.build(families[variant], dtype)
            proto = trace(module, plan.inputs, plan.outputs, feeds, plan.bounds)
            if variant == "fp32":
                store_in_half(proto)
            file = f"{kind}.{variant}.onnx"
            save(proto, out / file, weights)
            variants[variant] = (file, plan.weights)
        graphs[kind] = GraphFiles(plan.inputs, plan.outputs, variants)
    for weights in weight_files.values():
        weights.write(out)
    save(entropy_graph(integer_mim(rounded.mim), OPSET), out / "entropy.onnx", None)
    inputs, outputs = entropy_specs(config)
    both = {"fp32": ("entropy.onnx",), "fp16": ("entropy.onnx",)}
    graphs["entropy"] = GraphFiles(inputs, outputs, both)
    return write_manifest(
        out,
        name=name,
        family=config.family,
        codec=CodecConstants(**msgspec.structs.asdict(config.codec)),
        graphs=graphs,
        licence=licence,
        provenance=provenance,
    )


def main() -> int:
    """Command line of the export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="shipped configuration (tiny) or path to a TOML file")
    parser.add_argument("--weights", type=Path, required=True, help="family.pt of the recipe")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: the family)")
    parser.add_argument("--licence", default="Apache-2.0", help="licence of the weights")
    parser.add_argument("--provenance", type=Path, help="JSON file on data and training")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")  # the exporter's notes on torchvision and the like
    logging.disable(logging.WARNING)
    config = load_config(args.config)
    family = Family(config)
    family.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True))
    provenance = json.loads(args.provenance.read_text()) if args.provenance else {}
    try:
        bundle = export_bundle(
            family.eval(),
            config,
            args.out,
            name=args.name or config.family,
            licence=args.licence,
            provenance=provenance,
        )
        bounds = prove(integer_mim(family.mim))
        print(f"largest partial sum of the entropy model: {max(bounds.values())} of {2**24 - 1}")
        rows = check_parity(rounded_family(family), config, bundle)
        print(format_table(rows))
        if not all(row.ok for row in rows):
            raise BundleError("a graph differs from PyTorch by more than its bound, see above")
    except (PercoedgeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    files = {record.file: record.size for record in bundle.manifest.files}
    print(f"{args.out}: {sum(files.values()) / 2**20:.2f} MiB in {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
