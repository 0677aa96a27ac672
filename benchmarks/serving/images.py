"""What is decoded: the shipped photo in pieces."""

from __future__ import annotations

from io import BytesIO

from PIL import Image, ImageOps

from percoedge.bundles import shipped_photo

__all__ = ["photos"]


def photos(size: int) -> list[Image.Image]:
    """Eight crops and mirrors of the shipped photo, all different."""
    with Image.open(BytesIO(shipped_photo().read_bytes())) as image:
        whole = image.convert("RGB")
    middles = [(x, y) for x in (0.2, 0.8) for y in (0.3, 0.7)]
    crops = [ImageOps.fit(whole, (size, size), centering=middle) for middle in middles]
    return [*crops, *map(ImageOps.mirror, crops)]
