"""A measurement as one page of HTML that needs nothing else: no script, no font, no request.

Charts are SVG within the page. The text follows the reader's choice of light or dark.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from benchmarks.report.charts import case_charts, case_names, overall_charts
from benchmarks.report.read import Measurement
from percoedge.runtime.bench.tables import (
    ALONE,
    DEVICE_TIMES,
    LAYERS,
    UNKNOWN,
    Table,
    alone_table,
    device_table,
    layer_table,
    summary_table,
)

__all__ = ["html_page"]

_MIB = 1 << 20
_TITLES = {
    "stages": "Where the time goes",
    "throughput": "Throughput against batch",
    "peak-host": "Memory of the process, Python and libraries with it",
    "peak-device": "Memory of the GPU",
    "waterfall": "Stages of a decode in the order in which they run",
    "latency": "Distribution of latencies",
    "roofline": "Roofline",
}
_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2127; --soft: #5b6570; --rule: #d9dee4; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e6e9ed; --soft: #9ba6b2;
  --rule: #353d46; } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 1240px;
  padding: 24px; font: 15px/1.5 system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
h1 { font-size: 24px; margin: 0 0 2px; } h2 { font-size: 18px; margin: 34px 0 8px; }
h3 { font-size: 15px; margin: 14px 0 4px; }
p { margin: 4px 0 10px; max-width: 104ch; } .soft { color: var(--soft); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 7px; border-bottom: 1px solid var(--rule); text-align: right;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 500; white-space: normal; vertical-align: bottom; }
.left { text-align: left; }
.facts td { border: 0; padding: 1px 18px 1px 0; text-align: left; white-space: normal; }
.facts td:first-child { color: var(--soft); white-space: nowrap; }
details { border: 1px solid var(--rule); border-radius: 8px; padding: 10px 16px; margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
.pair { display: flex; flex-wrap: wrap; gap: 8px 28px; align-items: flex-start; }
img { background: #fff; border-radius: 6px; max-width: 100%; height: auto; }
@media print { body { max-width: none; } details { break-inside: avoid; } }
"""


def html_page(measurement: Measurement) -> str:
    """The page of a measurement, which holds at least one result."""
    machine, limits, outcomes = measurement.machine, measurement.limits, measurement.outcomes
    sections = [
        _tag("h1", "Decoding, measured"),
        _paragraph(f"percoedge bench, {machine['date']}"),
        _facts(machine),
        _tag("h2", "Results"),
        _paragraph(
            f"At least {limits.seconds:g} s and {limits.iterations} decodes of each case after "
            f"{limits.warmup_seconds:g} s of warm-up, each case in a process of its own. Latency "
            "is from bytes in memory to images in memory."
        ),
        _table(summary_table(outcomes)),
        *(_paragraph(f"Failed: {outcome.error}") for outcome in outcomes if outcome.error),
    ]
    for name, figure in overall_charts(measurement).items():
        sections += [_tag("h2", _TITLES[name]), _image(figure, _TITLES[name])]
    if (on_gpu := device_table(outcomes)) is not None:
        sections += [_tag("h2", "On the GPU"), _paragraph(f"{DEVICE_TIMES}."), _table(on_gpu)]
    for title, words, table in (
        ("Graphs by themselves", ALONE, alone_table(outcomes)),
        ("Layers", LAYERS, layer_table(outcomes)),
    ):
        if table is not None:
            sections += [_tag("h2", title), _paragraph(f"{words}."), _table(table)]
    sections.append(_tag("h2", "Case by case"))
    results = [result for *_, result in measurement.measured]
    sections += [
        _case(name, result, is_open=index == 0)
        for index, (name, result) in enumerate(zip(case_names(measurement), results, strict=True))
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{_tag('title', 'percoedge bench')}{_tag('style', _STYLE)}"
    )
    body = _tag("body", "\n".join(sections))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


def _facts(machine: Mapping[str, Any]) -> str:
    """What was measured on."""
    gpu = machine["gpu"] or {}
    memory = machine["memory_bytes"]
    cores = f"{machine['cores_usable']} of {machine['cores']} cores usable"
    rows = {
        "board": machine["board"],
        "processor": f"{machine['processor']}, {cores}",
        "GPU": ", ".join(f"{key} {value}" for key, value in gpu.items() if value is not None),
        "memory": None if memory is None else f"{memory / 2**30:.1f} GiB",
        "clock": None if machine["cpu_mhz"] is None else f"{machine['cpu_mhz']} MHz",
        "governor": machine["cpu_governor"],
        "power mode": machine["power_mode"],
        "load before": machine["load_average"],
        "system": f"{machine['system']}, Python {machine['python']}",
        "versions": ", ".join(f"{name} {v}" for name, v in machine["versions"].items()),
        "percoedge": f"{machine['percoedge']}, commit {machine['commit'] or UNKNOWN}",
    }
    cells = [
        _tag("tr", _tag("td", name) + _tag("td", html.escape(str(value or UNKNOWN))))
        for name, value in rows.items()
        if value or name not in ("board", "GPU")
    ]
    return f'<table class="facts">{"".join(cells)}</table>'


def _case(name: str, result: Mapping[str, Any], is_open: bool) -> str:
    """One case: its stages, its latencies, and how far its graphs are from what is possible."""
    latency = result["latency_ms"]
    energy = result["joules_per_image"]
    described = (
        f"{result['iterations']} decodes of {result['stream_bytes']} bytes on {result['backend']} "
        f"({result['variant']}); the first one, with loading, took {result['first_ms']:.0f} ms. "
        f"Mean {latency['mean']:.2f} ms, standard deviation {latency['sd']:.2f} ms. Energy: "
        + (UNKNOWN if energy is None else f"{energy:.3g} J an image ({result['energy_source']})")
        + "."
    )
    charts = {n: _image(figure, _TITLES[n]) for n, figure in case_charts(result).items()}
    parts = [
        _tag("summary", html.escape(name)),
        _paragraph(described),
        f'<div class="pair">{charts["waterfall"]}{charts["latency"]}</div>',
        _tag("h3", _TITLES["roofline"]),
        _paragraph(_ceilings(result["ceiling"])),
        charts.get("roofline", ""),
        _table(_graph_table(result["graphs"])),
    ]
    return f"<details{' open' if is_open else ''}>{''.join(parts)}</details>"


def _ceilings(ceiling: Mapping[str, Any]) -> str:
    """What the device reaches, in a sentence or two."""
    products, on_bytes, traffic = (
        UNKNOWN if value is None else EngFormatter(unit, places=1)(value)
        for value, unit in (
            (ceiling["float_ops_per_s"], "op/s"),
            (ceiling["int8_ops_per_s"], "op/s"),
            (ceiling["bytes_per_s"], "B/s"),
        )
    )
    return (
        f"Matrix products with this backend and these threads: {products} ({ceiling['dtype']}), "
        f"{on_bytes} (int8); between memory and processor: {traffic} ({ceiling['source']}). "
        "Operations are those that the bundle's manifest states. A point above the slope has its "
        "weights in a cache from call to call."
    )


def _graph_table(graphs: Sequence[Mapping[str, Any]]) -> Table:
    columns = {
        "G op float": ("float_ops", 1e9),
        "G op int8": ("int8_ops", 1e9),
        "weights MiB": ("weight_bytes", _MIB),
        "in and out MiB": ("io_bytes", _MIB),
        "G op/s": ("ops_per_s", 1e9),
        "allowed ms": ("bound_ms", 1),
    }
    shares = {"reached": "fraction_of_bound", "of matrix rate": "fraction_of_matrix_rate"}
    rows = []
    for graph in graphs:
        numbers = [
            UNKNOWN if graph[key] is None else f"{graph[key] / scale:.2f}"
            for key, scale in columns.values()
        ]
        numbers += [UNKNOWN if graph[k] is None else f"{graph[k]:.1%}" for k in shares.values()]
        rows.append((graph["graph"], str(graph["calls"]), f"{graph['time_ms']:.2f}", *numbers))
    return Table(("graph", "calls", "time ms", *columns, *shares), rows)


def _image(figure: Figure, label: str) -> str:
    """A chart as SVG; ``label`` says to those who cannot see it what it is."""
    drawing = io.BytesIO()
    with rc_context({"svg.hashsalt": label}):  # the same measurement gives the same page
        figure.savefig(drawing, format="svg", metadata={"Date": None})
    encoded = base64.b64encode(drawing.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(label)}" src="data:image/svg+xml;base64,{encoded}">'


def _table(table: Table) -> str:
    lines = []
    for kind, cells in (("th", table.header), *(("td", row) for row in table.rows)):
        written = [
            f"<{kind}{' class=left' if index < table.left else ''}>{html.escape(cell)}</{kind}>"
            for index, cell in enumerate(cells)
        ]
        lines.append(_tag("tr", "".join(written)))
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _paragraph(words: str) -> str:
    return f'<p class="soft">{html.escape(words)}</p>'


def _tag(name: str, content: str) -> str:
    """An element; ``content`` is markup already."""
    return f"<{name}>{content}</{name}>"
