"""Image files in and out, colours, and measures of two images."""

from __future__ import annotations

from percoedge.runtime.images.reading import Photo, Source, format_of, read_image, write_image

__all__ = ["Photo", "Source", "format_of", "read_image", "write_image"]
