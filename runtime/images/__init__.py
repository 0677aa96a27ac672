"""Images in and out, their colours, and measures of two images."""

from __future__ import annotations

from percoedge.runtime.images.formats import READ_SUFFIXES
from percoedge.runtime.images.reading import Photo, Source, read_image
from percoedge.runtime.images.writing import (
    WRITE_SUFFIXES,
    format_of,
    image_bytes,
    suffix_of,
    write_image,
)

__all__ = [
    "READ_SUFFIXES",
    "WRITE_SUFFIXES",
    "Photo",
    "Source",
    "format_of",
    "image_bytes",
    "read_image",
    "suffix_of",
    "write_image",
]
