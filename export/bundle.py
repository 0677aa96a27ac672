"""Make a bundle: ``python -m percoedge.export.bundle tiny --weights family.pt --out DIR``.

Exports every graph of a family, proves the bounds of its entropy model, writes the manifest with
what each graph costs, and compares each with PyTorch; a graph outside its bound fails the export.
The full size is put together from local files (see percoedge.export.assemble):

    python -m percoedge.export.bundle sd3-medium --sd3 DIR --hyper FILE --mim FILE --rate 0.0313 \\
        --out DIR

Codecs that others published are read from their own files:

    python -m percoedge.export.bundle cod-lite --checkpoint CoD_Lite_bpp_0_0312.pt \\
        --config CoD_Lite_bpp_0_0312.yaml --out cod-lite-0.0312
    python -m percoedge.export.bundle perco-sd --checkpoint DIR --out perco-sd-0.0313
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from percoedge.engines.bundle import Bundle, write_manifest
from percoedge.errors import BundleError, PercoedgeError
from percoedge.export.assemble import Assembly, Sources, assemble, random_family
from percoedge.export.checks.margins import check_margins
from percoedge.export.checks.parity import check_graphs, check_parity, format_table
from percoedge.export.config import RATES, Config, at_rate, load_config
from percoedge.export.exact.integers import language_digest, prove
from percoedge.export.graphs.costs import with_costs
from percoedge.export.graphs.int8.graphs import with_int8
from percoedge.export.graphs.modules import DTYPES, graph_plans
from percoedge.export.graphs.onnx_files import round_weights
from percoedge.export.graphs.writing import (
    write_bundle,
    write_entropy,
    write_graphs,
    write_tokenizers,
)
from percoedge.export.models.cod_lite import source as cod_lite
from percoedge.export.models.exportable import FamilySource
from percoedge.export.models.mim import integer_mim
from percoedge.export.models.perco_sd import source as perco_sd
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.text import null_condition

FAMILIES: Mapping[str, FamilySource] = {"cod-lite": cod_lite, "perco-sd": perco_sd}
"""Published codecs, by the name of the command line; see export.models.exportable."""


def export_bundle(
    family: Family,
    config: Config,
    out: Path,
    *,
    name: str,
    licence: str,
    provenance: dict[str, Any] | None = None,
    tokenizers: Mapping[str, str] | None = None,
    variants: Sequence[str] = tuple(DTYPES),
) -> Bundle:
    """Write all graphs and the manifest of a family into the directory ``out``.

    ``family`` must be on the CPU. Its float parts are left rounded to FP16, as the bundle stores
    them, in the type they came in: at full size there is no memory for a copy. ``tokenizers``: the
    JSON of each text tower's. ``variants``: "fp16", "fp32" or both; "fp32" is for CPUs and brings
    INT8 along where the family has that. Raises ExactnessError when the entropy model's bounds do
    not hold, and BundleError when a margin is smaller than what a graph sees or a file cannot be
    described. Margins that are an approximation are named in the provenance.
    """
    notes = check_margins(family, config)
    out.mkdir(parents=True, exist_ok=True)
    round_weights(family.quantizer)
    tokenizers = dict(tokenizers or {})
    if family.text and config.flow.guided:
        family.null_text, family.null_pooled = null_condition(config, family.text, tokenizers)
    size = config.codec.codebook_size
    graphs = write_graphs(family, graph_plans(config), size, out, variants)
    if "fp32" in variants:
        graphs = with_int8(graphs, family, config, out)
    model = integer_mim(family.mim)
    graphs["entropy"] = write_entropy(model, out, variants)
    of_graphs = {f"text_{tower}": text for tower, text in tokenizers.items()}
    bundle = write_manifest(
        out,
        name=name,
        family=config.family,
        language=language_digest(model, family.quantizer.codebook.cpu().numpy()),
        codec=config.codec,
        graphs=graphs,
        licence=licence,
        provenance={**(provenance or {}), **({"margins": notes} if notes else {})},
        tokenizers=write_tokenizers(of_graphs, out),
    )
    return with_costs(bundle, config)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="shipped configuration (tiny, sd3-medium) or a TOML file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--weights", type=Path, help="family.pt of the recipe")
    source.add_argument("--sd3", type=Path, help="Stable Diffusion 3 directory of diffusers")
    source.add_argument("--random", action="store_true", help="random weights, to measure with")
    parser.add_argument("--hyper", type=Path, help="hyper-encoder and quantiser, .safetensors")
    parser.add_argument("--mim", type=Path, help="entropy model, .safetensors")
    parser.add_argument("--flow", type=Path, help="finetuned flow, .safetensors (default: --sd3's)")
    parser.add_argument(
        "--tiny-vae",
        type=Path,
        nargs="?",
        const=Path(),
        help="TAESD3 of diffusers, .safetensors, as the decoder; with --random no file",
    )
    parser.add_argument("--without-t5", action="store_true", help="leave the T5 tower out")
    parser.add_argument("--rate", help=f"bits per pixel at 512x512: {', '.join(RATES)}")
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: the family)")
    parser.add_argument("--licence", help="licence of the weights")
    parser.add_argument("--provenance", type=Path, help="JSON file on data and training")
    parser.add_argument(
        "--fp16-only", action="store_true", help="no graphs for CPUs: half the time and memory"
    )
    _add_skip_parity(parser)
    return parser


def _add_skip_parity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--skip-parity", action="store_true", help="do not run the graphs beside PyTorch"
    )


def _load(args: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[Assembly, str]:
    """The family that the arguments name, and the default licence of its weights."""
    config = load_config(args.config)
    if args.rate is not None:
        config = at_rate(config, args.rate)
    if args.random:
        config = replace(config, vae=replace(config.vae, tiny_decoder=args.tiny_vae is not None))
        return random_family(config), "random weights"
    if args.sd3 is None:
        family = Family(config)
        family.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True))
        return Assembly(family.eval(), config), "Apache-2.0"
    if args.hyper is None or args.mim is None:
        parser.error("--sd3 needs --hyper and --mim")
    sources = Sources(
        args.sd3, args.hyper, args.mim, args.flow, args.tiny_vae, t5=not args.without_t5
    )
    return assemble(config, sources), "that of the Stable Diffusion 3 weights it was made from"


def _published_parser(family: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m percoedge.export.bundle {family}")
    FAMILIES[family].add_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory of the bundle")
    parser.add_argument("--name", help="name of the bundle (default: family and rate)")
    parser.add_argument("--fp16-only", action="store_true", help="no graphs for CPUs")
    parser.add_argument(
        "--full-precision",
        action="store_true",
        help="graphs for CPUs with the weights of the checkpoint to the last bit, in twice the "
        "bytes, not with those of the FP16 graphs",
    )
    _add_skip_parity(parser)
    return parser


def _published(family: str, arguments: Sequence[str]) -> Bundle:
    """Make the bundle of a published codec."""
    args = _published_parser(family).parse_args(arguments)
    codec = FAMILIES[family].load(args)
    bundle = write_bundle(
        codec,
        args.out,
        name=args.name,
        variants=("fp16",) if args.fp16_only else tuple(DTYPES),
        rounded=not args.full_precision,
    )
    for kind, psnr_db in bundle.manifest.provenance.get("int8_psnr_db", {}).items():
        kept = "int8" in bundle.manifest.graphs[kind].variants
        print(f"{kind}: int8 {'kept' if kept else 'left out'}, {psnr_db} dB from fp32")
    if not args.skip_parity:
        if args.full_precision:  # the export left the weights rounded
            codec = FAMILIES[family].load(args)
        rows = check_graphs(codec.module, codec.plans, bundle)
        print(format_table(rows))
        # how far half precision lies is a matter of the weights, which are not ours to change
        if not all(row.ok for row in rows if row.b.endswith("fp32")):
            raise BundleError("a graph differs from PyTorch by more than its bound, see above")
    return bundle


def _own(arguments: Sequence[str]) -> Bundle:
    """Make a bundle of a configuration of this project."""
    parser = _parser()
    args = parser.parse_args(arguments)
    provenance = json.loads(args.provenance.read_text()) if args.provenance else {}
    assembly, licence = _load(args, parser)
    family, config = assembly.family, assembly.config
    bundle = export_bundle(
        family,
        config,
        args.out,
        name=args.name or config.family,
        licence=args.licence or licence,
        provenance=provenance,
        tokenizers=assembly.tokenizers,
        variants=("fp16",) if args.fp16_only else tuple(DTYPES),
    )
    bounds = prove(integer_mim(family.mim))
    print(f"largest partial sum of the entropy model: {max(bounds.values())} of {2**24 - 1}")
    if not args.skip_parity:
        rows = check_parity(family, config, bundle)
        print(format_table(rows))
        if not all(row.ok for row in rows):
            raise BundleError("a graph differs from PyTorch by more than its bound, see above")
    return bundle


def main() -> int:
    """Command line of the export."""
    arguments = sys.argv[1:]
    warnings.filterwarnings("ignore")  # the exporter's notes on torchvision and the like
    logging.disable(logging.WARNING)
    try:
        if arguments and arguments[0] in FAMILIES:
            bundle = _published(arguments[0], arguments[1:])
        else:
            bundle = _own(arguments)
    except (PercoedgeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 4
    files = {record.file: record.size for record in bundle.manifest.files}
    print(f"{bundle.path}: {sum(files.values()) / 2**20:.2f} MiB in {len(files)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
