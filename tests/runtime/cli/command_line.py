"""What the tests of the command line share; their fixtures are in conftest.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle

ROOT = Path(__file__).parents[3]
SIZE = (50, 40)  # width, height: no multiples of the stride


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def record(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Result]


def picture() -> NDArray[np.uint8]:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([4 * columns, 5 * rows, 2 * (rows + columns)], -1).astype(np.uint8)


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weights_of(bundle: Path, kind: str) -> Path:
    """The largest file of a graph."""
    record = max(
        Bundle.open(bundle).manifest.graphs[kind].variants["fp32"].files, key=lambda r: r.size
    )
    return bundle / record.file


def assert_refused(result: Result, code: int, words: str) -> None:
    """One line on stderr that says `words`, nothing on stdout."""
    assert (result.code, result.out) == (code, b""), result
    assert re.fullmatch(r"percoedge: error: [^\n]+\n", result.err), result.err
    assert words in result.err


def fresh(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run a fresh interpreter that finds the package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for name in ("PERCOEDGE_DEBUG", "PYTHONUNBUFFERED"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
    )
