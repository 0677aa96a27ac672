"""The command ``percoedge build``: a bundle's graphs into TensorRT engine files, kept here."""

from __future__ import annotations

import os
import re
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import msgspec

from percoedge import __version__
from percoedge.arguments import expect_size
from percoedge.bitstream.container import MAX_SIDE
from percoedge.bundles import shipped_bundles
from percoedge.engines import memory
from percoedge.engines.bundle import Bundle
from percoedge.engines.plans.build import (
    Progress,
    StagedGraph,
    build_plan,
    check_targets,
    stage_graph,
    writes_streams,
)
from percoedge.engines.plans.cache import CACHE_VARIABLE, PlanCache, timing_name
from percoedge.engines.plans.profiles import Profile, profile_for
from percoedge.engines.plans.record import (
    DISCRETE_BATCHES,
    BuildRequest,
    plan_stem,
    rebuild_command,
)
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.engines.tensorrt.library import Library, find_library, supported_targets
from percoedge.engines.tiling import TILING, graph_of, tiling_kinds
from percoedge.errors import BackendError, OutputError, UsageError
from percoedge.runtime.cli.console import Console, size_text
from percoedge.runtime.cli.tables import column_lines
from percoedge.runtime.settings import chosen_graphs

__all__ = ["build"]

_VARIANT = "fp16"
_MAX_WORKSPACE_MIB = 1 << 20
_SHARED_WORKSPACE_MIB = 2048


@dataclass(frozen=True)
class _Job:
    """What all graphs of one call share."""

    bundle: Bundle
    library: Library
    targets: tuple[int, ...]
    gpu: Gpu | None
    cache: PlanCache
    request: BuildRequest

    @property
    def driver(self) -> str | None:
        """Newest CUDA that the driver knows; None without a GPU."""
        return None if self.gpu is None else self.gpu.cuda_version

    @property
    def model(self) -> str | None:
        """The only model of GPU that it is built for; TensorRT-RTX compiles where it runs."""
        timed = self.gpu is not None and not supported_targets(self.library)
        return self.gpu.model if self.gpu is not None and timed else None


def build(options: Namespace, console: Console) -> int:
    """Build a bundle's graphs; all arguments are checked before the first is begun. Returns 0."""
    request = BuildRequest(
        bundle=_lasting_name(options.bundle),
        sizes=tuple(expect_size("--sizes", text, MAX_SIDE) for text in _items(options.sizes)),
        batches=tuple(_number("batch", text) for text in _items(options.batch)) or DISCRETE_BATCHES,
        workspace_mib=None if options.workspace is None else _workspace(options.workspace),
        level=options.level,
        each_batch=options.each_batch,
    )
    sms = tuple(sorted({_number("sm", text) for text in _items(options.sm)}))
    bundle = Bundle.open(options.bundle)
    profiles = _profiles(bundle, options.graph, request)
    library = find_library(options.backend)
    targets, gpu = _targets(library, sms)
    if gpu is not None and gpu.integrated:
        request = _on_shared_memory(request, options, gpu)
        profiles = _profiles(bundle, options.graph, request)
    cache = PlanCache(Path(options.cache).absolute() if options.cache else None)
    job = _Job(bundle, library, targets, gpu, cache, request)
    began, rows = time.perf_counter(), []
    with console.progress() as line:
        for number, (kind, profile) in enumerate(profiles.items(), 1):
            task = f"building {kind} ({number} of {len(profiles)})"
            line.show(task)

            def progress(share: float, phase: str, task: str = task) -> None:
                line.show(task, share, phase)

            rows.append(_build_graph(job, kind, profile, progress))
    record = {
        "command": "build",
        "bundle": bundle.name,
        "fingerprint": bundle.fingerprint.hex(),
        "backend": library.name,
        "version": library.version,
        "targets": list(targets),
        "driver": job.driver,
        "cache": os.fspath(cache.root),
        "seconds": round(time.perf_counter() - began, 3),
        "graphs": rows,
    }
    console.report(record, _lines(record))
    return 0


def _profiles(
    bundle: Bundle, chosen: Sequence[str] | None, request: BuildRequest
) -> dict[str, Profile]:
    """The profile of every graph to build, in the order asked for."""
    profiles = {}
    for kind in chosen_graphs(bundle, chosen, tiling_kinds(bundle.codec)):
        graph = graph_of(bundle, kind, _VARIANT)
        specs = (*graph.inputs, *graph.outputs)
        profiles[kind] = profile_for(kind, specs, bundle.codec, request.sizes, request.batches)
    return profiles


def _on_shared_memory(request: BuildRequest, options: Namespace, gpu: Gpu) -> BuildRequest:
    """What was left to us, for a GPU that shares its memory with the host: one image at a time.

    The library would take all of the memory to work in; here it is a quarter of what is free.
    """
    if options.batch is None:
        request = msgspec.structs.replace(request, batches=(1,))
    if options.workspace is None:
        free_mib = gpu.memory_bytes()[0] >> 20
        mib = max(1, min(_SHARED_WORKSPACE_MIB, free_mib // 4))
        request = msgspec.structs.replace(request, workspace_mib=mib)
    return request


def _targets(library: Library, sms: tuple[int, ...]) -> tuple[tuple[int, ...], Gpu | None]:
    """Compute capabilities to build for, and the GPU at hand, if there is one."""
    supported, gpu = supported_targets(library), None
    if supported:
        check_targets(library, sms)
    try:
        gpu = Gpu()
    except BackendError as error:
        if supported:
            return sms or supported, None
        raise BackendError(
            f"{library.name} times its kernels on the GPU that is to run them, so it builds on "
            f"that machine only: {error}; for RTX GPUs, --backend tensorrt-rtx builds anywhere"
        ) from error
    if supported:
        return sms or supported, gpu
    if sms not in ((), (gpu.sm,)):
        raise UsageError(
            f"expected --sm {gpu.sm}, as {library.name} builds for the GPU at hand only, got "
            f"{', '.join(map(str, sms))}; leave it out, or build on the other machine"
        )
    return (gpu.sm,), gpu


def _build_graph(job: _Job, kind: str, profile: Profile, progress: Progress) -> dict[str, Any]:
    """Build and keep one engine file; returns its row of the report."""
    began = time.perf_counter()
    given = graph_of(job.bundle, kind, _VARIANT)
    file_bytes = 0 if kind in TILING else job.bundle.size_bytes([kind], _VARIANT)
    needed_bytes = memory.build_bytes(file_bytes, streams=writes_streams(job.library))
    memory.require(needed_bytes, f"building graph {kind!r}")
    with job.cache.scratch() as folder:
        # no name for the source: the builder maps its files, and its bytes can go
        graph = stage_graph(given.read(), folder)
        timing = timing_name(job.library, job.targets)
        stem = plan_stem(kind, graph.sha256, job.library.name, job.library.version, job.targets)
        log_path = job.cache.root / f"{stem}.log"
        try:
            with log_path.open("w", encoding="utf-8") as log:
                _head(log, job, graph, profile)
                built = build_plan(
                    graph,
                    profile,
                    job.library,
                    folder / "plan",
                    log,
                    targets=job.targets if supported_targets(job.library) else (),
                    workspace_mib=job.request.workspace_mib,
                    level=job.request.level,
                    each_batch=job.request.each_batch,
                    timing=job.cache.kept(timing) or b"",
                    progress=progress,
                )
        except OSError as error:
            raise OutputError(f"{log_path}: cannot be written: {error}") from error
        if built.timing:
            job.cache.keep(timing, built.timing)
        plan = job.cache.store(
            folder / "plan",
            kind=kind,
            precision=graph.precision,
            graph_sha256=graph.sha256,
            library=job.library,
            targets=job.targets,
            profile=profile,
            device=job.model,
            flags=built.flags,
            driver=job.driver,
            request=job.request,
        )
    seconds = time.perf_counter() - began
    return {
        "graph": kind,
        "precision": plan.precision,
        "graph_sha256": plan.graph_sha256,
        "seconds": round(seconds, 3),
        "bytes": plan.size,
        "plan_sha256": plan.plan_sha256,
        "activation_bytes": built.activation_bytes,
        "weight_bytes": built.weight_bytes,
        "profile": {symbol: list(sizes) for symbol, sizes in profile.ranges.items()},
        "targets": list(plan.targets),
        "flags": list(plan.flags),
        "plan": os.fspath(job.cache.root / plan.plan_name),
        "log": os.fspath(log_path),
    }


def _head(log: TextIO, job: _Job, graph: StagedGraph, profile: Profile) -> None:
    """Begin a log with what it is a log of."""
    command = rebuild_command(
        job.library.name, kind=graph.kind, targets=job.targets, request=job.request
    )
    log.write(
        f"percoedge {__version__}, {job.library.name} {job.library.version}, driver "
        f"{job.driver or 'none'}\n{command}\ngraph {graph.kind} ({graph.precision}) "
        f"{graph.sha256}\nprofile {profile}\n"
    )


def _lines(record: dict[str, Any]) -> list[str]:
    rows = [
        (
            row["graph"],
            str(Profile(row["profile"])),
            size_text(row["bytes"]) + _working_memory(row["activation_bytes"]),
            f"{row['seconds']:.1f} s",
        )
        for row in record["graphs"]
    ]
    count = len(rows)
    lines = column_lines(rows, left=2)
    lines.append(
        f"{count} engine file{'' if count == 1 else 's'} of bundle {record['bundle']} for "
        f"{record['backend']} {record['version']}, SM {', '.join(map(str, record['targets']))}, "
        f"{record['seconds']:.1f} s, in {record['cache']}"
    )
    if PlanCache().root != Path(record["cache"]):
        lines.append(f"to decode with them, set {CACHE_VARIABLE} to that folder")
    return lines


def _working_memory(size_bytes: int | None) -> str:
    return "" if size_bytes is None else f" + {size_text(size_bytes)} to work in"


def _lasting_name(bundle: str) -> str:
    """The bundle as it can be named from any working directory."""
    return bundle if bundle in shipped_bundles() else os.path.abspath(bundle)


def _items(text: str | None) -> list[str]:
    return [] if text is None else text.split(",")


def _number(what: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise UsageError(f"expected --{what} to be numbers with commas between them, got {text!r}")
    return int(text)


def _workspace(mib: int) -> int:
    if mib > _MAX_WORKSPACE_MIB:
        raise UsageError(f"expected --workspace of 1 to {_MAX_WORKSPACE_MIB} MiB, got {mib}")
    return mib
