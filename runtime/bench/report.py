"""The report as one page of HTML that needs nothing else: no script, no font, no request.

It follows the reader's choice of light or dark.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from percoedge.runtime.bench import charts
from percoedge.runtime.bench.case import Limits
from percoedge.runtime.bench.svg import short, tag
from percoedge.runtime.bench.tables import (
    DEVICE_TIMES,
    MISSING,
    Outcome,
    Table,
    device_table,
    labels,
    summary_table,
)

__all__ = ["html_report"]

_MIB = 1 << 20
_LEGEND = {
    "MIM passes": "c1",
    "range coder": "c2",
    "flow steps": "c3",
    "decoder": "c4",
    "write png, not in the latency": "c5",
    "all else": "c0",
}

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --card: #f6f7f9; --ink: #1c2127; --soft: #5b6570;
  --rule: #d9dee4; --c0: #9aa4af; --c1: #2f6fbd; --c2: #d1711c; --c3: #23896a; --c4: #8257b8;
  --c5: #c9d0d8; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --card: #1c2127; --ink: #e6e9ed;
  --soft: #9ba6b2; --rule: #353d46; --c0: #77828e; --c1: #6ea8ea; --c2: #eda25a; --c3: #58c09c;
  --c4: #b691e6; --c5: #454f5a; } }
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
.l { text-align: left; }
.facts td { border: 0; padding: 1px 18px 1px 0; text-align: left; white-space: normal; }
.facts td:first-child { color: var(--soft); white-space: nowrap; }
details { background: var(--card); border-radius: 8px; padding: 10px 16px; margin: 10px 0; }
summary { cursor: pointer; font-weight: 600; }
.pair { display: flex; flex-wrap: wrap; gap: 8px 28px; }
.pair > div { flex: 1 1 400px; min-width: 0; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-size: 13px; color: var(--soft); }
.legend svg { width: 11px; height: 11px; margin-right: 6px; display: inline; }
svg { width: 100%; height: auto; display: block; font-size: 12px; }
text { fill: var(--ink); } .tick, .axis { fill: var(--soft); font-size: 11px; }
.value { font-size: 11px; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--rule); stroke-width: 1; } .mark { stroke: var(--ink); stroke-width: 1;
  stroke-dasharray: 3 3; }
.roof { fill: none; stroke: var(--soft); stroke-width: 2; }
.c0 { fill: var(--c0); --c: var(--c0); } .c1 { fill: var(--c1); --c: var(--c1); }
.c2 { fill: var(--c2); --c: var(--c2); } .c3 { fill: var(--c3); --c: var(--c3); }
.c4 { fill: var(--c4); --c: var(--c4); } .c5 { fill: var(--c5); --c: var(--c5); }
.line { fill: none; stroke: var(--c); stroke-width: 2; }
.hollow { fill: var(--card); stroke: var(--c); stroke-width: 2; }
@media print { body { max-width: none; } details { break-inside: avoid; } }
"""


def html_report(outcomes: Sequence[Outcome], machine: Mapping[str, Any], limits: Limits) -> str:
    """The page for outcomes of which at least one holds a result."""
    measured = [outcome for outcome in outcomes if outcome.result is not None]
    numbers = [number for number, outcome in enumerate(outcomes, 1) if outcome.result is not None]
    named = labels([outcome.case for outcome in measured])
    names = [f"case {number}: {name}" for number, name in zip(numbers, named, strict=True)]
    results = [outcome.result or {} for outcome in measured]
    sections = [
        tag("h1", "Decoding, measured"),
        _paragraph(f"percoedge bench, {machine['date']}"),
        _facts(machine),
        tag("h2", "Results"),
        _paragraph(
            f"At least {limits.seconds:g} s and {limits.iterations} decodes of each case after "
            f"{limits.warmup_seconds:g} s of warm-up, each case in a process of its own. Latency "
            "is from bytes in memory to images in memory."
        ),
        _table(summary_table(outcomes)),
        *(_paragraph(f"Failed: {outcome.error}") for outcome in outcomes if outcome.error),
        tag("h2", "Where the time goes: milliseconds for an image"),
        _legend(),
        charts.stage_bars(names, [_per_image(outcome) for outcome in measured]),
    ]
    if (on_gpu := device_table(outcomes)) is not None:
        sections += [tag("h2", "On the GPU"), _paragraph(f"{DEVICE_TIMES}."), _table(on_gpu)]
    if len({outcome.case.batch for outcome in measured}) > 1:
        sections += [tag("h2", "Throughput against batch"), charts.throughput(measured)]
    sections += [tag("h2", "Memory"), *_memory(names, results)]
    sections += [tag("h2", "Case by case")]
    sections += [
        _case(name, result, is_open=index == 0)
        for index, (name, result) in enumerate(zip(names, results, strict=True))
    ]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"{tag('title', 'percoedge bench')}{tag('style', _STYLE)}"
    )
    body = tag("body", "\n".join(sections))
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>{body}</html>\n'


def _per_image(outcome: Outcome) -> dict[str, float]:
    """Stages of a batch, shared out."""
    stages = (outcome.result or {})["stages_ms"]
    return {name: time_ms / outcome.case.batch for name, time_ms in stages.items()}


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
        "percoedge": f"{machine['percoedge']}, commit {machine['commit'] or MISSING}",
    }
    cells = [
        tag("tr", tag("td", name) + tag("td", html.escape(str(value or MISSING))))
        for name, value in rows.items()
        if value or name not in ("board", "GPU")
    ]
    return tag("table", "".join(cells), class_="facts")


def _legend() -> str:
    entries = []
    for name, colour in _LEGEND.items():
        box = tag("svg", tag("rect", width=11, height=11, class_=colour), viewBox="0 0 11 11")
        entries.append(tag("span", box + html.escape(name)))
    return tag("div", "".join(entries), class_="legend")


def _memory(names: Sequence[str], results: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = []
    for key, title, colour in (
        ("peak_host_bytes", "Peak of the process, Python and libraries with it", "c1"),
        ("peak_device_bytes", "Peak of the GPU, of all programs on it", "c4"),
    ):
        told = [(n, r[key]) for n, r in zip(names, results, strict=True) if r[key] is not None]
        if not told:
            parts.append(_paragraph(f"{title}: {MISSING}."))
            continue
        values = [(v / _MIB, colour, f"{n}: {v / _MIB:.1f} MiB") for n, v in told]
        parts += [tag("h3", title), charts.bars([n for n, _ in told], values, "MiB")]
    return parts


def _case(name: str, result: Mapping[str, Any], is_open: bool) -> str:
    """One case: its stages, its latencies, and how far its graphs are from what is possible."""
    latency = result["latency_ms"]
    energy = result["joules_per_image"]
    said = (
        f"{result['iterations']} decodes of {result['stream_bytes']} bytes on {result['backend']} "
        f"({result['variant']}); the first one, with loading, took {result['first_ms']:.0f} ms. "
        f"Mean {latency['mean']:.2f} ms, standard deviation {latency['sd']:.2f} ms. Energy: "
        + (MISSING if energy is None else f"{energy:.3g} J an image ({result['energy_source']})")
        + "."
    )
    left = tag("h3", "Stages, ms") + charts.waterfall(result["stages_ms"])
    right = tag("h3", "Latency") + charts.histogram(result)
    parts = [_paragraph(said), tag("div", tag("div", left) + tag("div", right), class_="pair")]
    parts += [tag("h3", "Roofline"), *_roofline(result)]
    content = tag("summary", html.escape(name)) + "".join(parts)
    return tag("details", content, open="" if is_open else None)


def _roofline(result: Mapping[str, Any]) -> list[str]:
    ceiling = result["ceiling"]
    rates = [
        MISSING if value is None else f"{short(value)}{unit}"
        for value, unit in ((ceiling["float_ops_per_s"], "op/s"), (ceiling["bytes_per_s"], "B/s"))
    ]
    integer = ""
    if ceiling["int8_ops_per_s"] is not None:
        integer = f"; int8 {short(ceiling['int8_ops_per_s'])}op/s"
    said = (
        f"This backend with these threads reaches {rates[0]} in matrix products "
        f"({ceiling['dtype']}{integer}) and {rates[1]} between memory and processor, measured "
        "after the decodes. Filled points: weights, inputs and outputs move once. Hollow: every "
        "node goes to memory by itself. What is fused or cached lies between them."
    )
    drawing = charts.roofline(result)
    table = _table(_graph_table(result["graphs"]))
    if drawing is None:
        return [_paragraph(said), table]
    return [_paragraph(said), drawing, table]


def _graph_table(graphs: Sequence[Mapping[str, Any]]) -> Table:
    header = (
        *("graph", "calls", "time ms", "G op float", "G op int8", "weights MiB"),
        *("in and out MiB", "MiB if no node is fused", "G op/s", "allowed ms", "reached"),
        "of matrix rate",
    )
    rows = []
    for graph in graphs:
        counted = [
            MISSING if graph[key] is None else f"{graph[key] / scale:.2f}"
            for key, scale in (
                ("float_ops", 1e9),
                ("int8_ops", 1e9),
                ("weight_bytes", _MIB),
                ("io_bytes", _MIB),
                ("traffic_bytes", _MIB),
                ("ops_per_s", 1e9),
                ("bound_ms", 1),
            )
        ]
        reached = [
            MISSING if graph[key] is None else f"{graph[key]:.1%}"
            for key in ("fraction_of_bound", "fraction_of_matrix_rate")
        ]
        cells = (graph["graph"], str(graph["calls"]), f"{graph['time_ms']:.2f}")
        rows.append((*cells, *counted, *reached))
    return Table(header, rows)


def _table(table: Table) -> str:
    lines = []
    for kind, cells in (("th", table.header), *(("td", row) for row in table.rows)):
        written = [
            tag(kind, html.escape(cell), class_="l" if index < table.left else None)
            for index, cell in enumerate(cells)
        ]
        lines.append(tag("tr", "".join(written)))
    return tag("div", tag("table", "".join(lines)), class_="wide")


def _paragraph(words: str) -> str:
    return tag("p", html.escape(words), class_="soft")
