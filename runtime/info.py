"""What a stream says of itself, without decoding a token: for ``Codec.info`` and the command line.

Needs no engine; a bundle, where there is one, fills in what the stream leaves to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from percoedge.bitstream.container import unpack
from percoedge.engines.bundle import Bundle
from percoedge.runtime.settings import schedule_of

__all__ = ["describe", "lines_from_description"]


def describe(
    data: bytes, bundle: Bundle | None, *, bare: bool = False, cut: bool = False
) -> dict[str, Any]:
    """Size, settings, caption, and where each byte goes, as values that JSON can hold.

    Settings that the stream leaves to a bundle are those of ``bundle``, or None when it is not the
    one that made the stream. Raises StreamError for a broken stream.
    """
    stream = unpack(data, bare=bare, cut=cut)
    header = stream.header
    ours = bundle if bundle and stream.fingerprint in (None, bundle.fingerprint) else None
    defaults = ours.codec if ours else None
    guidance = header.guidance
    if guidance is None and defaults:
        guidance = defaults.guidance
    return {
        "width": header.width,
        "height": header.height,
        "bytes": len(data),
        "bpp": round(8 * len(data) / (header.width * header.height), 6),
        "schedule": schedule_of(header, ours) if ours else header.schedule,
        "passes_sent": header.passes_sent or "all",
        "steps": header.steps or (defaults.steps if defaults else None),
        "guidance": guidance,
        "seed": stream.seed,
        "caption": header.caption,
        "fingerprint": stream.fingerprint.hex() if stream.fingerprint else None,
        "bundle": ours.name if ours else "another one",
        "checksum_ok": stream.checksum_ok,
        "bytes_by_part": stream.sizes,
    }


def lines_from_description(name: str, record: Mapping[str, Any]) -> list[str]:
    """Write a description for people; what is left to an unknown bundle is said to be so."""
    total = record["bytes"]
    checksum = {True: "right", False: "WRONG: cut or damaged", None: "none (bare)"}
    lines = [
        f"{name}: {record['width']}x{record['height']} px, {total} bytes, {record['bpp']:.4f} bpp"
    ]
    for part, size_bytes in record["bytes_by_part"].items():
        lines.append(f"  {part:<9}{size_bytes:>8} bytes {size_bytes / total:>7.1%}")
    settings = [f"passes: {record['passes_sent']}"]
    for key in ("schedule", "steps", "guidance", "seed"):
        value = record[key]
        settings.append(f"{key}: {'left to the bundle' if value is None else value}")
    lines.append("; ".join(settings))
    fingerprint = record["fingerprint"] or "no fingerprint"
    lines.append(
        f"bundle: {record['bundle']} ({fingerprint}); checksum: {checksum[record['checksum_ok']]}"
    )
    if record["caption"]:
        lines.append(f"caption: {record['caption']!r}")
    return lines
