"""The commands ``percoedge fleet decode`` and ``fleet encode``: folders of millions, on Ray."""

from __future__ import annotations

import secrets
import time
from argparse import Namespace
from typing import Any

from percoedge.errors import EngineError, InputError
from percoedge.runtime.cli.console import Console

__all__ = ["decode", "encode"]

_EXTRA = {"pyarrow", "ray"}


def decode(options: Namespace, console: Console) -> int:
    """Decode every stream of a folder; the exit code is 3 when any was bad."""
    from percoedge.bitstream.container import DEFAULT_MAX_PIXELS
    from percoedge.engines.bundle import Bundle
    from percoedge.runtime.files import STANDARD_STREAM
    from percoedge.runtime.images import format_of, suffix_of
    from percoedge.runtime.settings import Settings

    kind = format_of(STANDARD_STREAM, options.format)
    choices = {name: getattr(options, name) for name in ("steps", "guidance", "seed")}
    Settings(Bundle.open(options.bundle), **choices)  # a mistake is told before anything starts
    max_pixels = options.max_pixels or DEFAULT_MAX_PIXELS
    how = {"decodes": True, "kind": kind, "max_pixels": max_pixels, "choices": choices}
    return _run(options, console, how, (".pco",), suffix_of(kind))


def encode(options: Namespace, console: Console) -> int:
    """Encode every image of a folder; the exit code is 3 when any was bad."""
    from percoedge.bitstream.container import DEFAULT_MAX_PIXELS
    from percoedge.engines.bundle import Bundle
    from percoedge.runtime.cli.folder.encode import encoding_choices
    from percoedge.runtime.images import READ_SUFFIXES

    choices = encoding_choices(Bundle.open(options.bundle), options)
    max_pixels = options.max_pixels or DEFAULT_MAX_PIXELS
    how = {"decodes": False, "max_pixels": max_pixels, "choices": choices}
    return _run(options, console, how, READ_SUFFIXES, ".pco")


def _run(
    options: Namespace,
    console: Console,
    how: dict[str, Any],
    suffixes: tuple[str, ...],
    suffix: str,
) -> int:
    try:
        from percoedge.runtime.cli.folder.work import REPORT_NAME
        from percoedge.serving.fleet import jobs
        from percoedge.serving.fleet.places import Place
        from percoedge.serving.fleet.workers import Job
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _EXTRA:
            raise
        raise EngineError(
            f"expected the packages of fleets, cannot import {error.name}; install them with: "
            "pip install 'percoedge[fleet]'"
        ) from error
    job = Job(
        source=Place.named(options.input),
        target=Place.named(options.output),
        bundle=options.bundle,
        backend=options.backend,
        threads=options.threads or 1,
        low_memory=options.low_memory,
        run=f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}",
        force=options.force,
        **how,
    )
    fleet = jobs.Fleet(options.workers, job.threads, options.gpus, options.batch)
    with console.progress() as line:
        line.show("starting Ray" if not options.address else "connecting to Ray")
        task = "decoding" if job.decodes else "encoding"
        with jobs.cluster(options.address):
            report = jobs.run_job(
                *(job, suffixes, suffix, fleet),
                lambda done, total: line.show(task, done / total, f"{done} of {total}"),
            )
    result = {
        "command": f"fleet {'decode' if job.decodes else 'encode'}",
        "input": options.input,
        "output": options.output,
        "files": report.done + report.kept + report.bad,
        "done": report.done,
        "kept": report.kept,
        "bad": report.bad,
        "report": f"{options.output}/{REPORT_NAME}" if report.bad else None,
        "bytes_in": report.bytes_in,
        "bytes_out": report.bytes_out,
        "seconds": round(report.seconds, 3),
        "images_per_s": round(report.done / report.seconds, 3),
        "workers": report.workers,
        "threads": job.threads,
        "nodes": dict(report.nodes),
        "gpus": dict(report.gpus),
    }
    console.report(result, _lines(result))
    return InputError.exit_code if report.bad else 0


def _lines(record: dict[str, Any]) -> list[str]:
    lines = [
        f"{record['output']}: {record['done']} of {record['files']} files done in "
        f"{record['seconds']:.1f} s, {record['images_per_s']:.2f} a second, by "
        f"{record['workers']} workers on {len(record['nodes'])} nodes"
    ]
    for name in ("nodes", "gpus"):
        for key, count in record[name].items() if len(record[name]) > 1 else ():
            lines.append(f"  {key}: {count}, {count / record['seconds']:.2f} a second")
    if record["kept"]:
        lines.append(f"{record['kept']} outputs were there already; --force makes them again")
    if record["bad"]:
        lines.append(f"{record['bad']} files are bad: see {record['report']}")
    return lines
