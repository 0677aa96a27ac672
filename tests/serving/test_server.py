"""``percoedge serve`` as a process: its log, its signals, its exit codes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.serving.conftest import PATIENCE_S, httpx, listening, wait_for

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
COMMAND = [sys.executable, "-m", "percoedge", "serve"]
OPTIONS = ["--port", "0", "--lanes", "1", "--threads", "1", "--deadline-s", str(PATIENCE_S)]

linux = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's /proc")


class Process:
    """A server that logs to a pipe; ready when it is made."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [*COMMAND, *OPTIONS], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
        )
        self.url = self.until("listening")["url"]
        self.until("ready")

    def until(self, message: str) -> dict[str, Any]:
        """Read the log up to a message, which is always JSON."""
        assert self._process.stderr is not None
        for line in self._process.stderr:
            record: dict[str, Any] = json.loads(line)
            if record["message"] == message:
                return record
        raise AssertionError(f"expected the message {message!r}, got the end of the log")

    def lane(self) -> int:
        """The process that holds the codec, by its command line."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        (lane,) = (
            int(child)
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        )
        return lane

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


@pytest.fixture
def server() -> Iterator[Process]:
    process = Process()
    yield process
    process.end()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@linux
@pytest.mark.slow
def test_sigterm_answers_what_was_accepted_and_exits_with_0(
    server: Process, streams: list[bytes]
) -> None:
    def decode(data: bytes) -> httpx.Response:
        headers = {"Content-Type": "image/x-percoedge"}
        url = f"{server.url}/v1/decode"
        return httpx.post(url, content=data, headers=headers, timeout=PATIENCE_S)

    lane = server.lane()
    os.kill(lane, signal.SIGSTOP)
    with ThreadPoolExecutor(3) as pool:
        replies = [pool.submit(decode, data) for data in streams[:3]]
        wait_for(lambda: "percoedge_queue 2.0" in httpx.get(f"{server.url}/metrics").text)
        server.signal(signal.SIGTERM)
        os.kill(lane, signal.SIGCONT)
        assert [reply.result().status_code for reply in replies] == [200] * 3
    assert server.until("stopped")["answered_all"] is True
    assert server.wait() == 0
    wait_for(lambda: not is_alive(lane))


@linux
@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(server: Process, streams: list[bytes]) -> None:
    lane = server.lane()
    os.kill(lane, signal.SIGSTOP)
    head = (
        "POST /v1/decode HTTP/1.1\r\nHost: x\r\nContent-Type: image/x-percoedge\r\n"
        f"Content-Length: {len(streams[0])}\r\n\r\n"
    )
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as client:
        client.sendall(head.encode() + streams[0])
        wait_for(lambda: "percoedge_running 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.signal(signal.SIGTERM)
        wait_for(lambda: not accepts(port))  # the first one has arrived
        server.signal(signal.SIGTERM)
        assert server.wait() == 130
    wait_for(lambda: not is_alive(lane))


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@linux
@pytest.mark.slow
def test_lanes_end_with_a_service_that_is_killed(server: Process) -> None:
    lane = server.lane()
    server.signal(signal.SIGKILL)
    server.wait()
    wait_for(lambda: not is_alive(lane))


def refused(*arguments: str, code: str | None = None) -> tuple[int, str]:
    command = [*COMMAND, *arguments] if code is None else [sys.executable, "-c", code]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    return result.returncode, result.stderr.splitlines()[-1]


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused("--port", port)
    assert code == 2
    assert port in line and "--port" in line


def test_answers_leave_without_waiting_for_the_client_to_acknowledge() -> None:
    with listening("127.0.0.1", 0) as listener:
        with socket.create_connection(listener.getsockname()):
            connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_backend_that_does_not_work_ends_it_with_one_line() -> None:
    code, line = refused("--port", "0", "--backend", "nothing")
    assert code in (2, 4)
    assert line.startswith("percoedge: error: ") and "nothing" in line


def test_a_missing_extra_is_named() -> None:
    code, line = refused(
        code="import sys; sys.modules['uvicorn'] = None; "
        "from percoedge.runtime.cli.main import main; sys.exit(main(['serve']))"
    )
    assert code == 4
    assert "pip install 'percoedge[serve]'" in line
