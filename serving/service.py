"""The state of a running service: its settings, bundles, lanes and metrics."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from percoedge.bitstream.container import unpack
from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.engines.bundle import Bundle
from percoedge.engines.processors import usable_processors
from percoedge.errors import BundleMismatchError
from percoedge.runtime.codec import DEFAULT_MAX_PIXELS
from percoedge.serving.dispatcher import Dispatcher
from percoedge.serving.lanes import Lane
from percoedge.serving.metrics import Metrics
from percoedge.serving.problems import Problem
from percoedge.serving.settings import ServiceSettings
from percoedge.serving.work import Outcome, Task

__all__ = ["Service"]

_MAX_CPU_LANES = 4

log = logging.getLogger("percoedge.serving")


class Service:
    """Everything that requests share; ``start`` before the first one, ``stop`` after the last."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.bundles = [Bundle.open(name) for name in settings.bundles]
        self.max_pixels = settings.max_pixels or DEFAULT_MAX_PIXELS
        self.metrics = Metrics()
        processors = usable_processors()
        count = settings.lanes or min(processors, _MAX_CPU_LANES)
        threads = settings.threads or max(1, processors // count)
        self.dispatcher = Dispatcher(
            [Lane(settings, threads) for _ in range(count)],
            max_batch=settings.max_batch,
            batch_window_s=settings.batch_window_ms / 1000,
            max_queue=settings.max_queue,
            observe_batch=self.metrics.batches.observe,
        )
        self.ready = False
        watch = self.metrics.watch
        watch("percoedge_queue", "Requests that wait", lambda: self.dispatcher.waiting)
        watch("percoedge_running", "Requests in lanes", lambda: self.dispatcher.running)
        watch("percoedge_lane_restarts", "Lanes that died", lambda: self.dispatcher.restarts)
        watch("percoedge_ready", "Whether requests are taken", lambda: self.is_ready)

    @property
    def is_ready(self) -> bool:
        """Whether every lane has warmed up and takes tasks."""
        return self.ready and self.dispatcher.healthy

    async def start(self) -> None:
        """Load and warm up. Raises BundleError or BackendError."""
        began = time.monotonic()
        await self.dispatcher.start()
        self.ready = True
        log.info("ready", extra={"seconds": round(time.monotonic() - began, 3)})

    async def stop(self) -> None:
        """Answer what was accepted, within the time for it."""
        self.ready = False
        answered = await self.dispatcher.drain(self.settings.drain_s)
        log.info("stopped", extra={"answered_all": answered})

    async def run(self, operation: str, task: Task) -> Outcome:
        """The outcome of a task, measured. Raises what ``Dispatcher.submit`` does."""
        outcome = await self.dispatcher.submit(task, self.settings.deadline_s)
        for stage, time_ms in outcome.timings_ms.items():
            self.metrics.stages.labels(operation, stage).observe(time_ms / 1000)
        return outcome

    def check_stream(self, data: bytes, cut: bool) -> None:
        """Refuse a stream that no lane could decode. Raises Problem or StreamError."""
        header = unpack(data, cut=cut).header
        if header.width * header.height > self.max_pixels:
            raise Problem(
                413,
                "too-many-pixels",
                f"expected an image of at most {self.max_pixels} pixels, got "
                f"{header.width}x{header.height}",
            )

    def bundle_of(self, data: bytes, cut: bool = False) -> Bundle | None:
        """The bundle that made a stream, None where this service does not have it."""
        fingerprint = unpack(data, cut=cut).fingerprint
        alike = (b for b in self.bundles if fingerprint in (None, b.fingerprint))
        return next(alike, None)

    def passes_of(self, data: bytes, cut: bool = False) -> int:
        """How many passes a stream holds. Raises BundleMismatchError for an unknown bundle."""
        bundle, header = self.bundle_of(data, cut), unpack(data, cut=cut).header
        if bundle is None:
            raise BundleMismatchError(
                f"expected a stream of {', '.join(b.name for b in self.bundles)}, got one of another "
                "bundle; start the service with it"
            )
        return header.passes_sent or pass_count(header.schedule or bundle.codec.schedule)

    def described_bundles(self) -> list[Mapping[str, Any]]:
        """What a client may choose from: bundles, their defaults, schedules with their passes."""
        return [
            {
                "name": bundle.name,
                "fingerprint": bundle.fingerprint.hex(),
                "stride": bundle.codec.stride,
                "codebook_size": bundle.codec.codebook_size,
                "steps": bundle.codec.steps,
                "schedule": bundle.codec.schedule,
                "schedules": {name: pass_count(name) for name in SCHEDULES},
                "captions_condition": bundle.codec.captions_condition,
            }
            for bundle in self.bundles
        ]
