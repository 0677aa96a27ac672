"""The entry point: arguments in, exit code out, and never a traceback.

Whatever is imported before `main` runs, Ctrl-C can end with a traceback. So next to nothing is
imported here, and the rest where an interrupt is already taken care of.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # as typing's, which takes longer to import than this module
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["INTERRUPTED", "main"]

INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended; what shells say of a program that SIGINT ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default that of the process, and return its exit code."""
    try:
        from percoedge.runtime.cli.interrupts import Interrupts

        with Interrupts(last=arguments is None) as interrupts:
            from percoedge.runtime.cli.running import run

            return run(arguments, interrupts)
    except KeyboardInterrupt:  # before run() began, or while it reported one
        if sys.stderr is not None:
            sys.stderr.write("percoedge: error: interrupted\n")
        return INTERRUPTED
