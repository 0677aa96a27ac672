"""The command ``percoedge decode``: a stream to an image, or a folder of them."""

from __future__ import annotations

import os
from argparse import Namespace

from percoedge.runtime.cli.codec_options import (
    codec_record,
    load_codec,
    naming_stream,
    rounded_ms,
    seconds_text,
)
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.outputs import check_output, output_name, shown_name
from percoedge.runtime.files import STANDARD_STREAM, read_bytes

__all__ = ["decode"]


def decode(options: Namespace, console: Console) -> int:
    """Decode a stream to an image, or every stream of a folder; returns the exit code."""
    if os.path.isdir(options.input):
        from percoedge.runtime.cli.folder.decode import decode_folder

        return decode_folder(options, console)
    from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_STREAM_BYTES
    from percoedge.runtime.images import format_of, suffix_of, write_image

    if options.output is not None:
        check_output(options.output, options.input)  # before its suffix: a folder has none
    kind = format_of(options.output or STANDARD_STREAM, options.format)
    output = output_name(options.output, options.input, suffix_of(kind))
    data = read_bytes(options.input, limit_bytes=MAX_STREAM_BYTES)
    with load_codec(options) as codec, naming_stream(options.input):
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
    write_image(image, output, kind)
    record = {
        "command": "decode",
        "input": options.input,
        "output": output,
        "format": kind,
        "width": image.width,
        "height": image.height,
        "bytes": len(data),
        **codec_record(codec),
        "timings_ms": rounded_ms(timings_ms),
    }
    line = (
        f"{shown_name(output, 'standard output')}: {image.width}x{image.height} px from "
        f"{len(data)} bytes, {seconds_text(timings_ms)}"
    )
    console.report(record, [line])
    return 0
