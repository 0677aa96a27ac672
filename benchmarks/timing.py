"""Times of things that take turns, so that whatever else the machine does hits all of them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["ProcessCost", "interleaved", "process_cost", "race", "summary", "times_as_fast"]

Function = Callable[[], object]


@dataclass(frozen=True)
class ProcessCost:
    """What a process took: wall and processor time in seconds, and its peak memory."""

    wall_s: float
    processor_s: float
    peak_mib: float


# A process counts the memory of the one that started it as its own peak, so a small one starts it.
_STARTER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.perf_counter() - began
with open(sys.argv[1], "w") as file:
    json.dump([status, wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024], file)
"""


def process_cost(command: Sequence[str]) -> ProcessCost:
    """Run a command to its end; raises SystemExit when it fails."""
    with tempfile.NamedTemporaryFile() as file:
        starter = [sys.executable, "-S", "-E", "-c", _STARTER, file.name]
        subprocess.run([*starter, *command], check=True)
        status, *cost = json.load(file)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return ProcessCost(*cost)


def interleaved(functions: Mapping[str, Function], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each function, taking turns, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if index:
                times[name].append((time.perf_counter() - began) * 1000)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    """Median and quartile spread in milliseconds, of two times at least."""
    quarters = statistics.quantiles(times, n=4)
    return {"median_ms": round(quarters[1], 2), "iqr_ms": round(quarters[2] - quarters[0], 2)}


def times_as_fast(
    times: Mapping[str, Sequence[float]], rivals: Iterable[str]
) -> dict[str, dict[str, dict[str, float]]]:
    """How many times as fast as each rival everything else is, round by round, with quartiles."""
    rivals = [name for name in rivals if name in times]
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name in times.keys() - set(rivals):
        for rival in rivals:
            rounds = [a / b for a, b in zip(times[rival], times[name], strict=True)]
            low, median, high = statistics.quantiles(rounds, n=4)
            spread = {"median": median, "quartile_1": low, "quartile_3": high}
            values = {key: round(value, 2) for key, value in spread.items()}
            table.setdefault(name, {})[f"over_{rival}"] = values
    return dict(sorted(table.items()))


def race(
    functions: Mapping[str, Function], rounds: int, rivals: Iterable[str]
) -> dict[str, dict[str, object]]:
    """First call of each (it loads or compiles), times of the others, and ratios to ``rivals``."""
    first = {}
    for name, function in functions.items():
        began = time.perf_counter()
        function()
        first[name] = round((time.perf_counter() - began) * 1000, 1)
    times = interleaved(functions, rounds)
    return {
        "first_ms": dict(first),
        "times": {name: summary(values) for name, values in times.items()},
        "times_as_fast": dict(times_as_fast(times, rivals)),
    }
