"""The manifest of an engine file (TensorRT's plan): what it was built from, by what, and for what.

On disk it is JSON with a SHA-256 of its own, and only the very bytes that were written are taken
back.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from percoedge.engines.plans.profiles import Profile

__all__ = [
    "DISCRETE_BATCHES",
    "BuildRequest",
    "PlanRecord",
    "decode_record",
    "encode_record",
    "name_prefix",
    "plan_stem",
    "rebuild_command",
]

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*\Z", max_length=64)]
_Version = Annotated[str, Meta(pattern=r"^[0-9A-Za-z.+_-]+\Z", max_length=64)]


DISCRETE_BATCHES = (1, 8)
"""What is built for unless somebody asks for more: fastest at 1 image, and up to 8 together.

A GPU that shares its memory with the host gets 1.
"""


class BuildRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``percoedge build`` was asked for: enough to ask for it again.

    ``sizes``: width and height of pictures in pixels, none for every size. ``workspace_mib`` and
    ``level`` (of optimisation): None leaves it to the library. ``each_batch``: be fast at the
    largest batch, too; see ``Profile.tuned``.
    """

    bundle: str = "BUNDLE"
    sizes: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, ...] = DISCRETE_BATCHES
    workspace_mib: int | None = None
    level: int | None = None
    each_batch: bool = False


class PlanRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The manifest of one engine file.

    ``precision``: variant of the graph ("fp16"), to which it is strongly typed. ``targets``:
    compute capabilities (SM 8.9 is 89). ``device``: the only model of GPU that it is for, None for
    all of these targets. ``flags``: names of the builder's flags that were set.
    ``driver``: of the GPU at build, None where there was none. ``built``: time in UTC.
    """

    format: Literal[3] = 3
    kind: _Name
    precision: _Name
    graph_sha256: _Digest
    library: _Name
    version: _Version
    targets: Annotated[tuple[int, ...], Meta(min_length=1)]
    device: str | None
    profile: Profile
    flags: tuple[str, ...]
    driver: str | None
    request: BuildRequest
    built: str
    plan_sha256: _Digest
    size: Annotated[int, Meta(ge=1)]

    @property
    def stem(self) -> str:
        """Name of the manifest without suffix: one per graph, library, version and targets."""
        return plan_stem(self.kind, self.graph_sha256, self.library, self.version, self.targets)

    @property
    def plan_name(self) -> str:
        """Name of the engine file; it holds its hash, so that a manifest never names another's."""
        return f"{self.stem}-{self.plan_sha256[:12]}.plan"


class _Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A manifest as it stands on disk, with the SHA-256 of the record's JSON."""

    record: PlanRecord
    sha256: _Digest


def rebuild_command(
    library: str,
    *,
    kind: str | None = None,
    targets: Sequence[int] = (),
    request: BuildRequest | None = None,
    cache: Path | None = None,
) -> str:
    """The command that builds an engine file; all graphs of a bundle without ``kind``."""
    request = request or BuildRequest()
    words = ["percoedge", "build", request.bundle, "--backend", library]
    if targets and library == "tensorrt-rtx":  # the other one builds for the GPU at hand
        words += ["--sm", ",".join(map(str, targets))]
    if request.sizes:
        words += ["--sizes", ",".join(f"{width}x{height}" for width, height in request.sizes)]
    if request.batches != DISCRETE_BATCHES:
        words += ["--batch", ",".join(map(str, request.batches))]
    if request.each_batch:
        words += ["--each-batch"]
    if request.workspace_mib is not None:
        words += ["--workspace", str(request.workspace_mib)]
    if request.level is not None:
        words += ["--level", str(request.level)]
    if kind is not None:
        words += ["--graph", kind]
    if cache is not None:
        words += ["--cache", os.fspath(cache)]
    return shlex.join(words)


def name_prefix(kind: str, graph_sha256: str, library: str) -> str:
    """How the names of all files of a graph's engine files begin."""
    return f"{kind}-{graph_sha256[:16]}-{library}-"


def plan_stem(
    kind: str, graph_sha256: str, library: str, version: str, targets: Sequence[int]
) -> str:
    """Name without suffix of what belongs to one engine file: its manifest and its log."""
    sm = "-".join(map(str, targets))
    return f"{name_prefix(kind, graph_sha256, library)}{version}-sm{sm}"


def encode_record(record: PlanRecord) -> bytes:
    """The only bytes that are accepted as the manifest of this record."""
    digest = hashlib.sha256(msgspec.json.encode(record)).hexdigest()
    return msgspec.json.format(msgspec.json.encode(_Sealed(record, digest)), indent=2) + b"\n"


def decode_record(data: bytes) -> PlanRecord:
    """Decode a manifest; raises ValueError unless it is one that ``encode_record`` made."""
    try:
        record = msgspec.json.decode(data, type=_Sealed).record
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"expected the manifest of an engine file; {error}") from error
    if encode_record(record) != data:
        raise ValueError("expected the manifest as it was written; it was altered")
    return record
