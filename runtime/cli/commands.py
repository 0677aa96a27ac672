"""The commands that turn files into files: encode, decode, info, bundle verify, bundle zip.

Each takes the parsed arguments and a console, and returns an exit code; errors are raised. What is
heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import contextlib
import os
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from percoedge.errors import BundleError, StreamError, UsageError
from percoedge.runtime.cli.console import Console, size_text
from percoedge.runtime.cli.outputs import check_output, output_name
from percoedge.runtime.files import STANDARD_STREAM, atomic_write, read_bytes

if TYPE_CHECKING:
    from percoedge.engines.bundle import Bundle
    from percoedge.runtime.codec import Codec

__all__ = ["bundle_verify", "bundle_zip", "decode", "encode", "info", "load_codec"]

_SUFFIX_OF = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
_IMAGE_SUFFIXES = (".avif", ".jpeg", ".jpg", ".png", ".webp")


def encode(options: Namespace, console: Console) -> int:
    """Encode a photo to a stream."""
    output = output_name(options.output, options.input, ".pco")
    if options.output and Path(output).suffix.lower() in _IMAGE_SUFFIXES:
        raise UsageError(f"expected a name that ends in .pco for a stream, got {output!r}")
    from percoedge.runtime.images import read_image

    began = time.perf_counter()
    photo = read_image(options.input)
    read_ms = (time.perf_counter() - began) * 1000
    console.notes(_shown(options.input, "standard input"), photo.notes)
    with load_codec(options) as codec:
        data = codec.encode(
            photo.pixels,
            caption=options.caption,
            schedule=options.schedule,
            passes=options.passes,
            seed=options.seed,
            bare=options.bare,
        )
        timings_ms = {**codec.timings_ms, "read image": read_ms}
    atomic_write(output, data)
    height, width = photo.pixels.shape[:2]
    record = {
        "command": "encode",
        "input": options.input,
        "output": output,
        "width": width,
        "height": height,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (width * height), 6),
        **_common(codec, timings_ms),
        "notes": list(photo.notes),
    }
    line = (
        f"{_shown(output, 'standard output')}: {len(data)} bytes, {record['bpp']:.4f} bpp, "
        f"{width}x{height} px, {_seconds(timings_ms)}"
    )
    console.report(record, [line])
    return 0


def decode(options: Namespace, console: Console) -> int:
    """Decode a stream to an image."""
    from percoedge.bitstream.container import MAX_STREAM_BYTES
    from percoedge.runtime.images import format_of, write_image

    kind = format_of(options.output or STANDARD_STREAM, options.format)
    output = output_name(options.output, options.input, _SUFFIX_OF[kind])
    data = read_bytes(options.input, limit_bytes=MAX_STREAM_BYTES)
    import numpy as np

    from percoedge.runtime.codec import DEFAULT_MAX_PIXELS

    with load_codec(options) as codec, _naming(options.input):
        image = codec.decode(
            data,
            steps=options.steps,
            guidance=options.guidance,
            seed=options.seed,
            bare=options.bare,
            cut=options.cut,
            max_pixels=options.max_pixels or DEFAULT_MAX_PIXELS,
        )
        timings_ms = codec.timings_ms
    write_image(np.asarray(image), output, kind)
    record = {
        "command": "decode",
        "input": options.input,
        "output": output,
        "format": kind,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        **_common(codec, timings_ms),
    }
    line = (
        f"{_shown(output, 'standard output')}: {image.width}x{image.height} px from {len(data)} "
        f"bytes, {_seconds(timings_ms)}"
    )
    console.report(record, [line])
    return 0


def info(options: Namespace, console: Console) -> int:
    """Tell what a stream says; loads no engine."""
    from percoedge.bitstream.container import MAX_STREAM_BYTES
    from percoedge.runtime.info import describe, lines_from_description

    data = read_bytes(options.input, limit_bytes=MAX_STREAM_BYTES)
    bundle = _bundle_if_any(options.bundle)
    with _naming(options.input):
        record = describe(data, bundle, bare=options.bare, cut=options.cut)
    name = _shown(options.input, "standard input")
    console.report(
        {"command": "info", "input": options.input, **record}, lines_from_description(name, record)
    )
    return 0


def bundle_verify(options: Namespace, console: Console) -> int:
    """Check every file of a bundle."""
    from percoedge.engines.bundle import Bundle

    bundle = Bundle.open(options.bundle)
    bundle.verify()
    record = {"command": "bundle verify", **_described(bundle), "sound": True}
    console.report(record, [f"{_summary(bundle)}: every file is sound"])
    return 0


def bundle_zip(options: Namespace, console: Console) -> int:
    """Pack a bundle into one .zip."""
    if options.output == STANDARD_STREAM:
        raise UsageError("expected the name of a .zip, got '-': a bundle is packed to a file only")
    from percoedge.engines.bundle import Bundle, pack_zip

    bundle = Bundle.open(options.bundle)
    output = options.output
    if output is None:
        output = f"{bundle.name}.zip"
        if os.path.lexists(output):
            raise UsageError(f"{output!r} is there already; name the output with -o")
    check_output(output, os.fspath(bundle.path))
    pack_zip(bundle, output)
    size_bytes = os.stat(output).st_size
    record = {
        "command": "bundle zip",
        **_described(bundle),
        "output": output,
        "zip_bytes": size_bytes,
    }
    console.report(record, [f"{output}: {size_text(size_bytes)}, {_summary(bundle)}"])
    return 0


def load_codec(options: Namespace) -> Codec:
    """The codec that the options of a command ask for."""
    from percoedge.runtime.codec import Codec

    return Codec.load(
        options.bundle, options.backend, threads=options.threads, low_memory=options.low_memory
    )


def _bundle_if_any(given: str | None) -> Bundle | None:
    """The bundle given, else the default one; a stream can be described without the latter."""
    from percoedge.engines.bundle import Bundle

    if given is not None:
        return Bundle.open(given)
    try:
        return Bundle.open("tiny")
    except BundleError:
        return None


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    """Add the name of the file to errors about its contents."""
    try:
        yield
    except StreamError as error:
        raise type(error)(f"{_shown(source, 'standard input')}: {error}") from error


def _common(codec: Codec, timings_ms: dict[str, float]) -> dict[str, Any]:
    return {
        "bundle": codec.bundle.name,
        "fingerprint": codec.bundle.fingerprint.hex(),
        "backend": codec.backend.name,
        "timings_ms": {stage: round(value, 3) for stage, value in timings_ms.items()},
    }


def _described(bundle: Bundle) -> dict[str, Any]:
    files = {record.file: record.size for record in bundle.manifest.files}
    return {
        "bundle": bundle.name,
        "path": os.fspath(bundle.path),
        "fingerprint": bundle.fingerprint.hex(),
        "files": len(files),
        "bytes": sum(files.values()),
    }


def _summary(bundle: Bundle) -> str:
    described = _described(bundle)
    return (
        f"bundle {bundle.name} ({described['fingerprint']}), {described['files']} files, "
        f"{size_text(described['bytes'])}"
    )


def _seconds(timings_ms: dict[str, float]) -> str:
    loading = timings_ms.get("load", 0.0)
    return f"{sum(timings_ms.values()) / 1000:.2f} s ({loading / 1000:.2f} s loading)"


def _shown(name: str, standard: str) -> str:
    return standard if name == STANDARD_STREAM else name
