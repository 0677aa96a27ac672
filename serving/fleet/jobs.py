"""Jobs of ``percoedge fleet``: every file of a folder through the codecs of a cluster.

Ray Data spreads batches of names over processes that hold a codec each, does again what a process
or machine that died was at, and streams the results back; files go from their store to the process
and back, past Ray. A job that was stopped, however, is run again and goes on where it was.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.data

from percoedge import errors
from percoedge.engines.processors import usable_processors
from percoedge.errors import EngineError, InputError, PercoedgeError, UsageError
from percoedge.runtime.cli.folder.record import RECORD_NAME, entry_from_line
from percoedge.runtime.cli.folder.work import REPORT_NAME
from percoedge.runtime.cli.outputs import named_outputs
from percoedge.serving.fleet.places import Place
from percoedge.serving.fleet.workers import RECORD_FOLDER, Job, Tries, Worker

__all__ = ["Fleet", "Report", "cluster", "run_job"]

_MAX_BATCH = 16  # files that are lost, and done again, when a process dies
_BATCHES_EACH = 16  # at least, for every process: so that all end at about the same time
_MAX_RECORD_BYTES = 1 << 32
_OBJECT_STORE_BYTES = 256 << 20  # of names: no image goes through it


@dataclass(frozen=True)
class Fleet:
    """How a cluster is used. workers: processes, None for as many as it has room for.

    threads: processors of each. gpus: of each, a share of one allowed, None for one where there are
    any. batch: files at a time, None for a few.
    """

    workers: int | None = None
    threads: int = 1
    gpus: float | None = None
    batch: int | None = None

    def settled(self, files: int) -> Fleet:
        """With a number for every None. Raises UsageError where the cluster has no room at all."""
        if self.gpus is not None and not 0 <= self.gpus < math.inf:
            raise UsageError(f"expected GPUs of a worker to be 0 or more, got {self.gpus}")
        room = ray.cluster_resources()
        gpus = self.gpus
        if gpus is None:
            gpus = 1.0 if room.get("GPU", 0) >= 1 else 0.0
        places = room.get("CPU", 0) // self.threads
        if gpus:
            places = min(places, room.get("GPU", 0) // gpus)
        if self.workers is None and places < 1:
            raise UsageError(
                f"expected a cluster with {self.threads} processors and {gpus:g} GPUs for a "
                f"worker, got {room.get('CPU', 0):g} and {room.get('GPU', 0):g} in all; ask for "
                "less with --threads and --gpus"
            )
        workers = self.workers or int(places)
        batch = self.batch or min(_MAX_BATCH, math.ceil(files / (workers * _BATCHES_EACH)))
        return Fleet(min(workers, math.ceil(files / batch)), self.threads, gpus, batch)


@dataclass
class Report:
    """What came of a job: files by state, bytes, seconds, and outputs by node and by GPU."""

    done: int = 0
    kept: int = 0
    bad: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: float = 0.0
    workers: int = 0
    nodes: Counter[str] = field(default_factory=Counter)
    gpus: Counter[str] = field(default_factory=Counter)


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Ray, for as long as the ``with`` lasts: a cluster's by its address, else one started here.

    Raises EngineError where it cannot be reached.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    address = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": address}
    if not address:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # this machine's own business
        options = {
            "address": "local",
            "num_cpus": usable_processors(),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE_BYTES,
        }
    # Ray says on stdout which processes it starts again; its logs in /tmp/ray have that too.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
        except Exception as error:  # ConnectionError, RuntimeError, ValueError, and Exception too
            where = f"to be at {address}" if address else "to start here"
            raise EngineError(
                f"expected a Ray cluster {where}, got none ({error}); see 'ray status', or try "
                "again on a machine with less to do"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def run_job(
    job: Job, suffixes: tuple[str, ...], suffix: str, fleet: Fleet, show: Callable[[int, int], None]
) -> Report:
    """Run a job on the cluster: files of ``suffixes`` to outputs of ``suffix``.

    ``show`` is called with the number of files that are done and of all. Bad files are in
    ``percoedge-bad.jsonl`` of the target. Raises InputError when there is no file, OutputError or
    EngineError for what concerns all of them.
    """
    began = time.perf_counter()
    outputs, clashes = named_outputs(job.source.shown, job.source.names(), suffixes, suffix)
    total = len(outputs) + len(clashes)
    job.target.remove(REPORT_NAME)
    report = Report()
    bad: dict[str, tuple[str, str]] = {
        name: (type(error).__name__, str(error)) for name, error in clashes.items()
    }
    try:
        if outputs:
            _run(job, outputs, fleet, report, bad, lambda n: show(n, total))
    finally:
        report.bad = len(bad)
        if bad:
            job.target.write(REPORT_NAME, b"".join(_lines_of(job, bad)))
    report.seconds = time.perf_counter() - began
    return report


def _run(
    job: Job,
    outputs: Mapping[str, str],
    fleet: Fleet,
    report: Report,
    bad: dict[str, tuple[str, str]],
    show: Callable[[int], None],
) -> None:
    fleet = fleet.settled(len(outputs))
    assert fleet.workers is not None and fleet.batch is not None
    report.workers = fleet.workers
    known = _recorded(job.target, set(outputs.values()))
    rows = [
        {"name": name, "output": output, "known": json.dumps(known.get(output, {}))}
        for name, output in outputs.items()
    ]
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Tries).remote()
    results = ray.data.from_items(
        rows, override_num_blocks=math.ceil(len(rows) / fleet.batch)
    ).map_batches(
        Worker,
        fn_constructor_args=[job, tries],
        batch_size=fleet.batch,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=fleet.workers),
        num_cpus=fleet.threads,
        num_gpus=fleet.gpus,
    )
    for number, row in enumerate(results.iter_rows()):
        show(number)
        _count(row, report, bad)


def _count(row: Mapping[str, Any], report: Report, bad: dict[str, tuple[str, str]]) -> None:
    if row["state"] == "fatal":
        kind: type[PercoedgeError] = getattr(errors, row["error"], EngineError)
        raise kind(row["message"])
    if row["state"] == "bad":
        bad[row["name"]] = (row["error"], row["message"])
        return
    report.bytes_in += row["bytes_in"]
    report.bytes_out += row["bytes_out"]
    if row["state"] == "kept":
        report.kept += 1
        return
    report.done += 1
    report.nodes[row["node"]] += 1
    for gpu in row["gpus"]:
        report.gpus[f"{row['node']}:{gpu}"] += 1


def _recorded(target: Place, outputs: set[str]) -> dict[str, dict[str, str]]:
    """Of every output: hashes of what was written here at its name, and of its sources."""
    known: dict[str, dict[str, str]] = {}
    parts = [name for name in target.names(RECORD_FOLDER) if name.endswith(".jsonl")]
    for part in [RECORD_NAME, *parts]:  # the first is that of percoedge decode and encode
        try:
            lines = target.read(part, _MAX_RECORD_BYTES).splitlines()
        except InputError:
            continue
        for line in lines:
            entry = entry_from_line(line)
            if entry and entry[0] in outputs:
                known.setdefault(entry[0], {})[entry[1]] = entry[2]
    return known


def _lines_of(job: Job, bad: Mapping[str, tuple[str, str]]) -> Iterator[bytes]:
    for name, (error, message) in bad.items():
        file = f"{job.source.shown.rstrip('/')}/{name}"
        yield json.dumps({"file": file, "error": error, "message": message}).encode() + b"\n"
