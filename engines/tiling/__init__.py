"""Two graphs that every bundle with a flow has besides its own: tiles out of latents, and back.

They keep what is sampled in tiles on the device. ``cut`` gathers tiles out of latents; ``blend``
adds weighted tiles up, each cell gathering what covers it. Their models come with percoedge:
``percoedge.export.graphs.tiling`` writes them. A flat index in them is the sum of one of a row and
one of a column, so that what is fed is small.
"""

from __future__ import annotations

from importlib import resources

from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import Graph, GraphSource, TensorSpec

__all__ = ["TILING", "graph_of", "tiling_graph", "tiling_kinds"]

TILING = ("cut", "blend")
"""Names of the graphs."""


def tiling_kinds(codec: CodecConstants) -> tuple[str, ...]:
    """Those that a bundle has besides its own: none where it has no latents."""
    return TILING if codec.latent_channels else ()


def graph_of(bundle: Bundle, kind: str, variant: str) -> Graph:
    """A graph of a bundle, or one of TILING; raises what ``Bundle.graph`` raises."""
    return tiling_graph(kind) if kind in TILING else bundle.graph(kind, variant)


def tiling_graph(kind: str) -> GraphSource:
    """One of TILING, for latents of any number of channels.

    ``cut``: x (n,c,a,b), rows (t,y), columns (t,x) -> tiles (t,c,y,x). A row is the index of its
    first cell among n*a*b, a column what is added to that. ``blend``: tiles (t,c,y,x), rows
    (n,a,k), columns (b,k) likewise among t*y*x, row_weights (a,k), column_weights (b,k), x
    (n,c,a,b), keep (1,) -> x_next (n,c,a,b): x times ``keep``, and for each cell the weighted sum
    of the k times k that it is made of. All float32, indices int32.
    """
    whole = TensorSpec("x", "float32", ("n", "c", "a", "b"))
    tiles = TensorSpec("tiles", "float32", ("t", "c", "y", "x"))
    inputs, output = {
        "cut": ((whole, _indices("rows", "t", "y"), _indices("columns", "t", "x")), tiles),
        "blend": (
            (
                tiles,
                _indices("rows", "n", "a", "k"),
                _indices("columns", "b", "k"),
                TensorSpec("row_weights", "float32", ("a", "k")),
                TensorSpec("column_weights", "float32", ("b", "k")),
                whole,
                TensorSpec("keep", "float32", (1,)),
            ),
            TensorSpec("x_next", "float32", whole.shape),
        ),
    }[kind]
    model = resources.files(__name__).joinpath(f"{kind}.onnx").read_bytes()
    return GraphSource(kind, "fp32", model, {}, inputs, (output,))


def _indices(name: str, *shape: str) -> TensorSpec:
    return TensorSpec(name, "int32", shape)
