"""Times of several functions, taken in turns, and what is told of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each function, taking turns, after one warm-up round."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if index:
                times[name].append((time.perf_counter() - began) * 1000)
    return times


def summary(times: list[float]) -> dict[str, float]:
    """Median and quartile spread in milliseconds."""
    quarters = statistics.quantiles(times, n=4)
    return {"median_ms": round(quarters[1], 2), "iqr_ms": round(quarters[2] - quarters[0], 2)}
