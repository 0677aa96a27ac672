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
        **{f"{n} closed": results["closed"][f"{n} clients"] for n in (1, 8, 64)},
        "0.8 open": results["open_0.8"],
        "2.0 open": results["open_2.0"],
    }
    for place, key in enumerate(("p50_ms", "p99_ms")):
        positions = [number + 0.35 * (place - 0.5) for number in range(len(loads))]
        values = [load[key] for load in loads.values()]
        left.bar(positions, values, width=0.35, label=key.replace("_ms", ""))
    left.set_xticks(range(len(loads)), list(loads))
    left.set(yscale="log", ylabel="ms", title="Time of an answer, 512x512")
    left.legend()
    requests, memory = zip(*results["soak"]["resident_mib"], strict=True)
    right.plot(requests, memory)
    right.set(ylim=(0, 1.3 * max(memory)), xlabel="requests", ylabel="MiB")
    right.set_title("Memory of server and lanes")
    figure.savefig(path, dpi=110)
