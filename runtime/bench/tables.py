"""Results as tables of words, and as CSV.

What a machine or a bundle does not tell is written as "unknown", never as 0.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from percoedge.runtime.bench.case import Case

__all__ = [
    "ALONE",
    "DEVICE_TIMES",
    "LAYERS",
    "Outcome",
    "Table",
    "UNKNOWN",
    "alone_table",
    "csv_text",
    "device_table",
    "grouped",
    "labels",
    "layer_table",
    "stage_table",
    "summary_table",
]

UNKNOWN = "unknown"
DEVICE_TIMES = (
    "Milliseconds on the GPU, between events of further decodes; enqueue: of the host, meanwhile"
)
ALONE = "Milliseconds of each graph by itself, on the feeds of its last call; runs/s: in a row"
LAYERS = "Layers that take most of a graph, in milliseconds"
_SHOWN_LAYERS = 8
_MIB = 1 << 20
_GROUPS = {"MIM pass": "MIM passes", "flow step": "flow steps", "flow, queueing": "flow, queueing"}


@dataclass(frozen=True)
class Outcome:
    """A case with what ``measure`` gave, or with why it gave nothing."""

    case: Case
    result: dict[str, Any] | None = None
    error: str = ""


@dataclass(frozen=True)
class Table:
    """Cells are written out; the first ``left`` columns are words, the others numbers."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    left: int = 1

    @property
    def lines(self) -> list[tuple[str, ...]]:
        """The header, then the rows."""
        return [self.header, *self.rows]


def labels(cases: Sequence[Case]) -> list[str]:
    """A short name of each case: what differs between them, or all of it where nothing does."""
    parts = [_words(case) for case in cases]
    differs = [len(set(column)) > 1 for column in zip(*parts, strict=True)]
    chosen = differs if any(differs) else [True] * len(differs)
    return [
        ", ".join(word for word, take in zip(part, chosen, strict=True) if take) for part in parts
    ]


def _words(case: Case) -> tuple[str, ...]:
    return (
        case.bundle,
        case.backend,
        f"{case.width}x{case.height}",
        f"batch {case.batch}",
        f"{case.steps} step{'' if case.steps == 1 else 's'}",
        f"threads {case.threads or 'auto'}",
        f"{case.streams} stream{'' if case.streams == 1 else 's'}",
    )


def grouped(stages_ms: Mapping[str, float]) -> dict[str, float]:
    """Stages with all passes added up, and all steps."""
    groups: dict[str, float] = {}
    for name, time_ms in stages_ms.items():
        group = next((long for short, long in _GROUPS.items() if name.startswith(short)), name)
        groups[group] = groups.get(group, 0.0) + time_ms
    return groups


def summary_table(outcomes: Sequence[Outcome]) -> Table:
    """One row for each case that was measured: latency, throughput, memory, energy."""
    header = (
        *("case", "bundle", "backend", "size", "streams", "batch", "steps", "threads"),
        *("p50 ms", "p90", "p95", "p99", "mean", "sd", "images/s", "encode ms", "outside engines"),
        *("host MiB", "device MiB", "J/image", "flow of matrix rate"),
    )
    rows = []
    for number, outcome in enumerate(outcomes, 1):
        case, result = outcome.case, outcome.result
        if result is None:
            continue
        latency = result["latency_ms"]
        graphs: dict[str, Any] = {graph["graph"]: graph for graph in result["graphs"]}
        flow = graphs.get("flow_guided") or graphs.get("flow") or {}
        rows.append(
            (
                *(str(number), case.bundle, f"{result['backend']}:{result['variant']}"),
                f"{case.width}x{case.height}",
                *map(str, (case.streams, case.batch, case.steps, case.threads or "auto")),
                *(f"{latency[name]:.1f}" for name in ("p50", "p90", "p95", "p99", "mean", "sd")),
                f"{result['images_per_s']:.2f}",
                UNKNOWN if result["encode_ms"] is None else f"{result['encode_ms']['p50']:.1f}",
                _share(result["outside_engines"]),
                _mebibytes(result["peak_host_bytes"]),
                _mebibytes(result["peak_device_bytes"]),
                _number(result["joules_per_image"]),
                _share(flow.get("fraction_of_matrix_rate")),
            )
        )
    return Table(header, rows, left=4)


def stage_table(outcomes: Sequence[Outcome]) -> Table:
    """Median milliseconds by stage, one row for each case; passes and steps added up."""
    return _by_case(
        {
            str(number): grouped(outcome.result["stages_ms"])
            for number, outcome in enumerate(outcomes, 1)
            if outcome.result is not None
        }
    )


def device_table(outcomes: Sequence[Outcome]) -> Table | None:
    """Median milliseconds on the GPU, one row for each case that tells; None if none does."""
    rows = {
        str(number): outcome.result["device_ms"]
        for number, outcome in enumerate(outcomes, 1)
        if outcome.result is not None and outcome.result["device_ms"] is not None
    }
    return _by_case(rows) if rows else None


def alone_table(outcomes: Sequence[Outcome]) -> Table | None:
    """One row for each graph that was measured by itself; None if none was."""
    parts = ("compute_ms", "enqueue_ms", "host_to_device_ms", "device_to_host_ms")
    rows = [
        (
            *(number, graph["graph"], " ".join(f"{s}={n}" for s, n in graph["sizes"].items())),
            f"{graph['runs_per_s']:.1f}",
            *(f"{graph['latency_ms'][name]:.3f}" for name in ("p50", "p99")),
            *(
                UNKNOWN if graph[part] is None else f"{graph[part][name]:.3f}"
                for part in parts
                for name in (("p50", "p99") if part == "compute_ms" else ("p50",))
            ),
        )
        for number, graph in _alone(outcomes)
    ]
    header = ("case", "graph", "sizes", "runs/s", "latency p50", "p99", "compute p50", "p99")
    return Table((*header, "enqueue", "to device", "to host"), rows, left=3) if rows else None


def layer_table(outcomes: Sequence[Outcome]) -> Table | None:
    """The layers of each graph that take most, with their share of all; None if none are known."""
    rows: list[tuple[str, ...]] = []
    for number, graph in _alone(outcomes):
        layers = graph["layers"] or {}
        total = sum(layers.values()) or 1.0
        for name, time_ms in sorted(layers.items(), key=lambda item: -item[1])[:_SHOWN_LAYERS]:
            rows.append((number, graph["graph"], name, f"{time_ms:.4f}", f"{time_ms / total:.1%}"))
    return Table(("case", "graph", "layer", "ms", "share"), rows, left=3) if rows else None


def _alone(outcomes: Sequence[Outcome]) -> list[tuple[str, Mapping[str, Any]]]:
    """Number of the case and record of each graph that was measured by itself."""
    return [
        (str(number), graph)
        for number, outcome in enumerate(outcomes, 1)
        if outcome.result is not None
        for graph in outcome.result["alone"] or ()
    ]


def _by_case(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Milliseconds by name, one row for each case."""
    names = tuple(dict.fromkeys(name for times in rows.values() for name in times))
    cells = [
        (number, *(f"{times[name]:.2f}" if name in times else "" for name in names))
        for number, times in rows.items()
    ]
    return Table(("case", *names), cells)


def csv_text(outcomes: Sequence[Outcome], machine: Mapping[str, Any]) -> str:
    """One row for each case, failed ones too, with every figure and what it was measured on."""
    rows = []
    for outcome in outcomes:
        case, result = outcome.case, outcome.result or {}
        row: dict[str, Any] = {field.name: getattr(case, field.name) for field in fields(case)}
        row["threads"] = case.threads or "auto"
        row["error"] = outcome.error
        for name, value in result.items():
            if isinstance(value, dict):
                row |= {f"{name}: {part}": number for part, number in value.items()}
            elif name == "graphs":
                for graph in value:
                    kind = graph["graph"]
                    row |= {f"{kind}: {part}": n for part, n in graph.items() if part != "graph"}
            elif not isinstance(value, list):
                row[name] = value
        row |= {n: value for n, value in machine.items() if n not in ("gpu", "versions")}
        gpu = machine["gpu"] or {"name": None}  # "gpu: ..." is its state during the decodes
        row |= {f"gpu of the machine: {part}": value for part, value in gpu.items()}
        row |= {f"version of {name}": text for name, text in machine["versions"].items()}
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({n: UNKNOWN if v is None else v for n, v in row.items()} for row in rows)
    return text.getvalue()


def _share(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def _mebibytes(size_bytes: int | None) -> str:
    return UNKNOWN if size_bytes is None else f"{size_bytes / _MIB:.0f}"


def _number(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.3g}"
