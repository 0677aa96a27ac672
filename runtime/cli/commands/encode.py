"""The command ``percoedge encode``: a photo to a stream, or a folder of them."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from pathlib import Path

from percoedge.errors import UsageError
from percoedge.runtime.cli.codec_options import (
    codec_record,
    load_codec,
    rounded_ms,
    seconds_text,
)
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.outputs import output_name, shown_name
from percoedge.runtime.files import atomic_write

__all__ = ["encode"]

# Of files that are not images to percoedge, but must not be taken for the name of a stream.
_OTHER_SUFFIXES = (".bmp", ".dng", ".gif", ".pdf", ".psd", ".svg", ".tif", ".tiff")


def encode(options: Namespace, console: Console) -> int:
    """Encode a photo to a stream, or every photo of a folder; returns the exit code."""
    if os.path.isdir(options.input):
        from percoedge.runtime.cli.folder.encode import encode_folder

        return encode_folder(options, console)
    output = output_name(options.output, options.input, ".pco")
    from percoedge.bitstream.container import DEFAULT_MAX_PIXELS
    from percoedge.bitstream.schedules import pass_count
    from percoedge.runtime.images import READ_SUFFIXES, read_image

    refused = (*READ_SUFFIXES, *_OTHER_SUFFIXES)
    if options.output and Path(output).suffix.lower() in refused:  # encode *.jpg
        raise UsageError(f"expected a name that ends in .pco for a stream, got {output!r}")
    max_pixels = options.max_pixels or DEFAULT_MAX_PIXELS
    began = time.perf_counter()
    photo = read_image(options.input, max_pixels=max_pixels)
    read_ms = (time.perf_counter() - began) * 1000
    console.notes(shown_name(options.input, "standard input"), photo.notes)
    with load_codec(options) as codec:
        data = codec.encode(
            photo.pixels,
            caption=options.caption,
            schedule=options.schedule,
            passes=options.passes,
            max_bytes=options.bytes,
            seed=options.seed,
            bare=options.bare,
            max_pixels=max_pixels,
        )
        timings_ms = {**codec.timings_ms, "read image": read_ms}
    atomic_write(output, data)
    height, width = photo.pixels.shape[:2]
    description = codec.info(data, bare=options.bare)
    total = pass_count(description["schedule"])
    passes = total if description["passes_sent"] == "all" else description["passes_sent"]
    record = {
        "command": "encode",
        "input": options.input,
        "output": output,
        "width": width,
        "height": height,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (width * height), 6),
        "passes_sent": passes,
        "passes_total": total,
        **codec_record(codec),
        "timings_ms": rounded_ms(timings_ms),
        "notes": list(photo.notes),
    }
    line = (
        f"{shown_name(output, 'standard output')}: {len(data)} bytes, {record['bpp']:.4f} bpp, "
        f"{passes} of {total} passes, {width}x{height} px, {seconds_text(timings_ms)}"
    )
    console.report(record, [line])
    return 0
