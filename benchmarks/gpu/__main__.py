"""Everything worth knowing of percoedge on an NVIDIA GPU, in one archive.

    python -m benchmarks.gpu --all --out DIR [--commit SHA] [--seconds 3600]
    python -m benchmarks.gpu PART ... --out DIR

Each part runs in a process of its own with a limit in seconds, so that one that crashes or hangs
takes no other with it. DIR gets one JSON file and one log for each part, and DIR.tar.gz holds them
all; it is written anew after every part. A part that lacks something says "skipped: needs ...".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.worker import PARTS

_ROOT = Path(__file__).parent.parent.parent
_LIMITS_S = {
    **{"device": 60, "cuda": 90, "rtx": 300, "build": 900, "onnxruntime": 240, "torch": 560},
    **{"entropy": 180, "tests": 600, "throughput": 420},
}
_LEFT_OUT = "plans"  # engine files: large, and of this machine


def run_part(name: str, out: Path, bundle: str, commit: str | None, limit_s: float) -> str:
    """Run a part to its end or its limit; returns the status that its JSON file then holds."""
    command = [sys.executable, "-m", "benchmarks.gpu.worker", name, "--out", str(out)]
    command += ["--bundle", bundle, "--limit", str(limit_s)]
    command += ["--commit", commit] if commit else []
    places = os.pathsep.join([str(_ROOT), str(_ROOT / "src"), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONUNBUFFERED": "1"}
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    with (out / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=_ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit_s)
            ended = f"failed: ended with code {code}"
        except subprocess.TimeoutExpired:
            ended = f"failed: was not done within {limit_s:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # it, or what it left running
            process.wait()
    document: dict[str, Any] = {"part": name, "status": "running", "results": {}}
    with contextlib.suppress(OSError, ValueError):
        document = json.loads(path.read_text())
    if document["status"] == "running":
        said = (out / f"{name}.log").read_text(errors="replace").strip().splitlines()
        document["status"] = ": ".join([ended, *said[-1:]])
        document["seconds"] = round(time.perf_counter() - began, 1)
        path.write_text(json.dumps(document, indent=2) + "\n")
    return str(document["status"])


def pack(out: Path) -> Path:
    """All results as one archive beside their folder."""
    archive = out.with_name(out.name + ".tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(out.iterdir()):
            if path.name != _LEFT_OUT:
                tar.add(path, f"{out.name}/{path.name}")
    return archive


def main(arguments: list[str] | None = None) -> int:
    """Command line of the benchmark; exits with 1 when a part failed, or none was done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--all", action="store_true", help="all parts")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--commit", help="what is measured, where git does not tell")
    parser.add_argument("--limit", type=float, help="seconds of each part at most")
    parser.add_argument("--seconds", type=float, default=3600, help="of all parts together")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown or not (args.parts or args.all):
        parser.error(f"expected parts of {', '.join(PARTS)}, or --all; got {unknown or 'none'}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    ends = time.perf_counter() + args.seconds
    statuses = []
    for name in PARTS if args.all else args.parts:
        left_s = ends - time.perf_counter()
        limit_s = min(args.limit or _LIMITS_S[name], left_s)
        began = time.perf_counter()
        if left_s > 5:
            status = run_part(name, out, args.bundle, args.commit, limit_s)
        else:
            status = "skipped: needs more time than --seconds leaves"
        statuses.append(status.partition(":")[0])
        print(f"{name:12} {time.perf_counter() - began:6.1f} s  {status}", flush=True)
        archive = pack(out)
    counts = (f"{statuses.count(how)} {how}" for how in ("done", "failed", "skipped"))
    print(f"{', '.join(counts)} of {len(statuses)} parts; all results: {archive}")
    if "done" not in statuses:
        print("nothing was measured: see above what is missing")
    return int("failed" in statuses or "done" not in statuses)


if __name__ == "__main__":
    sys.exit(main())
