"""The command ``percoedge info``: what a stream says, without decoding it."""

from __future__ import annotations

from argparse import Namespace

from percoedge.bitstream.container import MAX_STREAM_BYTES
from percoedge.engines.bundle import Bundle
from percoedge.errors import BundleError
from percoedge.runtime.cli.codec_options import naming_stream
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.outputs import shown_name
from percoedge.runtime.files import read_bytes
from percoedge.runtime.info import describe, lines_from_description

__all__ = ["info"]


def info(options: Namespace, console: Console) -> int:
    """Print what a stream says; loads no engine. Returns the exit code."""
    data = read_bytes(options.input, limit_bytes=MAX_STREAM_BYTES)
    bundle = _bundle_if_any(options.bundle)
    with naming_stream(options.input):
        record = describe(data, bundle, bare=options.bare, cut=options.cut)
    name = shown_name(options.input, "standard input")
    console.report(
        {"command": "info", "input": options.input, **record}, lines_from_description(name, record)
    )
    return 0


def _bundle_if_any(given: str | None) -> Bundle | None:
    """The bundle given, else the default one; a stream can be described without the latter."""
    if given is not None:
        return Bundle.open(given)
    try:
        return Bundle.open("tiny")
    except BundleError:
        return None
