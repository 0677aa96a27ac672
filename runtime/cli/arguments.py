"""Types of arguments, and the options that several commands share."""

from __future__ import annotations

import argparse
from typing import NoReturn

from percoedge.errors import UsageError

__all__ = [
    "Parser",
    "add_bundle",
    "add_graphs",
    "add_stream_options",
    "engine_options",
    "positive",
    "report_options",
    "size_options",
]


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError for wrong arguments, so that they read as other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see '{self.prog} --help'")


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
