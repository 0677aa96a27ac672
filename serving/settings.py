"""What a service is started with, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from percoedge.engines.processors import expect_workers
from percoedge.errors import UsageError

__all__ = ["ServiceSettings"]


@dataclass(frozen=True)
class ServiceSettings:
    """Limits and choices of one service.

    bundles: shipped names, directories or .zip files; the first one encodes unless a request names
        another. A stream is decoded by the bundle that made it.
    backend: as ``Codec.load`` takes it. threads: CPU threads of each lane; None shares the
        processors among the lanes.
    lanes: tasks that run at once; None picks two where they are threads on a GPU, else one per
        processor up to 4.
    in_process: whether lanes are threads of this process and share their engines, whose weights a
        GPU's memory then holds once; else each is a process of its own, so that a crash is one
        task's and not the service's. None picks threads on a GPU and processes on a CPU.
    max_batch: requests of one grid and the same settings that are decoded together; None takes as
        many as the engines do, which is 1 on a CPU.
    batch_window_ms: how long a lane waits for more of them once it has one.
    max_queue: accepted requests that wait at most; more are answered 503.
    max_body_bytes: of an image to encode; streams have their own, smaller limit.
    max_pixels: of an image in either direction; None is the codec's own limit.
    body_timeout_s: for a request's body to arrive. deadline_s: from acceptance to answer.
    drain_s: for accepted requests after SIGTERM.
    token: bearer token that /v1 requires, None for none. cors_origins: origins that browsers may
        call from.
    Raises UsageError for a value outside its range.
    """

    bundles: tuple[str, ...] = ("tiny",)
    backend: str = "auto"
    threads: int | None = None
    lanes: int | None = None
    in_process: bool | None = None
    max_batch: int | None = None
    batch_window_ms: float = 2.0
    max_queue: int = 64
    max_body_bytes: int = 64 << 20
    max_pixels: int | None = None
    body_timeout_s: float = 10.0
    deadline_s: float = 30.0
    drain_s: float = 20.0
    token: str | None = field(default=None, repr=False)
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.bundles:
            raise UsageError("expected at least one bundle, got none; name one, such as 'tiny'")
        for name, low in (
            ("max_queue", 1),
            ("max_body_bytes", 1),
            ("batch_window_ms", 0),
            ("drain_s", 0),
        ):
            if not low <= getattr(self, name) < math.inf:
                raise UsageError(f"expected {name} to be at least {low}, got {getattr(self, name)}")
        for name in ("body_timeout_s", "deadline_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"expected {name} to be above 0, got {getattr(self, name)}")
        for name in ("lanes", "threads"):
            if getattr(self, name) is not None:
                expect_workers(name, getattr(self, name))
        for name in ("max_batch", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"expected {name} to be at least 1, got {value}")
        if self.token is not None and not self.token.strip():
            raise UsageError("expected a bearer token, got an empty one; leave it out for none")
