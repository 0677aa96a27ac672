"""Types of arguments, and the options that several commands share."""

from __future__ import annotations

import argparse
import difflib
import textwrap
from collections.abc import Sequence
from typing import NoReturn

from percoedge.errors import UsageError
from percoedge.runtime.cli.console import say

__all__ = [
    "Parser",
    "add_bundle",
    "add_fleet_options",
    "add_graphs",
    "add_service_options",
    "add_stream_options",
    "engine_options",
    "positive",
    "report_options",
    "size_options",
]


_ALIKE = 0.72  # --iters is like --iterations, and --bytes not like --steps


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError for wrong arguments, so that they read as other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see '{self.prog} --help'")

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Raise UsageError for arguments that are not taken; it says what may have been meant."""
        message = "unrecognized arguments: " + textwrap.shorten(
            " ".join(words), 80, placeholder=" ..."
        )
        shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
        known = [name for action in shown for name in action.option_strings]
        near = difflib.get_close_matches(words[0].partition("=")[0], known, 1, _ALIKE)
        if near:
            message += f"; is {near[0]} meant?"
        elif words[0][:1] != "-" and "--bundle" in known and all(a.option_strings for a in shown):
            message += "; a bundle is named by --bundle"
        self.error(message)

    def _print_message(self, message: str, file: object = None) -> None:
        """Print help or version; argparse would pass over a stdout that takes none."""
        for line in message.splitlines():
            say(line)


def positive(text: str) -> int:
    """An integer of at least 1. Raises ValueError or argparse.ArgumentTypeError."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


positive.__name__ = "number"  # argparse says "invalid number value"


def report_options() -> Parser:
    """What every command takes: how its result is printed."""
    options = Parser(add_help=False)
    options.add_argument("--json", action="store_true", help="print the result as one JSON object")
    options.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    return options


def engine_options() -> Parser:
    """What every command takes that makes a codec (see codec_options)."""
    options = Parser(add_help=False)
    options.add_argument(
        "--bundle", default="tiny", help="shipped name, directory or .zip (default: tiny)"
    )
    options.add_argument(
        "--backend", default="auto", help="a name that doctor lists (default: auto)"
    )
    options.add_argument("--threads", type=positive, metavar="N", help="CPU threads per engine")
    options.add_argument(
        "--low-memory", action="store_true", help="keep one engine in memory at a time"
    )
    return options


def size_options() -> Parser:
    """What every command takes that reads or makes images."""
    options = Parser(add_help=False)
    options.add_argument(
        "--max-pixels", type=positive, metavar="N", help="refuse larger images (default: 2^26)"
    )
    return options


def add_stream_options(parser: Parser, cut: str) -> None:
    """How a stream is to be read; ``cut``: what is done with one that is cut or damaged."""
    parser.add_argument("--bare", action="store_true", help="the stream was encoded with --bare")
    parser.add_argument("--cut", action="store_true", help=f"{cut} a cut or damaged stream")


def add_bundle(parser: Parser) -> None:
    """A bundle as the argument that comes first."""
    parser.add_argument("bundle", metavar="BUNDLE", help="shipped name, directory or .zip")


def add_graphs(parser: Parser) -> None:
    """The choice of some graphs of a bundle."""
    parser.add_argument(
        "--graph", metavar="KIND", action="append", help="only this one (may be repeated)"
    )


def add_service_options(parser: Parser) -> None:
    """What the service is started with; those without a default have that of ServiceSettings."""
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    add("--port", type=int, default=8000, metavar="N", help="default: 8000; 0 for a free one")
    add(
        "--bundle",
        action="append",
        help="shipped name, directory or .zip; may be repeated, the first one encodes "
        "(default: tiny)",
    )
    add("--backend", help="a name that doctor lists (default: auto)")
    add("--lanes", type=positive, metavar="N", help="images worked on at once (default: few)")
    add("--threads", type=positive, metavar="N", help="CPU threads of a lane (default: its share)")
    add(
        "--in-process",
        action=argparse.BooleanOptionalAction,
        help="lanes are threads that share engines, or processes (default: threads on a GPU)",
    )
    add(
        "--max-batch", type=positive, metavar="N", help="streams decoded together (default: by GPU)"
    )
    add("--batch-window-ms", type=float, metavar="MS", help="time to wait for others (default: 2)")
    add("--max-queue", type=positive, metavar="N", help="requests that may wait (default: 64)")
    add("--max-body-bytes", type=positive, metavar="N", help="refuse longer images (default: 2^26)")
    add("--max-pixels", type=positive, metavar="N", help="refuse larger images (default: 2^26)")
    add("--body-timeout-s", type=float, metavar="S", help="for a body to arrive (default: 10)")
    add("--deadline-s", type=float, metavar="S", help="for an answer (default: 30)")
    add("--drain-s", type=float, metavar="S", help="for answers after SIGTERM (default: 20)")
    add(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="of pages elsewhere that may call this service; may be repeated",
    )


def add_fleet_options(parser: Parser, source: str) -> None:
    """What every job of a fleet takes, beside its codec."""
    add = parser.add_argument
    add("input", metavar="SRC", help=source)
    add(*("-o", "--out", "--output"), dest="output", required=True, metavar="DST", help="likewise")
    add("--force", action="store_true", help="make outputs again, and replace other files")
    add("--address", metavar="RAY", help="of a cluster (default: $RAY_ADDRESS, else this machine)")
    add("--workers", type=positive, metavar="N", help="processes (default: all there is room for)")
    add("--gpus", type=float, metavar="X", help="of each worker, 0.5 for half a one (default: 1)")
    add("--batch", type=positive, metavar="N", help="files at a time (default: up to 16)")
