"""What share of the ceiling a graph reaches, from the costs in the manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import Cost
from percoedge.engines.bundle.write import replace_manifest
from percoedge.runtime.bench.ceiling import Ceiling
from percoedge.runtime.bench.probe import Call
from percoedge.runtime.bench.rates import graph_runs

CEILING = Ceiling("float32", float_ops_per_s=1e9, int8_ops_per_s=4e9, bytes_per_s=1e8)
COST = Cost({"n*h*w": 1000, "n": 500}, 5000, int8_macs={"n*h*w": 400}, int8_weights=2000)
CALLS = [
    Call("decoder", {"n": 1, "h": 2, "w": 3}, 2.0),
    Call("decoder", {"n": 2, "h": 1, "w": 1}, 3.0),
]


@pytest.fixture(scope="module")
def costed(make_bundle: Callable[..., Bundle]) -> Bundle:
    """The decoder with a cost, and a variant "int8" that is as it were in bytes."""
    bundle = make_bundle()
    graphs = dict(bundle.manifest.graphs)
    variants = {**graphs["decoder"].variants, "int8": graphs["decoder"].variants["fp32"]}
    graphs["decoder"] = replace(graphs["decoder"], variants=variants, cost=COST)
    return replace_manifest(bundle.path, replace(bundle.manifest, graphs=graphs))


def record(bundle: Bundle, variant: str, ceiling: Ceiling = CEILING) -> dict[str, Any]:
    (run,) = graph_runs(bundle, variant, {"decoder": 5.0}, CALLS)
    return run.record(ceiling)


def test_a_graph_in_floats(costed: Bundle) -> None:
    found = record(costed, "fp32")
    macs = 6 * 1000 + 500 + 2 * 1000 + 2 * 500
    io_bytes = 8 * (4 * 2 * 2 * 4 + 8 * 8 * 3)  # tokens by a latent of float32 and an image
    assert found == {
        **{"graph": "decoder", "calls": 2, "time_ms": 5.0, "float_ops": 2 * macs, "int8_ops": 0},
        **{"weight_bytes": 2 * 5000 * 4, "io_bytes": io_bytes},
        **{"ops_per_s": 2 * macs * 200, "bound_ms": round((40000 + io_bytes) / 1e5, 3)},
        "fraction_of_bound": round((40000 + io_bytes) / 1e5 / 5, 4),
        "fraction_of_matrix_rate": round(2 * macs / 1e6 / 5, 4),
    }


def test_a_graph_in_bytes_has_a_ceiling_of_two_parts(costed: Bundle) -> None:
    found = record(costed, "int8")
    assert found["int8_ops"] == 2 * 8 * 400
    assert found["float_ops"] == 2 * (8 * 600 + 3 * 500)
    assert found["weight_bytes"] == 2 * (3000 * 4 + 2000)
    matrix_ms = found["float_ops"] / 1e6 + found["int8_ops"] / 4e6
    assert found["fraction_of_matrix_rate"] == round(matrix_ms / 5, 4)


@pytest.mark.parametrize(
    "ceiling",
    [
        Ceiling("float32", None, 4e9, 1e8),
        Ceiling("float32", 1e9, None, 1e8),
        Ceiling("float32", 1e9, 4e9, None),
    ],
)
def test_without_a_ceiling_there_is_a_rate_but_no_share(costed: Bundle, ceiling: Ceiling) -> None:
    found = record(costed, "int8", ceiling)
    assert found["ops_per_s"] > 0
    assert found["bound_ms"] is found["fraction_of_matrix_rate"] is None


def test_without_a_cost_all_is_unknown(fake_bundle: Bundle) -> None:
    found = record(fake_bundle, "int8")
    assert (found["calls"], found["time_ms"]) == (2, 5.0)
    assert {
        value for name, value in found.items() if name not in ("graph", "calls", "time_ms")
    } == {None}
