"""Two nodes on this machine, one of which dies; and the service on Ray Serve, whose lane does."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray.serve", reason="without fleets: pip install '.[fleet]'")
pytest.importorskip("ray.data", reason="without fleets: pip install '.[fleet]'")

from percoedge import Codec

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COUNT = 120

# In processes of their own: Ray is one a process, and these clusters end badly on purpose.
NODES = """
import contextlib, io, json, sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from percoedge.runtime.cli.main import main

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
second = cluster.add_node(num_cpus=1)
cluster.wait_for_nodes()

def job(out):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command = ["fleet", "decode", "in", "--out", out, "--steps", "1", "--batch", "4", "--json"]
        code = main([*command, "--workers", "2", "--address", cluster.address, "-q"])
    (line,) = (line for line in said.getvalue().splitlines() if line.startswith("{"))
    return code, json.loads(line)

whole = job("whole")

def kill():
    while len(list(Path("torn").rglob("*.png"))) < 10:
        time.sleep(0.05)
    cluster.remove_node(second, allow_graceful=False)

killer = threading.Thread(target=kill)
killer.start()
torn = job("torn")
killer.join()
print("result", json.dumps([whole, torn]))
cluster.shutdown()
"""

SERVICE = """
import json, os, signal, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import httpx, ray
from ray import serve
from percoedge.serving.fleet import app

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
serve.run(app({"threads": "1"}), name="percoedge")
client = httpx.Client(base_url=f"http://127.0.0.1:{sys.argv[1]}", timeout=300)
data = open("in/0.pco", "rb").read()
kind = {"Content-Type": "image/x-percoedge"}
ready = client.get("/health/ready").status_code
first = client.post("/v1/decode", content=data, headers=kind)
bad = client.post("/v1/decode", content=data[:-2], headers=kind)

def command(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has just ended
        return b""

def parent(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]

spawned = [p for p in os.listdir("/proc") if p.isdigit() and b"spawn_main" in command(p)]
(lane,) = (int(pid) for pid in spawned if b"ServeReplica" in command(parent(pid)))
os.kill(lane, signal.SIGSTOP)  # so that it dies at a request
with ThreadPoolExecutor(1) as pool:
    reply = pool.submit(client.post, "/v1/decode", content=data, headers=kind)
    while "percoedge_running 1.0" not in client.get("/metrics").text:
        pass
    os.kill(lane, signal.SIGKILL)
    again = reply.result()
print("result", json.dumps([
    ready, first.status_code, first.content.hex(), bad.status_code, again.content == first.content
]))
serve.shutdown()
ray.shutdown()
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    random = np.random.default_rng(4)
    with Codec.load("tiny") as codec:
        for number in range(COUNT):
            pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
            (folder / f"{number}.pco").write_bytes(codec.encode(pixels))
    return folder


def run(code: str, folder: Path, *arguments: str) -> list[object]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "src"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ADDRESS": "",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, _ = process.communicate(timeout=550)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, out
    (line,) = (line for line in out.splitlines() if line.startswith("result "))
    value: list[object] = json.loads(line.removeprefix("result "))
    return value


def test_two_nodes_give_what_one_does_and_one_may_die(source: Path, tmp_path: Path) -> None:
    (code, whole), (torn_code, torn) = run(NODES, tmp_path)  # type: ignore[misc]
    assert (code, whole["done"], len(whole["nodes"])) == (0, COUNT, 2)
    assert (torn_code, torn["done"], torn["bad"]) == (0, COUNT, 0)
    images = [
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.png")}
        for name in ("whole", "torn")
    ]
    assert len(images[0]) == COUNT
    assert images[0] == images[1]


def test_the_service_answers_on_ray_serve(source: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ready, status, content, refused, done_again = run(SERVICE, tmp_path, port)
    assert (ready, status, refused, done_again) == (200, 200, 422, True)
    with Codec.load("tiny", threads=1) as codec:
        expected = codec.decode(source / "0.pco")
    with Image.open(BytesIO(bytes.fromhex(str(content)))) as image:
        assert image.convert("RGB") == expected
