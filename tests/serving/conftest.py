"""A real service on a loopback port, with the shipped bundle in a lane that is a process."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="without the service: pip install '.[serve]'")
pytest.importorskip("prometheus_client", reason="without the service: pip install '.[serve]'")
uvicorn = pytest.importorskip("uvicorn", reason="without the service: pip install '.[serve]'")
httpx = pytest.importorskip("httpx", reason="without the client: pip install '.[test]'")

from percoedge import Codec  # noqa: E402
from percoedge.serving.app import create_app  # noqa: E402
from percoedge.serving.server import listening  # noqa: E402
from percoedge.serving.service import Service  # noqa: E402
from percoedge.serving.settings import ServiceSettings  # noqa: E402

PATIENCE_S = 300.0  # nothing here is a measurement; a busy machine may take its time


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when it holds, and fail when it never does."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@dataclass(frozen=True)
class Live:
    """A running service: its state, its address, and a client."""

    service: Service
    port: int
    client: httpx.Client

    @contextmanager
    def stopped_lane(self) -> Iterator[int]:
        """The process of the lane, which does nothing while this lasts: what comes has to wait."""
        pid = self.service.lanes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield pid
        finally:
            if self.service.lanes[0].pid == pid:
                os.kill(pid, signal.SIGCONT)

    def wait_until_idle(self) -> None:
        dispatcher = self.service.dispatcher
        wait_for(lambda: not dispatcher.waiting and not dispatcher.running)


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    settings = ServiceSettings(
        lanes=1,
        threads=1,
        max_batch=8,
        max_body_bytes=100_000,
        max_pixels=300_000,
        body_timeout_s=PATIENCE_S,
        deadline_s=PATIENCE_S,
    )
    app = create_app(settings)
    listener = listening("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    port = listener.getsockname()[1]
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        wait_for(lambda: app.state.service.is_ready or app.state.service.failure is not None)
        yield Live(app.state.service, port, client)
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="session")
def codec() -> Iterator[Codec]:
    with Codec.load("tiny", threads=1) as codec:
        yield codec


def photo(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Pixels with large areas and an edge."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), np.uint8)
    return blocks.repeat(16, 0).repeat(16, 1)[:height, :width]


@pytest.fixture(scope="session")
def streams(codec: Codec) -> list[bytes]:
    """Streams of one size and different photos."""
    return [codec.encode(photo(48, 64, seed)) for seed in range(5)]
