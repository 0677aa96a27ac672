"""The codec that the options of a command ask for, and what its report says of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from percoedge.errors import StreamError, naming
from percoedge.runtime.cli.outputs import shown_name

if TYPE_CHECKING:
    from percoedge.runtime.codec import Codec

__all__ = ["codec_record", "load_codec", "naming_stream", "rounded_ms", "seconds_text"]


def load_codec(options: Namespace) -> Codec:
    """The codec of ``arguments.engine_options``. Raises as ``Codec.load``."""
    from percoedge.runtime.codec import Codec

    return Codec.load(
        options.bundle, options.backend, threads=options.threads, low_memory=options.low_memory
    )


def codec_record(codec: Codec) -> dict[str, Any]:
    """The bundle and backend of a codec, for a report."""
    return {
        "bundle": codec.bundle.name,
        "fingerprint": codec.bundle.fingerprint.hex(),
        "backend": codec.backend.name,
    }


def rounded_ms(timings_ms: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds by stage, for a report."""
    return {stage: round(value, 3) for stage, value in timings_ms.items()}


def seconds_text(timings_ms: Mapping[str, float]) -> str:
    """The sum of all stages in seconds, and how much of it was the loading of engines."""
    loading = timings_ms.get("load", 0.0)
    return f"{sum(timings_ms.values()) / 1000:.2f} s ({loading / 1000:.2f} s loading)"


def naming_stream(source: str) -> AbstractContextManager[None]:
    """Add the name of the file to errors about its contents."""
    return naming(shown_name(source, "standard input"), StreamError)
