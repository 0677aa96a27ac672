"""The charts of a measurement: stages, throughput, memory, and of each case its roofline.

Every chart is a figure of matplotlib; what becomes of it is up to the caller.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedLocator, MaxNLocator, NullLocator, ScalarFormatter

from benchmarks.report.read import Measurement
from percoedge.runtime.bench.case import Case
from percoedge.runtime.bench.tables import grouped, labels

__all__ = ["case_charts", "case_names", "overall_charts"]

# Okabe and Ito's colours, which people with any colour vision tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_GREY, _PALE = "#8C96A0", "#C9D0D8"
_STAGES = {  # by how their names begin, the longest counts: name in the legend, colour
    "MIM": ("MIM passes", _COLOURS[0]),
    "range coder": ("range coder", _COLOURS[1]),
    "flow": ("flow steps", _COLOURS[2]),
    "decoder": ("decoder", _COLOURS[3]),
    "": ("all else", _GREY),
    "flow, between": ("all else", _GREY),
    "write": ("write png, not in the latency", _PALE),
}
_MARKERS = "osD^vP*"
_MIB = 1 << 20
_MOST_NAME = 48  # characters of a label


def case_names(measurement: Measurement) -> list[str]:
    """A short name for each case that was measured."""
    named = labels([case for _, case, _ in measurement.measured])
    numbers = [number for number, *_ in measurement.measured]
    return [f"case {number}: {name}" for number, name in zip(numbers, named, strict=True)]


def overall_charts(measurement: Measurement) -> dict[str, Figure]:
    """Charts of all cases together, by name; those of what is unknown are left out."""
    names, measured = case_names(measurement), measurement.measured
    charts = {"stages": _stage_bars(names, [_per_image(case, r) for _, case, r in measured])}
    if len({case.batch for _, case, _ in measured}) > 1:
        charts["throughput"] = _throughput(measured)
    for key, title in (
        ("peak_host_bytes", "peak memory of the process, MiB"),
        ("peak_device_bytes", "peak memory of the GPU, all programs, MiB"),
    ):
        known = [(n, r[key] / _MIB) for n, (*_, r) in zip(names, measured, strict=True) if r[key]]
        if known:
            charts[key.removesuffix("_bytes").replace("_", "-")] = _bars(known, title)
    return charts


def case_charts(result: Mapping[str, Any]) -> dict[str, Figure]:
    """Charts of one case, by name; there is no roofline where its ceilings are unknown."""
    charts = {"waterfall": _waterfall(result["stages_ms"]), "latency": _histogram(result)}
    ceiling = result["ceiling"]
    rated = [graph for graph in result["graphs"] if graph["fraction_of_matrix_rate"] is not None]
    if rated and ceiling["float_ops_per_s"] and ceiling["bytes_per_s"]:
        charts["roofline"] = _roofline(rated, ceiling)
    return charts


def _per_image(case: Case, result: Mapping[str, Any]) -> dict[str, float]:
    """Stages of a batch, shared out."""
    return {name: time_ms / case.batch for name, time_ms in result["stages_ms"].items()}


def _stage(name: str) -> tuple[str, str]:
    """A stage's name in the legend, and its colour."""
    return _STAGES[max(filter(name.startswith, _STAGES), key=len)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    return figure, axes


def _rows(names: Sequence[str], unit: str, row: float = 0.36) -> tuple[Figure, Axes]:
    """A chart of horizontal bars, the first name at the top."""
    figure, axes = _figure(10, 0.9 + row * len(names))
    shown = [
        n if len(n) <= _MOST_NAME else f"{n[: _MOST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"
        for n in names
    ]
    axes.set_yticks(range(len(names)), shown)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(unit)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    return figure, axes


def _stage_bars(names: Sequence[str], stages: Sequence[Mapping[str, float]]) -> Figure:
    """One bar for each case, cut into its stages; writing is the pale end of it."""
    figure, axes = _rows(names, "milliseconds for an image")
    drawn: dict[str, Any] = {}
    for row, times in enumerate(stages):
        at = 0.0
        for stage, time_ms in grouped(times).items():
            name, colour = _stage(stage)
            bar = axes.barh(row, max(time_ms, 0), left=at, height=0.7, color=colour)
            drawn.setdefault(name, bar)
            at += max(time_ms, 0)
        writing = sum(time_ms for stage, time_ms in times.items() if stage.startswith("write"))
        words = f"{at - writing:.3g} + {writing:.2g}"
        axes.annotate(words, (at, row), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.margins(x=0.12)
    order = [name for name, _ in dict.fromkeys(_STAGES.values()) if name in drawn]
    figure.legend(
        [drawn[name] for name in order], order, loc="outside upper left", ncols=6, frameon=False
    )
    return figure


def _bars(rows: Sequence[tuple[str, float]], title: str) -> Figure:
    """One bar for each row, with its value."""
    figure, axes = _rows([name for name, _ in rows], title)
    bars = axes.barh(range(len(rows)), [value for _, value in rows], 0.7, color=_COLOURS[0])
    axes.bar_label(bars, fmt="%.0f", padding=5, fontsize=9)
    axes.margins(x=0.1)
    return figure


def _throughput(measured: Sequence[tuple[int, Case, Mapping[str, Any]]]) -> Figure:
    """Images a second against the batch, one line for each way to decode otherwise the same."""
    lines: dict[Case, list[tuple[int, float]]] = {}
    for _, case, result in measured:
        point = (case.batch, result["images_per_s"])
        lines.setdefault(dataclasses.replace(case, batch=1), []).append(point)
    names = labels(list(lines))
    figure, axes = _figure(10, 3.6 + 0.2 * max(0, len(lines) - 8))
    for index, (name, points) in enumerate(zip(names, lines.values(), strict=True)):
        batches, rates = zip(*sorted(points), strict=True)
        colour, marker = _COLOURS[index % len(_COLOURS)], _MARKERS[index % 7]
        axes.plot(batches, rates, label=name, markersize=6, color=colour, marker=marker)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({case.batch for _, case, _ in measured})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(bottom=0)
    axes.set_xlabel("images in a batch")
    axes.set_ylabel("images/s")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _waterfall(stages_ms: Mapping[str, float]) -> Figure:
    """Stages of one decode one below the other, each from when the last one ended."""
    figure, axes = _rows(list(stages_ms), "milliseconds", row=0.25)
    at = 0.0
    for row, (stage, time_ms) in enumerate(stages_ms.items()):
        axes.barh(row, max(time_ms, 0), left=at, height=0.74, color=_stage(stage)[1])
        at += max(time_ms, 0)
        words = f"{time_ms:.2f}"
        axes.annotate(words, (at, row), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.1)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", labelsize=9)
    figure.set_figwidth(6.4)
    return figure


def _histogram(result: Mapping[str, Any]) -> Figure:
    """How often each latency came up, with the percentiles."""
    figure, axes = _figure(4.6, 3.2)
    times = result["latencies_ms"]
    bins = max(5, min(40, round(2 * math.sqrt(len(times)))))
    axes.hist(times, bins, color=_COLOURS[2], edgecolor="white", linewidth=0.6)
    for name, dashes in (("p50", "-"), ("p90", "--"), ("p99", ":")):
        value = result["latency_ms"][name]
        axes.axvline(
            value, color="black", linestyle=dashes, linewidth=1.2, label=f"{name} {value:.4g}"
        )
    axes.set_xlabel("latency, milliseconds")
    axes.set_ylabel("decodes")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    return figure


def _roofline(graphs: Sequence[Mapping[str, Any]], ceiling: Mapping[str, Any]) -> Figure:
    """Rate of every graph below what the device reaches at its operations for each byte.

    Bytes are those of weights, inputs and outputs, moved once: no backend does with fewer.
    """
    traffic = ceiling["bytes_per_s"]
    tops = {ceiling["dtype"]: ceiling["float_ops_per_s"], "int8": ceiling["int8_ops_per_s"]}
    roofs = {name: top for name, top in tops.items() if top is not None}
    points = [
        (
            (graph["float_ops"] + graph["int8_ops"]) / (graph["weight_bytes"] + graph["io_bytes"]),
            graph["ops_per_s"],
        )
        for graph in graphs
    ]
    ridges = [top / traffic for top in roofs.values()]
    left = min(*(x for x, _ in points), *ridges, math.inf) / 3
    right = max(*(x for x, _ in points), *ridges, 0) * 3
    figure, axes = _figure(8, 3.9)
    for (name, top), dashes in zip(roofs.items(), ("-", "--"), strict=False):
        ridge = top / traffic
        label = f"{name} products, {EngFormatter('op/s', places=1)(top)}"
        axes.plot(
            [left, ridge, right], [left * traffic, top, top], dashes, color=_GREY, label=label
        )
    for graph, point, marker in zip(graphs, points, _MARKERS, strict=False):
        kind = "MIM" if graph["graph"] == "entropy" else graph["graph"]
        label = (
            f"{graph['graph']}: {EngFormatter('op/s', places=1)(graph['ops_per_s'])}, "
            f"{graph['fraction_of_matrix_rate']:.0%} of the matrix rate"
        )
        colour = _stage(kind)[1]
        axes.plot(*point, marker, color=colour, markersize=9, markeredgecolor="white", label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(left, right)
    axes.set_xlabel("operations for each byte of weights, inputs and outputs")
    axes.set_ylabel("operations a second")
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    return figure
