"""The command ``percoedge demo``: one photo there and back, its bytes and quality."""

from __future__ import annotations

import math
import os
import time
from argparse import Namespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS
from percoedge.bundles import shipped_photo
from percoedge.errors import UsageError
from percoedge.runtime.cli.codec_options import codec_record, load_codec, rounded_ms
from percoedge.runtime.cli.console import Console, size_text
from percoedge.runtime.cli.outputs import check_output
from percoedge.runtime.cli.tables import column_lines
from percoedge.runtime.images import format_of, read_image, write_image
from percoedge.runtime.images.metrics import ms_ssim, psnr_db

__all__ = ["demo", "side_by_side"]

_OUTPUT = "percoedge-demo.png"
_GAP_PX = 8


def demo(options: Namespace, console: Console) -> int:
    """Encode and decode a photo, print what it took, and write both side by side; returns 0."""
    output = options.output or _OUTPUT
    if options.output is None and os.path.lexists(output):
        raise UsageError(
            f"expected no file {output!r}, as it would be replaced; name the output with -o"
        )
    check_output(output, options.photo)
    kind = format_of(output)
    source = options.photo or shipped_photo()
    began = time.perf_counter()
    max_pixels = options.max_pixels or DEFAULT_MAX_PIXELS
    photo = read_image(source, max_pixels=max_pixels)
    read_ms = _since_ms(began)
    console.notes(str(source), photo.notes)
    height, width = photo.pixels.shape[:2]

    began = time.perf_counter()
    with load_codec(options) as codec:
        start_ms = _since_ms(began)
        data = codec.encode(photo.pixels, max_pixels=max_pixels)
        encode_ms = {**codec.timings_ms, "read image": read_ms}
        codec.close()  # a decoder is another machine: it loads its engines itself
        image = codec.decode(data, steps=options.steps, max_pixels=max_pixels)
        decode_ms = codec.timings_ms
    decoded: NDArray[np.uint8] = np.asarray(image)
    began = time.perf_counter()
    write_image(side_by_side(photo.pixels, decoded), output, kind)
    decode_ms["write image"] = _since_ms(began)

    quality = _quality(photo.pixels, decoded)
    record = {
        "command": "demo",
        "input": str(source),
        "output": output,
        "width": width,
        "height": height,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (width * height), 6),
        **quality,
        **codec_record(codec),
        "start_ms": round(start_ms, 3),
        "encode_ms": rounded_ms(encode_ms),
        "decode_ms": rounded_ms(decode_ms),
        "notes": list(photo.notes),
    }
    console.report(record, _lines(record))
    return 0


def side_by_side(left: NDArray[np.uint8], right: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two photos (H,W,3) of one size with a white gap between them."""
    gap = np.full((left.shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate([left, gap, right], axis=1)


def _quality(original: NDArray[np.uint8], decoded: NDArray[np.uint8]) -> dict[str, float | None]:
    """PSNR, None when infinite; MS-SSIM, None for photos too small for it."""
    psnr = psnr_db(original, decoded)
    try:
        similarity = round(ms_ssim(original, decoded), 5)
    except UsageError:
        similarity = None
    return {"psnr_db": round(psnr, 3) if math.isfinite(psnr) else None, "ms_ssim": similarity}


def _lines(record: dict[str, Any]) -> list[str]:
    psnr, similarity = record["psnr_db"], record["ms_ssim"]
    pixel_bytes = 3 * record["width"] * record["height"]
    rows = [
        ("photo", f"{record['input']}, {record['width']}x{record['height']} px"),
        (
            "stream",
            f"{record['bytes']} bytes, {record['bpp']:.4f} bpp (its pixels: "
            f"{size_text(pixel_bytes)})",
        ),
        (
            "quality",
            f"PSNR {'infinite' if psnr is None else f'{psnr:.2f} dB'}, "
            f"MS-SSIM {'not defined' if similarity is None else f'{similarity:.4f}'}",
        ),
        (
            "engines",
            f"bundle {record['bundle']} ({record['fingerprint']}) on {record['backend']}, found in "
            f"{record['start_ms']:.0f} ms",
        ),
    ]
    for phase in ("encode", "decode"):
        stages = record[f"{phase}_ms"]
        parts = ", ".join(f"{stage} {value:.0f}" for stage, value in stages.items())
        rows.append((phase, f"{sum(stages.values()):.0f} ms: {parts}"))
    rows.append(("wrote", f"{record['output']}: left the photo, right what was decoded"))
    return column_lines(rows, left=2)


def _since_ms(began: float) -> float:
    return (time.perf_counter() - began) * 1000
