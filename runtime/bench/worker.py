"""A process of its own for every case: ``python -m percoedge.runtime.bench.worker``.

Peak memory is that of one case alone, its threads are started anew, and a case that the system
ends for want of memory takes no other with it. Jobs and results are JSON on stdin and stdout.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import signal
import subprocess
import sys
from typing import Any

from percoedge import errors
from percoedge.errors import EngineError, PercoedgeError
from percoedge.runtime.bench.case import Case, Limits

__all__ = ["encode_in_process", "measure_in_process"]


def encode_in_process(case: Case) -> bytes:
    """``encode_photo`` in another process. Raises what it raises there."""
    return base64.b64decode(_call({"case": dataclasses.asdict(case)})["stream"])


def measure_in_process(case: Case, limits: Limits, stream: bytes) -> dict[str, Any]:
    """``measure`` in another process. Raises what it raises there, or EngineError for its end."""
    return _call(
        {
            "case": dataclasses.asdict(case),
            "limits": dataclasses.asdict(limits),
            "stream": base64.b64encode(stream).decode("ascii"),
        }
    )


def _call(job: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "percoedge.runtime.bench.worker"]
    # It imports what this process would, and nothing that happens to lie in the working directory.
    places = os.pathsep.join(filter(None, sys.path))
    environment = {**os.environ, "PYTHONPATH": places, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, env=environment
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise EngineError(_end_of(done)) from None
    if "error" in answer:
        kind = getattr(errors, answer["kind"], EngineError)
        raise kind(answer["error"])
    return answer


def _end_of(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process gave no answer."""
    if done.returncode == -getattr(signal, "SIGKILL", 9):
        return (
            "expected the measuring process to end by itself, the system killed it: memory ran "
            "short; use smaller sizes or batches, or --low-memory"
        )
    said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return (
        f"expected a result of the measuring process, it ended with code {done.returncode}: "
        f"{said[0]}; decode the same with percoedge decode to see why"
    )


def _answer(job: dict[str, Any]) -> dict[str, Any]:
    from percoedge.runtime.bench.measure import encode_photo, measure

    case = Case(**job["case"])
    if "limits" not in job:
        return {"stream": base64.b64encode(encode_photo(case)).decode("ascii")}
    return measure(case, Limits(**job["limits"]), base64.b64decode(job["stream"]))


def main() -> None:
    """Read one job, do it, write its result."""
    answer: dict[str, Any]
    # Results go where stdout went; what libraries print there must not mix with them.
    results = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        answer = _answer(json.load(sys.stdin))
    except PercoedgeError as error:
        answer = {"kind": type(error).__name__, "error": str(error)}
    except MemoryError:
        answer = {"kind": "EngineError", "error": "expected more memory than there is"}
    with results:
        json.dump(answer, results)


if __name__ == "__main__":
    main()
