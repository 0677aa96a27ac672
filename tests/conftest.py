"""What holds for all tests: threads, interrupts, and a table of what tests/exactness compared."""

from __future__ import annotations

import os
import signal

import pytest

# Before PyTorch is imported: as many workers run as there are processors, and its threads spin
# while they wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    # Shells start what runs in the background with interrupts ignored, and children inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
