"""The classical codecs that are measured beside ours, and the versions of their libraries."""

from __future__ import annotations

import importlib
import importlib.metadata

from PIL import features

from percoedge.runtime.images.classical import CLASSICAL, Attempt, PhotoRival, Rival

__all__ = ["RIVALS", "Attempt", "PhotoRival", "Rival", "version"]

RIVALS = (
    *CLASSICAL,
    # Effort 9 gains .0003 of MS-SSIM at a kilobyte, for 25 times the time.
    Rival("JPEG XL", "JXL", 99, {"effort": 7}),  # 100 is another mode
)


def version(rival: Rival) -> str:
    """Version of the rival's library, or "missing"."""
    if rival.format == "JXL":
        try:
            importlib.import_module("pillow_jxl")  # registers the format
        except ImportError:
            return "missing"
        return f"pillow-jxl-plugin {importlib.metadata.version('pillow-jxl-plugin')}"
    library = {"JPEG": "jpg", "WEBP": "webp", "AVIF": "avif"}[rival.format]
    return str(features.version(library)) if features.check(library) else "missing"
