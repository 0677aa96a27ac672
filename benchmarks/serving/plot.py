"""The plot of docs/serving.md."""

from __future__ import annotations

from typing import Any

__all__ = ["plot"]


def plot(results: dict[str, Any], path: str) -> None:
    """Latency and throughput by load, and memory over the soak."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    loads = {
        "1\nclient": results["closed"]["1 clients"],
        "8\nclients": results["closed"]["8 clients"],
        "64\nclients": results["closed"]["64 clients"],
        "0.8 of\ncapacity": results["open_0.8"],
        "twice\ncapacity": results["open_2.0"],
    }
    for key, mark in (("p50_ms", "o"), ("p99_ms", "^")):
        values = [load[key] for load in loads.values()]
        left.plot(list(loads), values, mark, label=key.removesuffix("_ms"))
    left.set(yscale="log", ylim=(100, None), ylabel="ms", title="Time of an answer, 512x512")
    left.grid(axis="y", which="both", alpha=0.3)
    left.legend()
    requests, memory = zip(*results["soak"]["resident_mib"], strict=True)
    right.plot(requests, memory)
    right.set(ylim=(0, 1.3 * max(memory)), xlabel="requests", ylabel="MiB")
    right.set_title("Memory of server and lanes")
    figure.savefig(path, dpi=110)
