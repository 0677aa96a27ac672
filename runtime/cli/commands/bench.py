"""The command ``percoedge bench``: measures every case of a matrix."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from percoedge.engines.tensorrt.device import Captures
from percoedge.errors import EngineError, PercoedgeError, UsageError
from percoedge.runtime.bench.case import Case, Limits, cases_from_options
from percoedge.runtime.bench.machine import describe
from percoedge.runtime.bench.tables import (
    ALONE,
    DEVICE_TIMES,
    LAYERS,
    UNKNOWN,
    Outcome,
    Table,
    alone_table,
    csv_text,
    device_table,
    layer_table,
    stage_table,
    summary_table,
)
from percoedge.runtime.bench.worker import encode_in_process, measure_in_process
from percoedge.runtime.cli.console import Console, ProgressLine
from percoedge.runtime.cli.outputs import check_output
from percoedge.runtime.cli.tables import column_lines, markdown_lines
from percoedge.runtime.files import atomic_write

__all__ = ["bench"]


def bench(options: Namespace, console: Console) -> int:
    """Measure; a case that fails is reported and passed over, and the exit code is then 4."""
    if options.report is not None:
        raise UsageError(
            f"expected no --report: charts are drawn where matplotlib is; run percoedge bench "
            f"--json > bench.json, then python -m benchmarks.report bench.json -o {options.report}"
        )
    if options.layers and options.format == "csv" and not options.json:
        raise UsageError(
            "expected --format table or markdown, or --json, with --layers; got csv, which has one "
            "row for each case and no place for layers"
        )
    cases = cases_from_options(options)
    limits = _limits(options)
    if options.export_times is not None:
        check_output(options.export_times)
    machine = describe()
    with console.progress() as line:
        outcomes = _measure_all(cases, limits, line)
    if all(outcome.result is None for outcome in outcomes):
        raise EngineError(outcomes[0].error)
    if options.export_times is not None:
        atomic_write(options.export_times, _times(outcomes).encode())
    record = {
        "command": "bench",
        "machine": machine,
        "limits": dataclasses.asdict(limits),
        "cases": [_record(outcome) for outcome in outcomes],
    }
    console.report(_json_of(record), _lines(options.format, outcomes, machine))
    return EngineError.exit_code if any(outcome.error for outcome in outcomes) else 0


def _limits(options: Namespace) -> Limits:
    for name in ("warmup", "seconds"):
        value = getattr(options, name)
        if not 0 <= value <= 86400:
            raise UsageError(f"expected --{name} of 0 to 86400 seconds, got {value}")
    return Limits(options.warmup, options.seconds, options.iterations, options.layers)


def _measure_all(cases: Sequence[Case], limits: Limits, line: ProgressLine) -> list[Outcome]:
    """Every case in a process of its own; a stream is encoded once for each bundle and size."""
    outcomes = []
    streams: dict[tuple[str, int, int], bytes] = {}
    for number, case in enumerate(cases):
        line.show(f"measuring {case}", number / len(cases), f"({number + 1} of {len(cases)})")
        key = (case.bundle, case.width, case.height)
        try:
            if key not in streams:
                streams[key] = encode_in_process(case)
            outcomes.append(Outcome(case, measure_in_process(case, limits, streams[key])))
        except PercoedgeError as error:
            outcomes.append(Outcome(case, error=f"{case}: {error}"))
    return outcomes


def _lines(form: str, outcomes: Sequence[Outcome], machine: dict[str, Any]) -> list[str]:
    if form == "csv":
        return csv_text(outcomes, machine).splitlines()

    def write(table: Table) -> list[str]:
        return (markdown_lines if form == "markdown" else column_lines)(table.lines, table.left)

    gap = [""]
    lines = [*_described(machine), *gap, *write(summary_table(outcomes)), *gap]
    lines += ["Milliseconds by stage; latency is all of them but write png:", *gap]
    lines += write(stage_table(outcomes))
    if (on_gpu := device_table(outcomes)) is not None:
        lines += [*gap, f"{DEVICE_TIMES}:", *gap, *write(on_gpu)]
    if (alone := alone_table(outcomes)) is not None:
        lines += [*gap, f"{ALONE}:", *gap, *write(alone)]
    if (layers := layer_table(outcomes)) is not None:
        lines += [*gap, f"{LAYERS}:", *gap, *write(layers)]
    for number, outcome in enumerate(outcomes, 1):
        if outcome.result is not None and outcome.result["cuda_graphs"] is not None:
            captures = Captures(**outcome.result["cuda_graphs"])
            lines += [*gap, f"case {number}, CUDA graphs: {captures}"]
    for number, outcome in enumerate(outcomes, 1):
        if outcome.error:
            lines += [*gap, f"case {number} failed: {outcome.error}"]
    return lines


def _described(machine: dict[str, Any]) -> list[str]:
    """The machine in three sentences."""
    gpu = machine["gpu"] or {}
    versions = {"percoedge": machine["percoedge"], **machine["versions"]}
    device = [machine["board"], machine["processor"], f"{machine['cores_usable']} cores usable"]
    if gpu:
        device.append(f"{gpu['name']}, driver {gpu['driver']}")
    clocks = [
        f"CPU {machine['cpu_mhz'] or UNKNOWN} MHz",
        f"governor {machine['cpu_governor'] or UNKNOWN}",
        f"power mode {machine['power_mode'] or UNKNOWN}",
        f"load average {machine['load_average']} before",
    ]
    software = [f"{name} {version}" for name, version in versions.items()]
    software += [f"commit {machine['commit'] or UNKNOWN}", machine["date"]]
    return [", ".join(filter(None, words)) for words in (device, clocks, software)]


def _record(outcome: Outcome) -> dict[str, Any]:
    case = _written(outcome.case)
    if outcome.result is None:
        return {"case": case, "error": outcome.error}
    result = {name: value for name, value in outcome.result.items() if name != "times"}
    return {"case": case, **result}


def _written(case: Case) -> dict[str, Any]:
    """A case as every output names it."""
    return {**dataclasses.asdict(case), "threads": case.threads or "auto"}


def _times(outcomes: Sequence[Outcome]) -> str:
    """Every iteration of every case, as JSON."""
    cases = [
        {"case": _written(outcome.case), "times": outcome.result["times"]}
        for outcome in outcomes
        if outcome.result is not None
    ]
    return json.dumps({"cases": cases}) + "\n"


def _json_of(value: Any) -> Any:
    """The same with "unknown" for None."""
    if isinstance(value, dict):
        return {name: _json_of(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_json_of(part) for part in value]
    return UNKNOWN if value is None else value
