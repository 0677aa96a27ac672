"""A server as a process, clients that ask it over loopback, and what they saw."""

from __future__ import annotations

import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "STREAM",
    "Answers",
    "Client",
    "Server",
    "closed",
    "in_threads",
    "opened",
    "percentile",
    "serving",
]

STREAM = "image/x-percoedge"
_TIMEOUT_S = 60


@dataclass
class Server:
    """A running ``percoedge serve``."""

    process: subprocess.Popen[str]
    port: int

    def resident_mib(self) -> float:
        """Of the process and its lanes."""
        pages = 0
        for pid in (self.process.pid, *self._children(self.process.pid)):
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20

    def _children(self, pid: int) -> list[int]:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def serving(lanes: int, threads: int, queue: int = 64) -> Iterator[Server]:
    """A server on a free port of loopback, warm, which ends with the ``with``."""
    command = [sys.executable, "-m", "percoedge", "serve", "--port", "0"]
    options = {"lanes": lanes, "threads": threads, "max-queue": queue, "deadline-s": _TIMEOUT_S}
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        port = 0
        for line in process.stderr:
            entry = json.loads(line)
            if entry["message"] == "listening":
                port = int(entry["url"].rpartition(":")[2])
            if entry["message"] == "ready":
                break
        else:
            raise SystemExit("percoedge serve did not start")
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


class Client:
    """One connection, kept."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)

    def post(self, path: str, body: bytes, kind: str = STREAM) -> int:
        """The status of an answer that was read to its end."""
        self._connection.request("POST", path, body, {"Content-Type": kind})
        response = self._connection.getresponse()
        response.read()
        return response.status

    def close(self) -> None:
        self._connection.close()


@dataclass
class Answers:
    """Seconds of answers by status; ``wall_s`` of all."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    wall_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, seconds: float) -> None:
        with self.lock:
            self.seconds.setdefault(status, []).append(seconds)

    def described(self) -> dict[str, Any]:
        good = self.seconds.get(200, [])
        return {
            "answers": {str(status): len(values) for status, values in self.seconds.items()},
            "per_s": round(len(good) / self.wall_s, 3),
            **{f"p{q}_ms": round(percentile(good, q) * 1000, 1) for q in (50, 95, 99)},
            "max_ms": round(max(good) * 1000, 1),
        }


def percentile(values: Sequence[float], share: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]


def closed(server: Server, streams: Sequence[bytes], clients: int, count: int) -> Answers:
    """``clients`` that each ask again as soon as they are answered, ``count`` requests in all."""
    answers = Answers()
    left = iter(range(count))

    def work() -> None:
        client = Client(server.port)
        while (number := next(left, None)) is not None:
            began = time.perf_counter()
            status = client.post("/v1/decode", streams[number % len(streams)])
            answers.add(status, time.perf_counter() - began)
        client.close()

    began = time.perf_counter()
    in_threads([work] * clients)
    answers.wall_s = time.perf_counter() - began
    return answers


def opened(server: Server, streams: Sequence[bytes], per_s: float, count: int) -> Answers:
    """Requests that come at random, so many a second, whether or not others are answered."""
    answers = Answers()
    chance = random.Random(0)
    due = time.perf_counter()
    began = due
    threads = []
    for number in range(count):
        due += chance.expovariate(per_s)

        def work(due: float = due, number: int = number) -> None:
            client = Client(server.port)
            status = client.post("/v1/decode", streams[number % len(streams)])
            answers.add(status, time.perf_counter() - due)
            client.close()

        time.sleep(max(0.0, due - time.perf_counter()))
        threads.append(threading.Thread(target=work))
        threads[-1].start()
    for thread in threads:
        thread.join()
    answers.wall_s = time.perf_counter() - began
    return answers


def in_threads(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
