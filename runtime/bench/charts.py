"""The plots of the report: stages, latency, throughput, memory, roofline. Each is one drawing.

Colours are classes, which the page defines for light and dark; hovering tells exact numbers.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

from percoedge.runtime.bench.case import Case
from percoedge.runtime.bench.svg import Axis, axes, linear_ticks, log_ticks, plot, short, tag, text
from percoedge.runtime.bench.tables import Outcome, grouped

__all__ = ["bars", "class_of", "histogram", "roofline", "stage_bars", "throughput", "waterfall"]

_CLASSES = {
    "MIM": "c1",
    "range": "c2",
    "flow, between": "c0",
    "flow": "c3",
    "decoder": "c4",
    "write": "c5",
}
_ROW = 26


def class_of(stage: str) -> str:
    """The colour of a stage; what takes next to no time shares one."""
    return next((name for word, name in _CLASSES.items() if stage.startswith(word)), "c0")


def stage_bars(names: Sequence[str], stages: Sequence[Mapping[str, float]]) -> str:
    """One bar for each case, cut into its stages; writing is the pale end of it."""
    left = _margin(names)
    width, height = 860, _ROW * len(names) + 30
    high = linear_ticks(0, max(sum(parts.values()) for parts in stages))
    x = Axis(0, high[-1], left, width - 90)
    parts = _frame(x, high, height - 24)
    for row, (name, times) in enumerate(zip(names, stages, strict=True)):
        y, at = 4 + _ROW * row, 0.0
        parts.append(text(left - 8, y + 15, name, class_="name", text_anchor="end"))
        for stage, time_ms in grouped(times).items():
            title = f"{name}: {stage} {time_ms:.2f} ms"
            parts.append(_bar(x(at), x(at + max(time_ms, 0)), y, class_of(stage), title))
            at += max(time_ms, 0)
        writing = sum(time for stage, time in times.items() if stage.startswith("write"))
        words = f"{at - writing:.0f} + {writing:.0f} ms"
        parts.append(text(x(at) + 6, y + 15, words, class_="value"))
    return plot(width, height, parts, "time of an image by stage, one bar for each case")


def waterfall(stages: Mapping[str, float]) -> str:
    """Stages of one decode one below the other, each from when the last one ended."""
    width, left, row = 560, 150, 19
    height = row * len(stages) + 30
    ticks = linear_ticks(0, sum(max(time, 0) for time in stages.values()))
    x = Axis(0, ticks[-1], left, width - 64)
    parts, at = _frame(x, ticks, height - 24), 0.0
    for index, (stage, time_ms) in enumerate(stages.items()):
        y, ends = 2 + row * index, at + max(time_ms, 0)
        parts.append(text(left - 8, y + 12, stage, class_="name", text_anchor="end"))
        title = f"{stage}: {time_ms:.3f} ms"
        parts.append(_bar(x(at), x(ends), y, class_of(stage), title, row - 5))
        parts.append(text(x(ends) + 5, y + 12, f"{time_ms:.2f}", class_="value"))
        at = ends
    return plot(width, height, parts, "stages of a decode in the order in which they run")


def histogram(result: Mapping[str, Any]) -> str:
    """How often each latency came up, with the percentiles."""
    width, height = 400, 230
    times = [one["latency_ms"] for one in result["times"]]
    low, high = min(times), max(times)
    if high - low < 1e-6 * high:
        low, high = 0.99 * low, 1.01 * high
    ticks = linear_ticks(low, high, 4)
    x = Axis(ticks[0], ticks[-1], 40, width - 16)
    bins = max(5, min(40, round(2 * math.sqrt(len(times)))))
    side = (ticks[-1] - ticks[0]) / bins
    counts = [0] * bins
    for time_ms in times:
        counts[min(bins - 1, int((time_ms - ticks[0]) / side))] += 1
    rows = linear_ticks(0, max(counts), min(4, max(counts)))
    y = Axis(0, rows[-1], height - 42, 56)
    named = [(value, f"{value:g}") for value in ticks]
    parts = axes(x, y, named, [(n, f"{n:g}") for n in rows], "latency, ms", "decodes")
    for index, count in enumerate(counts):
        begins = ticks[0] + index * side
        title = f"{begins:.2f} to {begins + side:.2f} ms: {count}"
        top, bottom = y(count), y(0)
        box = {"x": x(begins) + 0.5, "width": max(x(begins + side) - x(begins) - 1, 0.5)}
        content = tag("title", html.escape(title))
        parts.append(tag("rect", content, **box, y=top, height=bottom - top, class_="c3"))
    for level, name in enumerate(("p99", "p90", "p50")):
        at = x(min(max(result["latency_ms"][name], ticks[0]), ticks[-1]))
        height_of = 38 - 13 * level
        parts.append(tag("line", x1=at, x2=at, y1=height_of - 8, y2=y(0), class_="mark"))
        anchor, shift = ("end", -4) if at > width - 80 else ("start", 4)
        words = f"{name} {result['latency_ms'][name]:.1f}"
        parts.append(text(at + shift, height_of, words, class_="tick", text_anchor=anchor))
    return plot(width, height, parts, "distribution of latencies")


def throughput(outcomes: Sequence[Outcome]) -> str:
    """Images a second against the batch, one line for each way to decode otherwise the same."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for outcome in outcomes:
        if outcome.result is not None:
            point = (outcome.case.batch, outcome.result["images_per_s"])
            lines.setdefault(_without_batch(outcome.case), []).append(point)
    width, height = 940, 300
    batches = sorted({batch for points in lines.values() for batch, _ in points})
    ticks = linear_ticks(0, max(rate for points in lines.values() for _, rate in points))
    edges = (batches[0] / 1.2, batches[-1] * 1.2)
    x, y = Axis(*edges, 50, width - 420, log=True), Axis(0, ticks[-1], height - 42, 26)
    marks = [(batch, str(batch)) for batch in batches]
    parts = axes(x, y, marks, [(t, f"{t:g}") for t in ticks], "images in a batch", "images/s")
    for index, (name, points) in enumerate(sorted(lines.items(), key=lambda line: -line[1][-1][1])):
        colour = f"c{index % 5 + 1}"
        places = [(x(batch), y(rate)) for batch, rate in sorted(points)]
        path = " ".join(f"{a:g},{b:g}" for a, b in places)
        parts.append(tag("polyline", points=path, class_=f"line {colour}"))
        for (a, b), (batch, rate) in zip(places, sorted(points), strict=True):
            title = tag("title", html.escape(f"{name}, batch {batch}: {rate:.2f} images/s"))
            parts.append(tag("circle", title, cx=a, cy=b, r=4, class_=colour))
        at = 40 + 17 * index
        parts.append(tag("circle", cx=width - 402, cy=at - 4, r=4, class_=colour))
        parts.append(text(width - 392, at, name, class_="tick"))
    return plot(width, max(height, 40 + 17 * len(lines)), parts, "throughput against batch")


def bars(names: Sequence[str], values: Sequence[tuple[float, str, str]], unit: str) -> str:
    """One bar for each row: value, colour, and what hovering tells."""
    left = _margin(names)
    width, height = 860, _ROW * len(names) + 30
    ticks = linear_ticks(0, max(value for value, _, _ in values))
    x = Axis(0, ticks[-1], left, width - 60)
    parts = _frame(x, ticks, height - 24)
    for row, (name, (value, colour, title)) in enumerate(zip(names, values, strict=True)):
        y = 4 + _ROW * row
        parts.append(text(left - 8, y + 15, name, class_="name", text_anchor="end"))
        parts.append(_bar(x(0), x(value), y, colour, title))
        parts.append(text(x(value) + 6, y + 15, f"{value:.0f} {unit}", class_="value"))
    return plot(width, height, parts, f"{unit} of each case")


def roofline(result: Mapping[str, Any]) -> str | None:
    """Rate of every graph below what the device reaches; None where that is not known.

    A graph's operations for each byte lie between two ends: every node goes to memory by itself
    (hollow), or weights, inputs and outputs move once and nothing else does (filled).
    """
    ceiling = result["ceiling"]
    peak, traffic = ceiling["float_ops_per_s"], ceiling["bytes_per_s"]
    integer = ceiling["int8_ops_per_s"]
    graphs = [g for g in result["graphs"] if g["ops_per_s"]]
    if peak is None or traffic is None or not graphs:
        return None
    spans = []
    for graph in graphs:
        ops = graph["float_ops"] + graph["int8_ops"]
        least = graph["weight_bytes"] + graph["io_bytes"]
        spans.append((ops / graph["traffic_bytes"], ops / least))
    ridge = peak / traffic
    lowest = min(*(low for low, _ in spans), ridge) / 2
    farthest = max(*(high for _, high in spans), ridge) * 2
    rates = [graph["ops_per_s"] for graph in graphs]
    highest = max(peak, integer or 0)
    width, height = 640, 300
    x = Axis(lowest, farthest, 56, width - 130, log=True)
    y = Axis(min(*rates, peak / 10) / 2, highest * 1.6, height - 42, 26, log=True)
    parts = axes(
        x,
        y,
        _inside(x),
        _inside(y),
        "operations for each byte moved",
        "operations/s",
    )
    foot = max(x.low, y.low / traffic)
    for name, top in ((ceiling["dtype"], peak), ("int8", integer)):
        if top is not None:
            corner = min(max(top / traffic, x.low), x.high)
            line = ((foot, foot * traffic), (corner, top), (x.high, top))
            path = " ".join(f"{x(a):g},{y(b):g}" for a, b in line)
            parts.append(tag("polyline", points=path, class_="roof"))
            words = f"{name} {short(top)}op/s"
            parts.append(text(x.end + 6, y(top) + 4, words, class_="tick"))
    for graph, (low, high) in zip(graphs, spans, strict=True):
        colour = class_of({"entropy": "MIM"}.get(graph["graph"], graph["graph"]))
        at = y(graph["ops_per_s"])
        share = graph["fraction_of_matrix_rate"]
        words = (
            f"{graph['graph']}: {short(graph['ops_per_s'])}op/s, {share:.0%} of the matrix rate, "
            f"{graph['fraction_of_bound']:.0%} of what the ceilings allow"
        )
        title = tag("title", html.escape(words))
        parts.append(tag("line", x1=x(low), x2=x(high), y1=at, y2=at, class_=f"line {colour}"))
        parts.append(tag("circle", title, cx=x(low), cy=at, r=4.5, class_=f"hollow {colour}"))
        parts.append(tag("circle", title, cx=x(high), cy=at, r=5, class_=colour))
        label = f"{graph['graph']} {share:.0%}"
        middle = (x(low) + x(high)) / 2
        under = any(0 < at - y(other["ops_per_s"]) < 14 for other in graphs)  # another's label
        parts.append(
            text(middle, at + (17 if under else -7), label, class_="tick", text_anchor="middle")
        )
    return plot(width, height, parts, "roofline: rate of each graph against its limits")


def _inside(axis: Axis) -> list[tuple[float, str]]:
    """Powers of ten on an axis."""
    ticks = log_ticks(axis.low, axis.high)
    return [(value, short(value)) for value in ticks if axis.low <= value <= axis.high]


def _without_batch(case: Case) -> str:
    return str(dataclasses.replace(case, batch=1)).replace(", batch 1", "")


def _margin(names: Sequence[str]) -> int:
    """Room for the names of rows."""
    return min(480, 24 + round(6.6 * max(map(len, names))))


def _frame(x: Axis, ticks: Sequence[float], bottom: float) -> list[str]:
    """Vertical grid lines with numbers below."""
    marks = []
    for value in ticks:
        at = x(value)
        marks.append(tag("line", x1=at, x2=at, y1=0, y2=bottom, class_="grid"))
        marks.append(text(at, bottom + 16, f"{value:g}", class_="tick", text_anchor="middle"))
    return marks


def _bar(
    begins: float, ends: float, y: float, colour: str, title: str, height: int = _ROW - 7
) -> str:
    content = tag("title", html.escape(title))
    side = max(ends - begins, 0.6)
    return tag("rect", content, x=begins, y=y, width=side, height=height, class_=colour)
