"""The command ``percoedge compare``: how far the graphs of a bundle differ on two backends.

Whole decodes are not compared: a token or pixel that tips over early would hide which graph is to
blame.
"""

from __future__ import annotations

from argparse import Namespace

from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import (
    Arrays,
    Difference,
    backend_source,
    compare_sources,
    difference_cells,
    difference_record,
    example_feeds,
)
from percoedge.engines.contract import Backend
from percoedge.engines.plans.profiles import profile_for
from percoedge.engines.selection import select
from percoedge.errors import BackendError
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.tables import column_lines
from percoedge.runtime.settings import chosen_graphs

__all__ = ["compare", "compare_graph", "feeds_in_plans"]

_ODD_GRID = (5, 7)  # rows and columns that nothing divides


def compare(options: Namespace, console: Console) -> int:
    """Compare two backends graph by graph; raises BackendError when a bound is passed."""
    bundle = Bundle.open(options.bundle)
    kinds = chosen_graphs(bundle, options.graph)
    a, b = (select(name, bundle=bundle) for name in (options.a, options.b))
    rows = []
    with console.progress() as line:
        for number, kind in enumerate(kinds, 1):
            line.show(f"comparing {kind} ({number} of {len(kinds)})")
            rows += compare_graph(bundle, kind, a, b)
    names = [f"{backend.name} {backend.variant}" for backend in (a, b)]
    record = {"command": "compare", "a": a.name, "b": b.name, **difference_record(bundle, rows)}
    table = column_lines(difference_cells(rows), left=3)
    console.report(record, [f"{names[1]} beside {names[0]}", *table])
    beyond = [str(row) for row in rows if not row.ok]
    if beyond:
        raise BackendError(
            f"expected {names[0]} and {names[1]} to agree, got {'; '.join(beyond)}; compare each "
            "with onnxruntime-cpu:fp32, and do not decode with the one that differs"
        )
    return 0


def compare_graph(bundle: Bundle, kind: str, a: Backend, b: Backend) -> list[Difference]:
    """Run one graph on two backends and measure, each with the variant that it would decode with.

    Raises BundleError or BackendError when a graph is missing or cannot run.
    """
    first, second = (backend_source(each, bundle.graph(kind, each.variant)) for each in (a, b))
    return compare_sources(kind, feeds_in_plans(bundle, kind), first, [second])


def feeds_in_plans(bundle: Bundle, kind: str) -> list[Arrays]:
    """Seeded feeds of a graph: one token, an odd grid, and 512x512 pixels or a tile; one each.

    All lie in the ranges of plans that were built without ``--sizes`` and ``--batch``. Graphs
    without a grid get one set of feeds.
    """
    graph = bundle.manifest.graphs[kind]
    profile = profile_for(kind, (*graph.input_specs, *graph.output_specs), bundle.codec)
    grids = [(1, 1)]
    if "h" in profile.ranges:
        typical = (profile.ranges["h"][1], profile.ranges["w"][1])
        grids += [(min(_ODD_GRID[0], typical[0]), min(_ODD_GRID[1], typical[1])), typical]
    size = bundle.codec.codebook_size
    return [
        example_feeds(graph.input_specs, {"n": 1, "h": rows, "w": columns}, size)
        for rows, columns in grids
    ]
