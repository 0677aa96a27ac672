"""An entropy model for the tokens of any bundle: ``python -m percoedge.export.train mim``.

Bundles of published codecs code their tokens uniformly. This trains the exact integer model on the
tokens that a bundle's own encoder makes of photos, and writes a bundle that codes with it: the
other graphs are the same files, so pictures stay what they were, in fewer bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from percoedge.engines.bundle import Bundle, write_manifest
from percoedge.engines.bundle.write import replace_manifest
from percoedge.engines.contract import Engine
from percoedge.engines.processors import expect_workers
from percoedge.engines.selection import select
from percoedge.errors import UsageError
from percoedge.export.config import StageConfig, load_config
from percoedge.export.exact.integers import IntegerMim, coded_language
from percoedge.export.graphs.costs import with_costs_of
from percoedge.export.graphs.whole_model import whole_model
from percoedge.export.graphs.writing import write_entropy
from percoedge.export.models.mim import Mim, integer_mim
from percoedge.export.training.data import Photos
from percoedge.export.training.stages import validation_images
from percoedge.export.training.stages_mim import Tokens, train_mim
from percoedge.export.training.trainer import pick_device

_AT_ONCE = 8
"""Crops that go through an encoder together: what it needs grows with them."""


def train_entropy(
    bundle: Bundle,
    photo_dir: Path,
    validation_dir: Path,
    out: Path,
    *,
    config_name: str = "tiny",
    steps: int | None = None,
    name: str | None = None,
    device_name: str = "auto",
    threads: int | None = None,
    limit: int | None = None,
) -> Bundle:
    """Train an entropy model for a bundle; returns ``<out>/bundle``, which codes with it.

    ``config_name``: whose tables ``mim`` and ``train.mim*`` say how large it is and how it is
    trained; ``steps``: of the stage in floats instead, the other having a third of them. ``name``:
    of the new bundle. ``threads``: of the encoder. ``limit`` uses only so many photos.

    Raises ValueError when a folder has no photos or one is too small, BundleError when the bundle
    cannot be read, UsageError when it would be written over itself.
    """
    target = out / "bundle"
    if target.resolve() == bundle.path.resolve():
        raise UsageError(f"expected another folder than that of the bundle, got {out}; give --out")
    config = load_config(config_name)
    device, codec = pick_device(device_name), bundle.codec
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    mim = Mim(config.mim, codec.codebook_size).to(device)
    vectors = codebook_of(bundle)
    if vectors is not None:
        mim.start_from(torch.from_numpy(vectors).to(device))
    backend = select("onnxruntime-cpu" if device.type == "cpu" else "auto", threads=threads)
    photos = Photos(photo_dir, limit)
    valid = validation_images(validation_dir, device, max(16, codec.stride))
    with backend.load(bundle.graph("encoder", backend.variant)) as engine:
        tokens = Tokens(encoder_of(engine), codec.stride, photos, valid)
        train_mim(mim, tokens, _stages(config.train, steps), out, config.seed)
    mim.cpu()
    return coded_bundle(bundle, mim, target, config.codec.schedule, name)


def _stages(stages: Mapping[str, StageConfig], steps: int | None) -> Mapping[str, StageConfig]:
    """The two stages, with other numbers of steps if ``steps`` says so."""
    if steps is None:
        return stages
    counts = {"mim": steps, "mim_exact": max(1, steps // 3)}
    return {
        name: replace(stages[name], steps=count, warmup=min(stages[name].warmup, count // 10 + 1))
        for name, count in counts.items()
    }


def encoder_of(engine: Engine) -> Callable[[Tensor], Tensor]:
    """The engine of an encoder as ``Tokens.of``."""

    def of(images: Tensor) -> Tensor:
        pixels = ((images.permute(0, 2, 3, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        parts = np.split(pixels, range(_AT_ONCE, len(pixels), _AT_ONCE))
        made = [np.asarray(engine.run({"image": np.ascontiguousarray(p)})["tokens"]) for p in parts]
        return torch.from_numpy(np.concatenate(made)).long().to(images.device)

    return of


def codebook_of(bundle: Bundle) -> NDArray[np.float32] | None:
    """What an encoder compares with, float32 (K,D) of mean 0 and norms around 1.

    That is the constant of the last product before the tokens. None where there is none: it only
    gives training a start.
    """
    variants = bundle.manifest.graphs["encoder"].variants
    variant = "fp32" if "fp32" in variants else next(iter(variants))
    graph = whole_model(bundle.read("encoder", variant)).graph
    values = {t.name: t for t in graph.initializer}
    products = []
    for node in graph.node:
        if node.op_type in ("Cast", "Transpose") and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        elif node.op_type in ("MatMul", "Gemm") and node.input[1] in values:
            products.append(values[node.input[1]])
    size = bundle.codec.codebook_size
    if not products or len(products[-1].dims) != 2 or size not in products[-1].dims:
        return None
    vectors: NDArray[np.float32] = numpy_helper.to_array(products[-1]).astype(np.float32)
    vectors = vectors if len(vectors) == size else vectors.T
    vectors = vectors - vectors.mean(0)
    return np.ascontiguousarray(vectors / max(1e-6, np.linalg.norm(vectors, axis=1).mean()))


def coded_bundle(
    bundle: Bundle, mim: Mim, out: Path, schedule: str, name: str | None = None
) -> Bundle:
    """Write a bundle with the graphs of another, and an entropy model in place of its own if any.

    ``mim``: trained, on the CPU. Its integers are part of the new bundle's language: it does not
    read streams of the other one. Raises ExactnessError when a bound does not hold.
    """
    model: IntegerMim = integer_mim(mim)
    graphs = {k: graph for k, graph in bundle.manifest.graphs.items() if k != "entropy"}
    out.mkdir(parents=True, exist_ok=True)
    kept = [*bundle.manifest.tokenizers.values()]
    for graph in graphs.values():
        kept += [record for variant in graph.variants.values() for record in variant.files]
    for record in {record.file: record for record in kept}.values():
        path = out / record.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bundle.read_file(record))
    floats = [v for v in ("fp16", "fp32") if v in graphs["encoder"].variants]
    alone = write_manifest(
        out,
        name=name or f"{bundle.name}-mim",
        family=bundle.manifest.family,
        language=coded_language(bundle.manifest.language, model),
        codec=replace(bundle.codec, schedule=schedule),
        graphs={"entropy": write_entropy(model, out, floats)},
        licence=bundle.manifest.licence,
        provenance={**bundle.manifest.provenance, "entropy_model": "trained on its tokens"},
    )
    manifest = replace(
        alone.manifest,
        graphs={**graphs, **alone.manifest.graphs},
        tokenizers=bundle.manifest.tokenizers,
    )
    return with_costs_of(replace_manifest(out, manifest), mim=mim)


def main(arguments: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m percoedge.export.train mim", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--bundle", required=True, help="whose tokens are to be coded")
    parser.add_argument("--photos", type=Path, required=True, help="folder of training photos")
    parser.add_argument("--validation", type=Path, required=True, help="folder of other photos")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, curves, bundle/")
    parser.add_argument("--config", default="tiny", help="configuration with sizes and stages")
    parser.add_argument("--steps", type=int, help="of the stage in floats; a third of it for more")
    parser.add_argument("--name", help="name of the new bundle (default: the old one, -mim)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--limit", type=int, help="use so many photos only (dry run)")
    args = parser.parse_args(arguments)
    if args.threads:
        torch.set_num_threads(expect_workers("threads", args.threads))
    bundle = train_entropy(
        Bundle.open(args.bundle),
        args.photos,
        args.validation,
        args.out,
        config_name=args.config,
        steps=args.steps,
        name=args.name,
        device_name=args.device,
        threads=args.threads,
        limit=args.limit,
    )
    print(
        f"{bundle.path}: codes with its own entropy model; fingerprint {bundle.fingerprint.hex()}"
    )
