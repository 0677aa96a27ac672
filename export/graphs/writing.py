"""Writes the graphs of any family into a bundle's directory, in each variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import nn

from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.comparison import example_feeds
from percoedge.engines.contract import TensorSpec
from percoedge.export.exact.graph import entropy_graphs
from percoedge.export.exact.integers import IntegerMim
from percoedge.export.graphs.costs import with_costs_of
from percoedge.export.graphs.int8.linear import with_int8_linear
from percoedge.export.graphs.modules import DTYPES
from percoedge.export.graphs.onnx_files import OPSET, WeightFile, trace, write_program
from percoedge.export.models.exportable import Exportable, GraphPlan, in_precision


def write_graphs(
    module: nn.Module,
    plans: Mapping[str, GraphPlan],
    codebook_size: int,
    out: Path,
    variants: Sequence[str],
    *,
    rounded: bool = True,
) -> dict[str, GraphFiles]:
    """Write every graph; returns its description by kind.

    ``rounded``: all variants have the
    weights of "fp16", which are stored once; otherwise "fp32" has its own, in twice the bytes. The
    module's parts are left rounded to FP16, in the type they came in.
    """
    graphs: dict[str, GraphFiles] = {}
    with ExitStack() as stack:
        files: dict[str, WeightFile] = {}
        for kind, plan in plans.items():
            if plan.weights not in files:
                files[plan.weights] = stack.enter_context(WeightFile(out / plan.weights))
            written = {}
            # what is exact comes before what rounds
            for variant in sorted(variants, key=lambda name: (name != "fp32") != rounded):
                exact = variant == "fp32" and not rounded
                with ExitStack() as precision:
                    if not exact:
                        precision.enter_context(in_precision(module, plan.parts, torch.float16))
                    dtype = DTYPES[variant]
                    precision.enter_context(in_precision(module, plan.parts, dtype))
                    feeds = example_feeds(plan.inputs, plan.traced, codebook_size)
                    graph = plan.build(module, dtype)
                    program = trace(
                        graph, plan.inputs, plan.outputs, feeds, plan.bounds, guarded=plan.guarded
                    )
                    path = out / f"{kind}.{variant}.onnx"
                    written[variant] = write_program(program, path, files[plan.weights])
            graphs[kind] = GraphFiles(plan.inputs, plan.outputs, written, plan.pixel_bytes)
    return graphs


def write_entropy(model: IntegerMim, out: Path, variants: Sequence[str]) -> GraphFiles:
    """Write the exact entropy model: tokens and flat positions -> integer weights.

    "fp32" among the ``variants`` brings "int8" along. Raises ExactnessError when a bound does not
    hold.
    """
    with WeightFile(out / "entropy.weights") as weights:
        graphs = entropy_graphs(model, OPSET, weights)
    floats: tuple[str, ...] = ("entropy.onnx", weights.path.name)
    files = dict.fromkeys(variants, floats)
    (out / "entropy.onnx").write_bytes(graphs.floats.SerializeToString())
    if "fp32" in variants:
        files["int8"] = ("entropy.int8.onnx", weights.path.name)
        (out / "entropy.int8.onnx").write_bytes(graphs.bytes.SerializeToString())
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    positions = TensorSpec("positions", "int32", ("p",))
    frequencies = TensorSpec("weights", "int32", ("n", "p", len(model.embedding) - 1))
    return GraphFiles((tokens, positions), (frequencies,), files)


def write_tokenizers(texts: Mapping[str, str], out: Path) -> dict[str, str]:
    """Write tokenizers (JSON, by their text graph); names of their files, by the same."""
    files = {kind: f"{kind}.tokenizer.json" for kind in texts}
    for kind, text in texts.items():
        (out / files[kind]).write_text(text, "utf-8")
    return files


def write_bundle(
    codec: Exportable,
    out: Path,
    *,
    name: str | None = None,
    variants: Sequence[str] = tuple(DTYPES),
    rounded: bool = True,
) -> Bundle:
    """Write a bundle of a codec that has no entropy model of its own; see ``write_graphs``.

    What its variants in 8 bits are worth stands in the provenance (``with_int8_linear``).

    Raises BundleError when a file cannot be described.
    """
    out.mkdir(parents=True, exist_ok=True)
    size = codec.codec.codebook_size
    graphs = write_graphs(codec.module, codec.plans, size, out, variants, rounded=rounded)
    graphs, psnr_db = with_int8_linear(graphs, codec.module, codec.plans, size, out)
    bundle = write_manifest(
        out,
        name=name or codec.name,
        family=codec.family,
        language=codec.language,
        codec=codec.codec,
        graphs=graphs,
        licence=codec.licence,
        provenance={**codec.provenance, **({"int8_psnr_db": psnr_db} if psnr_db else {})},
        tokenizers=write_tokenizers(codec.tokenizers, out),
    )
    return with_costs_of(bundle, plans=codec.plans, module=codec.module)
