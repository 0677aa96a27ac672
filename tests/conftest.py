"""What holds for all tests: what is looked at, threads, interrupts, a table of what was compared.

The table is of the integers in the trials of tests/exactness.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

_HERE = Path(__file__).parent

# Before PyTorch is imported: as many workers run as there are processors, and its threads spin
# while they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    # Shells start what runs in the background with interrupts ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With ``-m gpu``, look at what is for a GPU only: the rest needs packages that it does not."""
    if config.option.markexpr != "gpu":
        return None
    wanted = (_HERE / "gpu", _HERE / "exactness/test_cuda.py")
    ways = any(collection_path in (path, *path.parents) for path in wanted)
    return None if ways or _HERE / "gpu" in collection_path.parents else True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [
        one for outcome in ("passed", "failed") for one in terminalreporter.getreports(outcome)
    ]
    tallies = [tally for one in reports for name, tally in one.user_properties if name == "tally"]
    if not tallies:
        return
    terminalreporter.section("exactness: integers compared with the reference")
    row = "{:>8} {:>6} {:>6} {:>11} {:>5} {:>5} {:>6}  {}"
    heads = ("settings", "runs", "grids", "integers", "files", "wrong", "s", "target")
    names = ("configurations", "runs", "grids", "integers", "streams", "wrong", "seconds", "target")
    terminalreporter.line(row.format(*heads))
    for tally in tallies:
        shown = {**tally, "wrong": len(tally["wrong"]), "seconds": f"{tally['seconds']:.1f}"}
        terminalreporter.line(row.format(*(shown[name] for name in names)))
