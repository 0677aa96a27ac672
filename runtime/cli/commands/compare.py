"""The command ``percoedge compare``: how far the graphs of a bundle differ on two backends.

Both get the same seeded feeds at a few grids, one engine in memory at a time. Whole decodes are not
compared: a token or pixel that tips over early would hide which graph is to blame.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.schedules import passes
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import Backend, TensorSpec, split_axis
from percoedge.engines.plans.profiles import profile_for
from percoedge.engines.selection import select
from percoedge.errors import BackendError
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.tables import column_lines
from percoedge.runtime.images.metrics import psnr_db
from percoedge.runtime.settings import chosen_graphs

__all__ = ["GraphDifference", "compare", "compare_graph", "example_feeds"]

Arrays = dict[str, NDArray[Any]]

# By the coarser variant of the two. Floats: largest relative L2 error. Tokens: largest share that
# differs. Images: least PSNR in dB. The integers of the entropy model must be equal everywhere.
_FLOAT_BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.05}
_TOKEN_BOUNDS = {"fp32": 1e-3, "fp16": 0.02, "int8": 0.02}
_IMAGE_BOUNDS_DB = {"fp32": 60.0, "fp16": 45.0, "int8": 35.0}

_ODD_GRID = (5, 7)  # rows and columns that nothing divides
_MAX_ID = 256  # text ids: the single bytes of every tokenizer


@dataclass(frozen=True)
class GraphDifference:
    """How far the outputs of one graph differ, the worst of all grids and outputs.

    ``relative_l2`` is of float outputs, ``differing`` (share) of integers, ``psnr_db`` of images
    (infinite when equal); None where a graph has no such output. ``largest``: the largest absolute
    difference. ``measure`` names the one that counts; ``ok``: whether it is within ``bound``, which
    NaN never is.
    """

    graph: str
    variants: tuple[str, str]
    measure: str
    bound: float
    relative_l2: float | None
    differing: float | None
    psnr_db: float | None
    largest: float

    @property
    def ok(self) -> bool:
        """Whether the measure is within its bound."""
        value = getattr(self, self.measure)
        within: bool = value >= self.bound if self.measure == "psnr_db" else value <= self.bound
        return within


def compare(options: Namespace, console: Console) -> int:
    """Compare two backends graph by graph; raises BackendError when a bound is passed."""
    bundle = Bundle.open(options.bundle)
    kinds = chosen_graphs(bundle, options.graph)
    a, b = (select(name, bundle=bundle) for name in (options.a, options.b))
    rows = []
    with console.progress() as line:
        for number, kind in enumerate(kinds, 1):
            line.show(f"comparing {kind} ({number} of {len(kinds)})")
            rows.append(compare_graph(bundle, kind, a, b))
    record = {
        "command": "compare",
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint.hex(),
        "a": a.name,
        "b": b.name,
        "graphs": [_json(row) for row in rows],
    }
    console.report(record, _lines(rows, a, b))
    beyond = [f"graph {row.graph!r}: {_found(row)}" for row in rows if not row.ok]
    if beyond:
        raise BackendError(
            f"expected {_named(a)} and {_named(b)} to agree, got {'; '.join(beyond)}; compare each "
            "with onnxruntime-cpu:fp32, and do not decode with the one that differs"
        )
    return 0


def compare_graph(bundle: Bundle, kind: str, a: Backend, b: Backend) -> GraphDifference:
    """Run one graph on two backends and measure, each with the variant that it would decode with.

    Raises BundleError or BackendError when a graph is missing or cannot run.
    """
    graph = bundle.manifest.graphs[kind]
    feeds = example_feeds(kind, graph.input_specs, graph.output_specs, bundle.codec)
    results = []
    for backend in (a, b):
        with backend.load(bundle.read(kind, backend.variant)) as engine:
            results.append(
                [{n: np.asarray(o) for n, o in engine.run(feed).items()} for feed in feeds]
            )
    variants = (graph.nearest(a.variant), graph.nearest(b.variant))
    return _difference(kind, variants, *results)


def example_feeds(
    kind: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    codec: CodecConstants,
) -> list[Arrays]:
    """Seeded feeds of a graph: one token, an odd grid, and 512x512 pixels or a tile; one each.

    All lie in the ranges of plans that were built without ``--sizes`` and ``--batch``. Graphs
    without a grid get one set of feeds.
    """
    profile = profile_for(kind, (*inputs, *outputs), codec)
    if "h" not in profile.ranges:
        return [_feeds(inputs, {"n": 1}, codec)]
    typical = (profile.ranges["h"][1], profile.ranges["w"][1])
    odd = (min(_ODD_GRID[0], typical[0]), min(_ODD_GRID[1], typical[1]))
    return [
        _feeds(inputs, {"n": 1, "h": height, "w": width}, codec)
        for height, width in ((1, 1), odd, typical)
    ]


def _feeds(inputs: Sequence[TensorSpec], sizes: dict[str, int], codec: CodecConstants) -> Arrays:
    rng = np.random.default_rng(0)
    feeds: Arrays = {}
    for spec in inputs:
        if spec.name == "positions":
            feeds[spec.name] = passes("checkerboard", sizes["h"], sizes["w"])[0]
            continue
        shape = tuple(_size(axis, sizes) for axis in spec.shape)
        if spec.dtype == "float32":
            # knobs lie in 0..1: time, time step, guidance
            draw = rng.random if shape == (1,) else rng.standard_normal
            feeds[spec.name] = draw(shape, np.float32)
        else:
            high = {"tokens": codec.codebook_size, "image": 256}.get(spec.name, _MAX_ID)
            feeds[spec.name] = rng.integers(0, high, shape).astype(spec.dtype)
    return feeds


def _size(axis: int | str, sizes: dict[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    factor, symbol = split_axis(axis)
    return factor * sizes[symbol]


def _difference(
    kind: str, variants: tuple[str, str], a: list[Arrays], b: list[Arrays]
) -> GraphDifference:
    """Compare outputs grid by grid, tensor by tensor; NaN anywhere stays."""
    coarser = max(variants, key=list(_FLOAT_BOUNDS).index)
    pairs = [(x[name], y[name]) for x, y in zip(a, b, strict=True) for name in x]
    floats = [pair for pair in pairs if pair[0].dtype.kind == "f"]
    integers = [pair for pair in pairs if pair[0].dtype.kind in "iu"]
    images = [pair for pair in pairs if pair[0].dtype == np.uint8]
    if floats:
        measure, bound = "relative_l2", _FLOAT_BOUNDS[coarser]
    elif images:
        measure, bound = "psnr_db", _IMAGE_BOUNDS_DB[coarser]
    else:
        measure, bound = "differing", 0.0 if kind == "entropy" else _TOKEN_BOUNDS[coarser]
    largest = [np.abs(x.astype(np.float64) - y).max() for x, y in pairs]
    return GraphDifference(
        graph=kind,
        variants=variants,
        measure=measure,
        bound=bound,
        relative_l2=_largest([_relative_l2(*pair) for pair in floats]),
        differing=_largest([float(np.mean(x != y)) for x, y in integers]),
        psnr_db=min((psnr_db(*pair) for pair in images), default=None),
        largest=float(np.max(largest)),
    )


def _relative_l2(a: NDArray[Any], b: NDArray[Any]) -> float:
    """|b - a| / |a|; NaN where either holds NaN or infinity."""
    with np.errstate(invalid="ignore"):
        difference = float(np.linalg.norm(b.astype(np.float64) - a))
    return difference / max(float(np.linalg.norm(a)), 1e-12)


def _largest(values: list[float]) -> float | None:
    return float(np.max(values)) if values else None  # unlike max, which passes over NaN


def _json(row: GraphDifference) -> dict[str, Any]:
    """A row for the record; what is not finite becomes null, as JSON has no such numbers."""
    figures = {name: getattr(row, name) for name in ("relative_l2", "differing", "psnr_db")}
    figures["largest"] = row.largest
    return {
        "graph": row.graph,
        "variants": list(row.variants),
        **{n: v if v is not None and math.isfinite(v) else None for n, v in figures.items()},
        "measure": row.measure,
        "bound": row.bound,
        "ok": row.ok,
    }


_HEAD = ("graph", "a", "b", "relative L2", "largest", "differing", "PSNR dB", "bound", "")


def _lines(rows: list[GraphDifference], a: Backend, b: Backend) -> list[str]:
    head = f"a is {_named(a)}, b is {_named(b)}"
    return [head, *column_lines([_HEAD, *map(_cells, rows)])]


def _named(backend: Backend) -> str:
    return f"{backend.name} ({backend.variant})"


def _cells(row: GraphDifference) -> tuple[str, ...]:
    relation = ">=" if row.measure == "psnr_db" else "<="
    return (
        row.graph,
        *row.variants,
        "-" if row.relative_l2 is None else f"{row.relative_l2:.2e}",
        f"{row.largest:.3g}",
        "-" if row.differing is None else f"{row.differing:.3%}",
        "-" if row.psnr_db is None else _decibels(row.psnr_db),
        f"{relation} {row.bound:g}",
        "" if row.ok else "FAILED",
    )


def _found(row: GraphDifference) -> str:
    if row.measure == "psnr_db":
        return f"PSNR {_decibels(row.psnr_db or 0.0)} dB, below {row.bound:g}"
    name = "relative L2 error" if row.measure == "relative_l2" else "share that differs"
    return f"{name} {getattr(row, row.measure):.2g}, above {row.bound:g}"


def _decibels(value: float) -> str:
    return "equal" if math.isinf(value) else f"{value:.1f}"
