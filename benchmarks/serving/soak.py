"""Many mixed requests, and what memory they leave behind."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

from benchmarks.serving.images import photos
from benchmarks.serving.load import STREAM, Client, Server, in_threads
from percoedge import Codec
from percoedge.runtime.images import image_bytes

__all__ = ["soak"]


def soak(server: Server, count: int, limit_s: float) -> dict[str, Any]:
    """Mixed requests of 4 clients; whatever is not answered as expected has failed."""
    with Codec.load("tiny", threads=1) as codec:
        streams = [codec.encode(photo) for size in (64, 128, 256) for photo in photos(size)[:3]]
    image = image_bytes(photos(128)[0], "PNG")
    kinds: list[tuple[str, str, int]] = [
        *[("/v1/decode", STREAM, 200)] * 6,
        ("/v1/decode?format=webp&steps=1", STREAM, 200),
        ("/v1/encode", "image/png", 200),
        ("/v1/info", STREAM, 200),
        ("/v1/decode", "", 422),
    ]
    left, chance, end = iter(range(count)), random.Random(0), time.monotonic() + limit_s
    plan = [(chance.choice(kinds), chance.choice(streams)) for _ in range(count)]
    failed: Counter[str] = Counter()
    memory: list[tuple[int, float]] = []
    lock = threading.Lock()

    def work() -> None:
        client = Client(server.port)
        while (number := next(left, None)) is not None and time.monotonic() < end:
            (path, kind, expected), data = plan[number]
            body = image if kind == "image/png" else data if kind else data[:-4]
            status = client.post(path, body, kind or STREAM)
            with lock:
                if status != expected:
                    failed[f"{path} {status}"] += 1
                if number % 100 == 99:
                    memory.append((number + 1, round(server.resident_mib(), 1)))
        client.close()

    began = time.perf_counter()
    in_threads([work] * 4)
    seconds = time.perf_counter() - began
    memory.sort()
    settled = [mib for number, mib in memory if number >= min(1000, count // 2)]
    return {
        "requests": memory[-1][0],
        "failed": dict(failed),
        "seconds": round(seconds, 1),
        "resident_mib": memory,
        "growth_percent": round(100 * (settled[-1] / settled[0] - 1), 2),
    }
