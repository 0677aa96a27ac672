"""The service over loopback, against the codec in this process and ``decode FOLDER``, in turns.

    python -m benchmarks.serving [--rounds 5] [--soak 10000] [--save NAME] [--plot FILE]

A quarter of an hour on 2 cores that do nothing else. In this order, on images of 512x512 and with a
server of its own for each:

- division: closed loops with one lane of all threads, and with one thread a lane;
- one client: a request, and in turn with it ``Codec.decode`` and writing the PNG in this process,
  with as many threads as a lane has;
- closed loops of 1, 8 and 64 clients, and in turn with them ``percoedge decode FOLDER``;
- open loop at 0.8 of the capacity that 8 clients found, and at twice the capacity with one place a
  lane in the queue; the times count from when a request was due;
- soak: mixed small requests, with the memory of the server and its lanes;
- fleet, where Ray is installed: ``percoedge fleet decode`` in turns with ``decode`` of the folder.

The clients share the processors with the server.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import report
from benchmarks.serving.images import photos
from benchmarks.serving.load import Answers, Client, Server, closed, opened, percentile, serving
from benchmarks.serving.plot import plot
from benchmarks.serving.soak import soak
from benchmarks.timing import summary
from percoedge import Codec
from percoedge.engines.processors import usable_processors
from percoedge.runtime.images import image_bytes


def folder_per_s(streams: Sequence[bytes], count: int, *command: str) -> float:
    """Images a second of ``percoedge decode FOLDER``, as it says itself; graphs are loaded too.

    ``command``: another one that decodes folders.
    """
    with tempfile.TemporaryDirectory() as place:
        source = Path(place, "in")
        source.mkdir()
        for number in range(count):
            (source / f"{number:04}.pco").write_bytes(streams[number % len(streams)])
        words = [*(command or ("decode",)), str(source), "--out", str(Path(place, "out"))]
        done = subprocess.run(
            [sys.executable, "-m", "percoedge", *words, "--json", "-q"],
            check=True,
            capture_output=True,
        )
    return float(json.loads(done.stdout)["images_per_s"])


def division(streams: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """One lane of all threads beside one thread a lane, for 1 and for 8 clients, in turns."""
    processors = usable_processors()
    results: dict[str, dict[str, list[float]]] = {}
    with serving(1, processors) as one, serving(processors, 1) as many:
        named = {f"1 lane x {processors}": one, f"{processors} lanes x 1": many}
        for number in range(rounds + 1):
            for clients, count in ((1, 8), (8, 24)):
                for name, server in named.items():
                    answers = closed(server, streams, clients, count)
                    if number:
                        values = results.setdefault(name, {})
                        values.setdefault(f"p50_ms_at_{clients}", []).append(
                            answers.described()["p50_ms"]
                        )
                        values.setdefault(f"per_s_at_{clients}", []).append(
                            answers.described()["per_s"]
                        )
    return {
        name: {key: round(statistics.median(each), 2) for key, each in values.items()}
        for name, values in results.items()
    }


def one_client(
    server: Server, streams: Sequence[bytes], threads: int, count: int
) -> dict[str, Any]:
    """A request in turn with the same work in this process."""
    over_http, here = [], []
    client = Client(server.port)
    with Codec.load("tiny", threads=threads) as codec:
        for number in range(count + 4):
            data = streams[number % len(streams)]
            began = time.perf_counter()
            image_bytes(codec.decode(data), "PNG")
            between = time.perf_counter()
            assert client.post("/v1/decode", data) == 200
            ended = time.perf_counter()
            if number >= 4:
                here.append((between - began) * 1000)
                over_http.append((ended - between) * 1000)
    client.close()
    more = [b - a for a, b in zip(here, over_http, strict=True)]
    return {
        "threads": threads,
        "in_process": summary(here),
        "http": summary(over_http),
        "more_ms": round(statistics.median(more), 2),
        "allowed_ms": round(5 + 0.05 * statistics.median(here), 2),
    }


def loops(server: Server, streams: Sequence[bytes], rounds: int) -> dict[str, Any]:
    """Closed loops in turn with the folder; medians of rounds."""
    found: dict[int, list[Answers]] = {1: [], 8: [], 64: []}
    folder = []
    for _ in range(rounds):
        for clients, count in ((1, 16), (8, 48), (64, 128)):
            found[clients].append(closed(server, streams, clients, count))
        folder.append(folder_per_s(streams, 48))
    result: dict[str, Any] = {}
    for clients, rows in found.items():
        described = [row.described() for row in rows]
        statuses = sum((Counter(row["answers"]) for row in described), Counter())
        result[f"{clients} clients"] = {
            "answers": dict(statuses),
            **{
                key: round(statistics.median(row[key] for row in described), 2)
                for key in ("per_s", "p50_ms", "p95_ms", "p99_ms", "max_ms")
            },
        }
    ratios = [a.described()["per_s"] / b for a, b in zip(found[8], folder, strict=True)]
    result["folder_per_s"] = round(statistics.median(folder), 3)
    result["8_clients_over_folder"] = round(statistics.median(ratios), 3)
    return result


def fleet(streams: Sequence[bytes], count: int) -> dict[str, Any]:
    """Ray Data on this machine in turns with threads; processes and graphs are loaded in both."""
    rows = [
        (folder_per_s(streams, count), folder_per_s(streams, count, "fleet", "decode"))
        for _ in range(2)
    ]
    return {
        "files": count,
        "folder_per_s": [row[0] for row in rows],
        "fleet_per_s": [row[1] for row in rows],
        "fleet_over_folder": round(statistics.median(b / a for a, b in rows), 3),
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--soak", type=int, default=10_000, help="requests")
    parser.add_argument("--limit-s", type=float, default=900, help="of the soak (default: 900)")
    parser.add_argument("--lanes", type=int, help="default: one a processor")
    parser.add_argument("--fleet", type=int, default=400, help="files of a fleet (default: 400)")
    parser.add_argument("--parts", default="division,load,soak,fleet", help="default: all of these")
    parser.add_argument("--save", help="also write results/NAME.json")
    parser.add_argument("--plot", help="also write a plot")
    args = parser.parse_args()
    parts = args.parts.split(",")
    processors = usable_processors()
    lanes = args.lanes or processors
    threads = max(1, processors // lanes)
    with Codec.load("tiny") as codec:
        streams = [codec.encode(photo) for photo in photos(512)]
    results: dict[str, Any] = {"size": 512, "rounds": args.rounds, "lanes": lanes}
    results |= {"threads": threads, "load_average_1_min": {"start": os.getloadavg()[0]}}

    def add(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        results["load_average_1_min"][name] = round(os.getloadavg()[0], 2)

    if "division" in parts:
        add("division", division(streams, args.rounds))
    if "load" in parts:
        with serving(lanes, threads) as server:
            add("one_client", one_client(server, streams, threads, 8 * args.rounds))
            add("closed", loops(server, streams, args.rounds))
            capacity = results["closed"]["8 clients"]["per_s"]
            answers = opened(server, streams, 0.8 * capacity, 40 * args.rounds)
            add("open_0.8", answers.described())
        with serving(lanes, threads, lanes) as server:
            closed(server, streams, 2, 8)
            answers = opened(server, streams, 2 * capacity, 60 * args.rounds)
            refused = answers.seconds.get(503, [0.0])
            short = {
                "max_queue": lanes,
                "refused_p99_ms": round(percentile(refused, 99) * 1000, 1),
                "refused_max_ms": round(max(refused) * 1000, 1),
            }
            add("open_2.0", {**short, **answers.described()})
    if "soak" in parts:
        with serving(lanes, threads) as server:
            add("soak", soak(server, args.soak, args.limit_s))
    if "fleet" in parts and importlib.util.find_spec("ray"):
        add("fleet", fleet(streams, args.fleet))
    report(
        args.save or "serving",
        results,
        save=args.save is not None,
        packages=("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "ray"),
    )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
