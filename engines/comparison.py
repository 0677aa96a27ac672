"""Is a graph the same graph elsewhere? What several sources make of the same feeds.

A source is a variant of a graph on a backend, or a function, such as the PyTorch module that the
graph was exported from. Polygraphy's comparator runs them one after the other, one engine in memory
at a time; how far two outputs may lie apart stands in ``BOUNDS`` and nowhere else. Polygraphy is
imported when a comparison starts, for nothing else needs it.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend, Buffer, Graph, TensorSpec, split_axis
from percoedge.errors import BackendError

__all__ = [
    "BOUNDS",
    "Arrays",
    "Difference",
    "Source",
    "backend_source",
    "compare_sources",
    "difference_cells",
    "difference_record",
    "example_feeds",
    "function_source",
]

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Mapping[str, Buffer]]

BOUNDS: Mapping[str, Mapping[str, float]] = {
    "relative_l2": {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.05},
    "differing": {"fp32": 1e-3, "fp16": 0.02, "int8": 0.25},
    "psnr_db": {"fp32": 70.0, "fp16": 50.0, "int8": 35.0},
}
"""By measure and by the coarser variant of the two; the integers of "entropy" must be equal.

``relative_l2``: most of |b - a| / |a|, of float outputs. ``differing``: largest share of tokens
that differ, of pictures of noise; those that 8 bits choose are others and no worse, which photos
show. ``psnr_db``: least PSNR of images in dB.
"""

_NAMES = {
    "relative_l2": "relative L2 error",
    "differing": "share that differs",
    "psnr_db": "PSNR in dB",
}
_BYTE_IDS = 256  # text ids that every tokenizer has: those of single bytes


@dataclass(frozen=True)
class Source:
    """A graph as something runs it: name and variant to call it by, and how to start it.

    ``start`` is called once per comparison; what it gives is entered, run and left.
    """

    name: str
    variant: str
    start: Callable[[], AbstractContextManager[Run]]

    def __str__(self) -> str:
        return f"{self.name} {self.variant}"


def backend_source(backend: Backend, graph: Graph) -> Source:
    """A graph on a backend, loaded only while it is compared."""

    @contextmanager
    def start() -> Iterator[Run]:
        with backend.load(graph) as engine:
            yield engine.run

    return Source(backend.name, graph.variant, start)


def function_source(name: str, variant: str, function: Run) -> Source:
    """A function from feeds to outputs, by the names of the graph's tensors."""
    return Source(name, variant, lambda: nullcontext(function))


@dataclass(frozen=True)
class Difference:
    """How far an output of ``b`` lies from that of ``a``, the worst of all feeds.

    ``relative_l2`` is of float outputs and of images, ``differing`` (share) of integers,
    ``psnr_db`` of images (infinite when equal); None where they mean nothing. ``largest``: the
    largest absolute difference. ``measure`` names the one that counts; ``ok``: whether it is within
    ``bound``, which NaN never is.
    """

    graph: str
    output: str
    a: str
    b: str
    measure: str
    bound: float
    largest: float
    relative_l2: float | None = None
    differing: float | None = None
    psnr_db: float | None = None

    @property
    def value(self) -> float:
        """What is measured by ``measure``."""
        return float(getattr(self, self.measure))

    @property
    def ok(self) -> bool:
        """Whether the measure is within its bound, which NaN never is."""
        return self.value >= self.bound if self.measure == "psnr_db" else self.value <= self.bound

    def __bool__(self) -> bool:  # Polygraphy's comparator asks for this
        return self.ok

    def __str__(self) -> str:
        relation = "below" if self.measure == "psnr_db" else "above"
        return (
            f"graph {self.graph!r}, {self.output!r} of {self.b}: {_NAMES[self.measure]} "
            f"{self.value:.3g}, {'within' if self.ok else relation} {self.bound:g}"
        )


def example_feeds(
    inputs: Sequence[TensorSpec], sizes: Mapping[str, int], codebook_size: int, seed: int = 0
) -> Arrays:
    """Seeded feeds of a graph, its symbolic axes of these ``sizes``.

    Floats are standard normal, or uniform in 0..1 where there is only one (time, time step,
    guidance); tokens lie in 0..K, K standing for "unknown"; positions are every other cell.
    """
    rng = np.random.default_rng(seed)
    feeds: Arrays = {}
    for spec in inputs:
        if spec.name == "positions":
            feeds[spec.name] = np.arange(0, sizes["h"] * sizes["w"], 2, dtype=spec.dtype)
            continue
        shape = tuple(_size(axis, sizes) for axis in spec.shape)
        if spec.dtype == "float32":
            draw = rng.random if shape == (1,) else rng.standard_normal
            feeds[spec.name] = draw(shape, np.float32)
        else:
            high = {"tokens": codebook_size + 1, "image": 256}.get(spec.name, _BYTE_IDS)
            feeds[spec.name] = rng.integers(0, high, shape).astype(spec.dtype)
    return feeds


def _size(axis: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    factor, symbol = split_axis(axis)
    return factor * sizes[symbol]


def compare_sources(
    kind: str, feeds: Sequence[Arrays], base: Source, others: Sequence[Source]
) -> list[Difference]:
    """Run a graph of this kind on every source and measure each beside ``base``, output by output.

    Raises BackendError when Polygraphy is missing or outputs have other names or shapes, and what
    starting and running a source raises.
    """
    try:
        from polygraphy.comparator import Comparator
        from polygraphy.logger import G_LOGGER
    except ImportError as error:
        raise BackendError(
            f"expected the package polygraphy, which compares graphs, cannot import it ({error}); "
            "install it with: pip install 'percoedge[compare]'"
        ) from error
    found: list[Difference] = []
    # it prints to stdout, and takes statistics of what may not be finite
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL), np.errstate(invalid="ignore"):
        runners = [
            _runner(f"{number}: {source}", source, feeds[0])
            for number, source in enumerate((base, *others))
        ]
        results = Comparator.run(runners, data_loader=list(feeds))
        for number, other in enumerate(others, 1):
            (accuracy,) = Comparator.compare_accuracy(
                results,
                comparisons=[(0, number)],
                compare_func=partial(_differences, kind, base, other),
            )
            (rounds,) = accuracy.values()
            found += (_worst([each[name] for each in rounds]) for name in rounds[0])
    return found


def _runner(name: str, source: Source, feeds: Arrays) -> Any:
    """A source as one of Polygraphy's runners, for feeds of these types."""
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class Runner(BaseRunner):  # type: ignore[misc]
        def get_input_metadata_impl(self) -> Any:
            metadata = TensorMetadata()
            for feed_name, feed in feeds.items():
                metadata.add(feed_name, feed.dtype, (None,) * feed.ndim)
            return metadata

        def activate_impl(self) -> None:
            self._stack = ExitStack()
            self._run = self._stack.enter_context(source.start())

        def deactivate_impl(self) -> None:
            del self._run
            self._stack.close()

        def infer_impl(self, feed_dict: Arrays) -> OrderedDict[str, NDArray[Any]]:
            outputs = self._run(dict(feed_dict))
            self.inference_time = 0.0  # times of single runs say little: see percoedge bench
            return OrderedDict((name, np.asarray(output)) for name, output in outputs.items())

    return Runner(name)


def _differences(
    kind: str, base: Source, other: Source, a: Mapping[str, Any], b: Mapping[str, Any]
) -> OrderedDict[str, Difference]:
    """Every output of one round, by name."""
    shapes = [{name: array.shape for name, array in outputs.items()} for outputs in (a, b)]
    if shapes[0] != shapes[1]:
        raise BackendError(
            f"graph {kind!r}: expected outputs {shapes[0]} as of {base}, got {shapes[1]} of "
            f"{other}; compare graphs of one bundle, and PyTorch by the configuration of its export"
        )
    named = (kind, base, other)
    return OrderedDict((name, _difference(*named, name, a[name], b[name])) for name in shapes[0])


def _difference(
    kind: str, base: Source, other: Source, output: str, a: NDArray[Any], b: NDArray[Any]
) -> Difference:
    """One output of one round; NaN anywhere stays."""
    variants = list(BOUNDS["differing"])
    coarser = max(base.variant, other.variant, key=variants.index)
    is_image, is_float = a.dtype == np.uint8, a.dtype.kind == "f"
    apart = b.astype(np.float64) - a
    length = float(np.linalg.norm(apart))
    relative = length / max(float(np.linalg.norm(a.astype(np.float64))), 1e-12)
    measure = "relative_l2" if is_float else "psnr_db" if is_image else "differing"
    psnr_db = None
    if is_image:
        psnr_db = 20 * math.log10(255 * math.sqrt(a.size) / length) if length else math.inf
    return Difference(
        graph=kind,
        output=output,
        a=str(base),
        b=str(other),
        measure=measure,
        bound=0.0 if kind == "entropy" else BOUNDS[measure][coarser],
        largest=float(np.abs(apart).max()),
        relative_l2=relative if is_float or is_image else None,
        differing=None if is_float else float(np.mean(a != b)),
        psnr_db=psnr_db,
    )


def _worst(rounds: Sequence[Difference]) -> Difference:
    """The rounds of one output as one."""

    def largest(name: str) -> float | None:
        values = [getattr(each, name) for each in rounds]
        return None if None in values else float(np.max(values))  # unlike max, it keeps NaN

    worst = {name: largest(name) for name in ("largest", "relative_l2", "differing")}
    psnr_db = min((each.psnr_db for each in rounds if each.psnr_db is not None), default=None)
    return Difference(**{**asdict(rounds[0]), **worst, "psnr_db": psnr_db})


def difference_record(bundle: Bundle, rows: Sequence[Difference]) -> dict[str, Any]:
    """What was compared and found, for JSON; numbers that are not finite become null."""

    def plain(row: Difference) -> dict[str, Any]:
        values = {**asdict(row), "ok": row.ok}
        finite = {n: v for n, v in values.items() if not isinstance(v, float) or math.isfinite(v)}
        return {name: finite.get(name) for name in values}

    graphs = {row.graph: bundle.manifest.graphs[row.graph] for row in rows}
    return {
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint.hex(),
        "graphs_sha256": {
            kind: {name: variant.model.sha256 for name, variant in graph.variants.items()}
            for kind, graph in graphs.items()
        },
        "differences": [plain(row) for row in rows],
    }


_HEAD = ("graph", "output", "of", "relative L2", "largest", "differing", "PSNR dB", "bound", "")


def difference_cells(rows: Sequence[Difference]) -> list[tuple[str, ...]]:
    """A table to print: its head, then a row per graph, output and source beside the first.

    Graph, output and source are words, the other columns are numbers but for the verdict.
    """
    return [_HEAD, *map(_cells, rows)]


def _cells(row: Difference) -> tuple[str, ...]:
    equal = row.psnr_db == math.inf
    return (
        row.graph,
        row.output,
        row.b,
        "-" if row.relative_l2 is None else f"{row.relative_l2:.2e}",
        f"{row.largest:.3g}",
        "-" if row.differing is None else f"{row.differing:.3%}",
        "-" if row.psnr_db is None else "equal" if equal else f"{row.psnr_db:.1f}",
        f"{'>=' if row.measure == 'psnr_db' else '<='} {row.bound:g}",
        "" if row.ok else "FAILED",
    )
