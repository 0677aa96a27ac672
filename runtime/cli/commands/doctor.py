"""The command ``percoedge doctor``: what is installed, what works here, and whether it is right.

It decodes a stream that comes with percoedge on every backend that works, as the tokens must be
the same on every machine. Nothing that is broken here may break the doctor: every check ends in a
value or in a problem.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from percoedge import __version__
from percoedge.errors import BackendError, BundleError, EngineError, PercoedgeError
from percoedge.runtime.cli.console import Console, size_text
from percoedge.runtime.cli.tables import column_lines

if TYPE_CHECKING:
    from percoedge.bundles import GoldenStream
    from percoedge.engines.bundle import Bundle

__all__ = ["doctor"]

_T = TypeVar("_T")

# Distributions asked for their version: those needed, then those that add something.
_NEEDED = ("numpy", "pillow", "msgspec")
_OPTIONAL = (
    *("constriction", "onnxruntime", "onnxruntime-gpu"),
    *("tensorrt", "tensorrt-rtx", "cuda-core", "cuda-bindings"),
)


def doctor(options: Namespace, console: Console) -> int:
    """Print the state of this installation; the exit code is 4 when something needed is broken."""
    problems: list[str] = []

    def attempt(what: str, check: Callable[[], _T]) -> _T | None:
        try:
            return check()
        except PercoedgeError as error:
            problems.append(f"{what}: {error}")
        except Exception as error:  # a broken library raises anything
            problems.append(f"{what}: {type(error).__name__}: {error}")
        return None

    record: dict[str, Any] = {
        "command": "doctor",
        "percoedge": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "cpus_usable": attempt("processors", _usable_processors),
        "memory_bytes": attempt("memory", _total_memory_bytes),
        "memory_available_bytes": attempt("memory", _available_memory_bytes),
        "versions": {name: _version(name) for name in (*_NEEDED, *_OPTIONAL)},
    }
    for name in _NEEDED:
        if record["versions"][name] is None:
            problems.append(f"{name}: expected it to be installed; run pip install {name}")
    record["range_coder"] = attempt("range coder", _range_coder)
    record["image_formats"] = attempt("image formats", _image_formats)
    record["backends"] = attempt("backends", _backends) or []
    record["auto"] = attempt("auto", _auto)
    record["bundles"] = attempt("bundles", lambda: _bundles(attempt)) or []
    if not record["bundles"]:
        problems.append("bundles: expected one to be shipped, found none; install percoedge again")
    works = [status["name"] for status in record["backends"] if status["available"]]
    record["golden"] = attempt("golden stream", lambda: _golden(works)) or []
    problems += [
        f"golden stream on {row['backend']}: {row['reason']}"
        for row in record["golden"]
        if row["ok"] is False
    ]
    record["problems"] = problems
    console.report(record, _lines(record))
    return EngineError.exit_code if problems else 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _usable_processors() -> int:
    from percoedge.engines.processors import usable_processors

    return usable_processors()


def _total_memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # not on this system
        return None


def _available_memory_bytes() -> int | None:
    from percoedge.engines.memory import available_bytes

    return available_bytes()


def _range_coder() -> str:
    from percoedge.bitstream import rangecoder

    return "pure Python and numpy" if rangecoder.DEFAULT is rangecoder.PURE else "constriction"


def _image_formats() -> dict[str, bool]:
    features = importlib.import_module("PIL.features")
    checks = {"JPEG": "jpg", "PNG": "zlib", "WebP": "webp", "AVIF": "avif", "ICC": "littlecms2"}
    return {name: bool(features.check(feature)) for name, feature in checks.items()}


def _backends() -> list[dict[str, Any]]:
    from percoedge.engines.selection import available

    return [
        {"name": status.name, "available": status.available, "reason": status.reason}
        for status in available()
    ]


def _auto() -> str:
    """What is taken for the default bundle: TensorRT's engine files are those of one bundle."""
    from percoedge.engines.bundle import Bundle
    from percoedge.engines.selection import select

    try:
        bundle = Bundle.open("tiny")
    except BundleError:  # reported below, with the bundles
        bundle = None
    return select("auto", bundle=bundle).name


def _bundles(attempt: Callable[[str, Callable[[], Any]], Any]) -> list[dict[str, Any]]:
    from percoedge.bundles import shipped_bundles
    from percoedge.engines.bundle import Bundle

    found = []
    for name, path in shipped_bundles().items():

        def check(path: Path = path) -> str:
            bundle = Bundle.open(path)
            bundle.verify()
            return bundle.fingerprint.hex()

        fingerprint = attempt(f"bundle {name}", check)
        found.append(
            {
                "name": name,
                "path": str(path),
                "fingerprint": fingerprint,
                "sound": fingerprint is not None,
            }
        )
    return found


def _golden(backends: list[str]) -> list[dict[str, Any]]:
    """Decode the golden stream on each backend; ``ok`` is None where its engines were never built.

    Raises InputError or BundleError when the stream or its bundle is missing or broken.
    """
    from percoedge.bundles import golden_stream
    from percoedge.engines.bundle import Bundle

    golden = golden_stream()
    bundle = Bundle.open(golden.bundle)
    return [_golden_row(golden, bundle, name) for name in backends]


def _golden_row(golden: GoldenStream, bundle: Bundle, backend: str) -> dict[str, Any]:
    from percoedge.bundles import token_digest
    from percoedge.engines.tensorrt.library import LIBRARIES
    from percoedge.runtime.codec import Codec

    ok: bool | None = False
    reason, captured = "", None
    try:
        with Codec.load(bundle, backend) as codec:
            for _ in range(3):  # as it is, captured where that can be done, and launched again
                found = token_digest(codec.decode_tokens(golden.data))
            captured = getattr(codec.backend, "captures", None)
        ok = found == golden.tokens_sha256
        if not ok:
            expected = golden.tokens_sha256
            reason = f"expected tokens {expected[:16]}, got {found[:16]}; do not decode with it"
    except Exception as error:  # a broken library raises anything
        reason = f"{type(error).__name__}: {error}"
        if backend in LIBRARIES and isinstance(error, BackendError):  # none built for this bundle
            ok = None
    graphs = None if captured is None else str(captured)
    return {"backend": backend, "ok": ok, "reason": reason, "cuda_graphs": graphs}


def _lines(record: dict[str, Any]) -> list[str]:
    total, free = record["memory_bytes"], record["memory_available_bytes"]
    versions = {name: version or "-" for name, version in record["versions"].items()}
    formats = record["image_formats"] or {}
    rows = [
        ("python", f"{record['python']} ({record['executable']})"),
        ("platform", record["platform"]),
        ("processors", f"{record['cpus_usable']} of {record['cpus']} usable"),
        ("memory", f"{_memory(free)} free of {_memory(total)}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
        ("range coder", record["range_coder"] or "none"),
        ("images", ", ".join(f"{name} {'yes' if ok else 'NO'}" for name, ok in formats.items())),
    ]
    for status in record["backends"]:
        state = "works" if status["available"] else f"not here: {status['reason']}"
        rows.append(("backend", f"{status['name']}: {state}"))
    rows.append(("auto takes", record["auto"] or "nothing: no backend works here"))
    for bundle in record["bundles"]:
        state = "every file is sound" if bundle["sound"] else "BROKEN"
        rows.append(("bundle", f"{bundle['name']} ({bundle['fingerprint'] or '?'}): {state}"))
    for row in record["golden"]:
        state = {True: "ok", False: "FAILED", None: f"not checked: {row['reason']}"}[row["ok"]]
        graphs = f", CUDA graphs: {row['cuda_graphs']}" if row["cuda_graphs"] else ""
        rows.append(("golden stream", f"{row['backend']}: {state}{graphs}"))
    rows += [("problem", problem) for problem in record["problems"]]
    return [
        f"percoedge {record['percoedge']}",
        *column_lines(rows, left=2),
        "all is well" if not record["problems"] else "see the problems above",
    ]


def _memory(size_bytes: int | None) -> str:
    return "unknown" if size_bytes is None else size_text(size_bytes)
