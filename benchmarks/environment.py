"""What a measurement was made on, and where it is written."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from percoedge.engines.processors import usable_processors
from percoedge.runtime.bench.machine import commit, processor

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("percoedge", "numpy", "onnxruntime", "constriction", "pillow", "torch", "diffusers")


def describe(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Machine, versions (of ``packages`` too), commit and command of this run."""
    # paths by their last part: where a file lies says nothing to a reader
    arguments = [Path(word).name if "/" in word else word for word in sys.argv[1:]]
    program = Path(sys.argv[0])
    module = program.parent.name if program.stem == "__main__" else program.stem
    versions = {}
    for name in (*_PACKAGES, *packages):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": processor(),
        "cores": usable_processors(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit() or "missing",
        "command": " ".join(["python -m", f"benchmarks.{module}", *arguments]),
    }


def report(
    name: str,
    results: dict[str, Any],
    save: bool,
    packages: tuple[str, ...] = (),
    show: bool = True,
) -> None:
    """Print results as one JSON object if ``show``; ``save`` also writes results/<name>.json."""
    text = json.dumps({"environment": describe(packages), **results}, indent=2)
    if show:
        print(text)
    if save:
        (RESULTS / f"{name}.json").write_text(text + "\n")
