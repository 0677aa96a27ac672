"""The commands ``percoedge bundle verify`` and ``percoedge bundle zip``."""

from __future__ import annotations

import os
from argparse import Namespace
from typing import Any

from percoedge.engines.bundle import Bundle, pack_zip
from percoedge.errors import UsageError
from percoedge.runtime.cli.console import Console, size_text
from percoedge.runtime.cli.outputs import check_output
from percoedge.runtime.files import STANDARD_STREAM

__all__ = ["pack", "verify"]


def verify(options: Namespace, console: Console) -> int:
    """Check every file of a bundle; returns the exit code."""
    bundle = Bundle.open(options.bundle)
    bundle.verify()
    record = {"command": "bundle verify", **_described(bundle), "sound": True}
    console.report(record, [f"{_summary(bundle)}: every file is sound"])
    return 0


def pack(options: Namespace, console: Console) -> int:
    """Pack a bundle into one .zip; returns the exit code."""
    if options.output == STANDARD_STREAM:
        raise UsageError("expected the name of a .zip, got '-': a bundle is packed to a file only")
    bundle = Bundle.open(options.bundle)
    output = options.output
    if output is None:
        output = f"{bundle.name}.zip"
        if os.path.lexists(output):
            raise UsageError(f"{output!r} is there already; name the output with -o")
    check_output(output, os.fspath(bundle.path))
    pack_zip(bundle, output)
    size_bytes = os.stat(output).st_size
    record = {
        "command": "bundle zip",
        **_described(bundle),
        "output": output,
        "zip_bytes": size_bytes,
    }
    console.report(record, [f"{output}: {size_text(size_bytes)}, {_summary(bundle)}"])
    return 0


def _described(bundle: Bundle) -> dict[str, Any]:
    files = {record.file: record.size for record in bundle.manifest.files}
    return {
        "bundle": bundle.name,
        "path": os.fspath(bundle.path),
        "fingerprint": bundle.fingerprint.hex(),
        "files": len(files),
        "bytes": sum(files.values()),
    }


def _summary(bundle: Bundle) -> str:
    described = _described(bundle)
    return (
        f"bundle {bundle.name} ({described['fingerprint']}), {described['files']} files, "
        f"{size_text(described['bytes'])}"
    )
