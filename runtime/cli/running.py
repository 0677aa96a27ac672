"""Runs the command that was asked for, and turns every failure into one line and an exit code.

Only argparse is loaded before a command runs; its own modules are imported then, so that
``percoedge --version`` and mistyped commands answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence

from percoedge.errors import EngineError, PercoedgeError
from percoedge.runtime.cli.console import (
    Console,
    flush_stdout,
    say_error,
    silence_broken_stdout,
)
from percoedge.runtime.cli.interrupts import Interrupts, is_interrupt
from percoedge.runtime.cli.main import INTERRUPTED
from percoedge.runtime.cli.parser import parse

__all__ = ["run"]


def run(arguments: Sequence[str] | None, interrupts: Interrupts) -> int:
    """Run one command and return its exit code; whatever it raises becomes one line on stderr."""
    code = 0
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")  # those of libraries: users cannot act on them
            code = _run(arguments)
            flush_stdout()
            if interrupts.seen:  # a moment ago, and not raised yet
                raise KeyboardInterrupt
    except (Exception, KeyboardInterrupt) as error:
        interrupted = interrupts.seen or is_interrupt(error)
        interrupts.arrived()
        code, message = (INTERRUPTED, "interrupted") if interrupted else _described(error)
        if os.environ.get("PERCOEDGE_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        say_error(message)
    silence_broken_stdout()
    return code


def _run(arguments: Sequence[str] | None) -> int:
    options = parse(arguments)
    if options is None:
        return 0
    module, function = options.command
    command: Callable[[Namespace, Console], int] = getattr(
        importlib.import_module(f"percoedge.runtime.cli.commands.{module}"), function
    )
    output = getattr(options, "output", None)
    data_on_stdout = output == "-" or (output is None and options.streams and options.input == "-")
    return command(options, Console(options.json, options.quiet, data_on_stdout))


def _described(error: BaseException) -> tuple[int, str]:
    """Exit code and message of an error."""
    if isinstance(error, PercoedgeError):
        return error.exit_code, str(error)
    if isinstance(error, MemoryError):
        return EngineError.exit_code, (
            "expected more memory than there is; use --low-memory, a smaller image or fewer "
            "programs at a time"
        )
    if isinstance(error, ImportError):
        return EngineError.exit_code, (
            f"a library cannot be loaded ({error}); see percoedge doctor, or install percoedge "
            "again"
        )
    return 1, (
        f"unexpected {type(error).__name__}: {error}; this is a bug: please report it, with the "
        "output of the same command under PERCOEDGE_DEBUG=1"
    )
