"""The state of a running service: its settings, bundles, lanes and metrics."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from percoedge.bitstream.container import Stream, unpack
from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.engines.bundle import Bundle
from percoedge.engines.processors import shared_threads, usable_processors
from percoedge.engines.selection import runs_on_gpu, select
from percoedge.errors import BundleMismatchError, PercoedgeError
from percoedge.runtime.codec import DEFAULT_MAX_PIXELS
from percoedge.serving.dispatcher import Dispatcher
from percoedge.serving.lanes import Lane, SharedWorker
from percoedge.serving.metrics import Metrics
from percoedge.serving.problems import Problem
from percoedge.serving.settings import ServiceSettings
from percoedge.serving.work import Outcome, Task

__all__ = ["Service"]

_MAX_LANES = 4
_GPU_LANES = 2  # one prepares while the other one's kernels run

log = logging.getLogger("percoedge.serving")


class Service:
    """Everything that requests share; ``start`` before the first one, ``stop`` after the last.

    settings: those given, with the lanes that were picked. failure: what stopped ``start``, for
    whoever runs the service to report. Raises BundleError when a bundle cannot be opened, and
    BackendError when no backend works here.
    """

    def __init__(self, settings: ServiceSettings) -> None:
        self.bundles = [Bundle.open(name) for name in settings.bundles]
        self.max_pixels = settings.max_pixels or DEFAULT_MAX_PIXELS
        self.metrics = Metrics()
        self.failure: PercoedgeError | None = None
        processors = usable_processors()
        on_gpu = settings.in_process is not False and _on_gpu(settings.backend, self.bundles)
        in_process = on_gpu if settings.in_process is None else settings.in_process
        count = settings.lanes or (_GPU_LANES if on_gpu else min(processors, _MAX_LANES))
        self.settings = replace(settings, lanes=count, in_process=in_process)
        share = shared_threads(count) if in_process else max(1, processors // count)
        shared = SharedWorker() if in_process else None
        threads = settings.threads or share
        self.lanes = [Lane(self.settings, threads, shared) for _ in range(count)]
        self.dispatcher = Dispatcher(
            self.lanes,
            max_batch=settings.max_batch,
            batch_window_s=settings.batch_window_ms / 1000,
            max_queue=settings.max_queue,
            observe_batch=self.metrics.batches.observe,
        )
        self.reading = 0  # requests whose bodies are on their way
        watch = self.metrics.watch
        watch("queue", "Requests that wait", lambda: self.dispatcher.waiting)
        watch("running", "Requests in lanes", lambda: self.dispatcher.running)
        watch("lane_restarts", "Lanes that died", lambda: self.dispatcher.restarts)
        watch("ready", "Whether requests are taken", lambda: self.is_ready)

    @property
    def is_ready(self) -> bool:
        """Whether every lane has warmed up and takes tasks."""
        return self.dispatcher.healthy

    async def start(self) -> None:
        """Load and warm up; a BundleError or BackendError becomes ``failure``."""
        began = time.monotonic()
        try:
            await self.dispatcher.start()
        except PercoedgeError as error:
            self.failure = error
            self.kill()
        else:
            log.info("ready", extra={"seconds": round(time.monotonic() - began, 3)})

    async def stop(self) -> None:
        """Answer what was accepted, within the time for it; a second call waits for the first."""
        first = not self.dispatcher.draining
        answered = await self.dispatcher.drain(self.settings.drain_s)
        if first:
            log.info("stopped", extra={"answered_all": answered})

    def kill(self) -> None:
        """End the processes of all lanes at once."""
        for lane in self.lanes:
            lane.kill()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the queue while a body is read. Raises QueueFull or Draining."""
        self.dispatcher.check_room(self.reading)
        self.reading += 1
        try:
            yield
        finally:
            self.reading -= 1

    async def run(self, operation: str, task: Task) -> Outcome:
        """The outcome of a task, measured. Raises what ``Dispatcher.submit`` does."""
        outcome = await self.dispatcher.submit(task, self.settings.deadline_s)
        for stage, time_ms in outcome.timings_ms.items():
            self.metrics.stages.labels(operation, stage).observe(time_ms / 1000)
        return outcome

    def opened(self, data: bytes, cut: bool) -> Stream:
        """Take apart a stream, which a lane could decode. Raises Problem or StreamError."""
        stream = unpack(data, cut=cut)
        header = stream.header
        if header.width * header.height > self.max_pixels:
            raise Problem(
                413,
                "too-many-pixels",
                f"expected an image of at most {self.max_pixels} pixels, got "
                f"{header.width}x{header.height}; start the service with more --max-pixels if you "
                "trust its clients",
            )
        if self.bundle_of(stream) is None:
            known = ", ".join(f"{b.name} ({b.fingerprint.hex()})" for b in self.bundles)
            found = stream.fingerprint.hex() if stream.fingerprint else "none"
            raise BundleMismatchError(
                f"expected a stream of one of the bundles {known}, got one of {found}; start the "
                "service with that bundle"
            )
        return stream

    def bundle_of(self, stream: Stream) -> Bundle | None:
        """The bundle that made a stream, None where this service does not have it."""
        alike = (b for b in self.bundles if stream.fingerprint in (None, b.fingerprint))
        return next(alike, None)

    def passes_of(self, stream: Stream) -> int:
        """How many passes a stream holds, as its header says."""
        bundle, header = self.bundle_of(stream), stream.header
        assert bundle is not None, "an opened stream has a bundle"
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


def _on_gpu(backend: str, bundles: Sequence[Bundle]) -> bool:
    """Whether any bundle runs on a GPU: what "auto" takes is a matter of its engine files."""
    names = [select(backend, bundle=b).name if backend == "auto" else backend for b in bundles]
    return any(map(runs_on_gpu, names))
