"""What Prometheus reads of a service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from percoedge import __version__

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)


class Metrics:
    """Counters of one service, in a registry of its own; times in seconds, sizes in bytes."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        shared = {"registry": self._registry}
        self.requests = Counter(
            "percoedge_requests_total", "Requests answered", ["operation", "status"], **shared
        )
        self.rejected = Counter(
            "percoedge_rejected_total", "Requests refused, by kind of problem", ["kind"], **shared
        )
        self.latency = Histogram(
            "percoedge_request_seconds",
            "From the head of a request to its answer",
            ["operation"],
            buckets=_SECONDS,
            **shared,
        )
        self.stages = Histogram(
            "percoedge_stage_seconds",
            "Time of a stage of the codec",
            ["operation", "stage"],
            buckets=_SECONDS,
            **shared,
        )
        self.batches = Histogram(
            "percoedge_batch_size", "Requests run together", buckets=(1, 2, 4, 8, 16, 32), **shared
        )
        self.bytes_in = Counter(
            "percoedge_received_bytes_total", "Bytes of bodies received", ["operation"], **shared
        )
        self.bytes_out = Counter(
            "percoedge_sent_bytes_total", "Bytes of bodies sent", ["operation"], **shared
        )
        Gauge("percoedge_info", "Version of percoedge", ["version"], **shared).labels(
            __version__
        ).set(1)

    def watch(self, name: str, help: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when the metrics are."""
        Gauge(name, help, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """The exposition format that Prometheus reads."""
        return generate_latest(self._registry)
