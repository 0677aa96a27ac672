"""What Prometheus reads of a service."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from percoedge import __version__

__all__ = ["Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one service, in a registry of its own; times in seconds, sizes in bytes."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = self._counter(
            "requests_total", "Requests answered, by HTTP status", "operation", "status"
        )
        self.rejected = self._counter(
            "rejected_total", "Requests refused, by kind of problem", "kind"
        )
        self.bytes_in = self._counter(
            "received_bytes_total", "Bytes of bodies received", "operation"
        )
        self.bytes_out = self._counter("sent_bytes_total", "Bytes of bodies sent", "operation")
        self.latency = self._histogram(
            "request_seconds", "From the head of a request to its answer", _SECONDS, "operation"
        )
        self.stages = self._histogram(
            "stage_seconds", "Time of a stage of the codec", _SECONDS, "operation", "stage"
        )
        self.batches = self._histogram("batch_size", "Requests run together", _SIZES)
        self.watch("info", "Version of percoedge", lambda: 1, version=__version__)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(f"percoedge_{name}", help, labels, registry=self._registry)

    def _histogram(
        self, name: str, help: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"percoedge_{name}", help, labels, registry=self._registry, buckets=buckets
        )

    def watch(self, name: str, help: str, value: Callable[[], float], **labels: str) -> None:
        """Add a gauge that is read when the metrics are."""
        gauge = Gauge(f"percoedge_{name}", help, tuple(labels), registry=self._registry)
        (gauge.labels(**labels) if labels else gauge).set_function(value)

    def text(self) -> bytes:
        """The exposition format that Prometheus reads."""
        return generate_latest(self._registry)
