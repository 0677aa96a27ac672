"""Colour profiles: pixels of any ICC profile become sRGB.

The conversion is LittleCMS's, through Pillow. Whether a profile is sRGB is found out by what it
does to colours, not by its name: names are many, and some lie.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from PIL import ImageCms

__all__ = ["srgb_from_profile"]

_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}  # Pillow's mode -> ICC's colour space
_SAME = 2  # levels of 255 by which variants of the sRGB profile differ


def srgb_from_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    """Return an "L", "RGB" or "CMYK" image as "RGB" in sRGB, and append to `notes` what was done.

    profile: an ICC profile's bytes; without one, or with one that is broken or is meant for
    another kind of image, grey and RGB are taken as sRGB and CMYK is converted by formula.
    """
    if profile:
        from PIL import ImageCms  # here, for it takes time and Pillow may be built without it

        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if space == _SPACES[image.mode]:
                target = ImageCms.createProfile("sRGB")
                transform = ImageCms.buildTransform(source, target, image.mode, "RGB")
                if _changes_colours(transform, image.mode):
                    converted = transform.apply(image)
                    notes.append("its colours were converted from its ICC profile to sRGB")
                    return converted
                return image.convert("RGB")
            notes.append(f"its ICC profile is for {space} pixels, not its own, and was ignored")
        except ImportError:
            notes.append("its ICC profile was ignored: this build of Pillow has no LittleCMS")
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            notes.append("its ICC profile is broken and was ignored")
    if image.mode == "CMYK":
        notes.append("its CMYK colours were converted without a profile and are approximate")
    return image.convert("RGB")


def _changes_colours(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Tell whether a transform to sRGB moves any colour of a probe visibly."""
    if mode == "CMYK":
        return True
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    if mode == "L":
        probe = Image.fromarray(levels[None, :])
    else:
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1)
        probe = Image.fromarray(cube.reshape(levels.size, -1, 3))
    before = np.asarray(probe.convert("RGB"), dtype=np.int16)
    after = np.asarray(transform.apply(probe), dtype=np.int16)
    return bool(np.abs(after - before).max() > _SAME)
