"""``percoedge encode`` of a folder: every image to a stream."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from percoedge.arguments import expect_int
from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, Header, pack
from percoedge.bitstream.schedules import pass_count
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import encode_manifest
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.folder.work import check_folder, run_folder
from percoedge.runtime.codec import Codec
from percoedge.runtime.images import READ_SUFFIXES, read_image
from percoedge.runtime.images.reading import MAX_IMAGE_BYTES

__all__ = ["encode_folder", "encoding_choices", "image_sha256"]

_STREAM_SUFFIX = ".pco"


def encode_folder(options: Namespace, console: Console) -> int:
    """Encode every image in a folder into another; returns and raises as ``run_folder``."""
    check_folder(options, "streams", (_STREAM_SUFFIX,))
    bundle = Bundle.open(options.bundle)
    choices = {
        **encoding_choices(bundle, options),
        "caption": options.caption,
        "bare": options.bare,
    }
    pack(Header(width=1, height=1, caption=options.caption), b"", None)  # checked once
    work = _Encode(bundle, choices, options.max_pixels or DEFAULT_MAX_PIXELS)
    return run_folder(work, bundle, options, console)


def encoding_choices(bundle: Bundle, options: Namespace) -> dict[str, Any]:
    """What ``Codec.encode`` is given of the options of a rate, checked before any work.

    Raises UsageError.
    """
    count = pass_count(options.schedule or bundle.codec.schedule)
    if options.passes is not None:
        expect_int("passes", options.passes, 1, count)
    pack(Header(width=1, height=1, seed=options.seed), b"", None)
    return {
        "schedule": options.schedule,
        "passes": options.passes,
        "max_bytes": options.bytes,
        "seed": options.seed,
    }


class _Encode:
    """See FolderWork."""

    command, inputs, outputs = "encode", "images", "streams"
    suffixes: tuple[str, ...] = READ_SUFFIXES
    suffix = _STREAM_SUFFIX
    kinds: tuple[str, ...] = ("encoder", "entropy")
    described: Mapping[str, Any] = {}

    def __init__(self, bundle: Bundle, choices: Mapping[str, Any], max_pixels: int) -> None:
        self._bundle, self._choices, self._max_pixels = bundle, choices, max_pixels
        self.limit_bytes = max(MAX_IMAGE_BYTES, 4 * max_pixels)

    def source_sha256(self, data: bytes) -> str:
        return image_sha256(self._bundle, data, self._choices)

    def most_together(self, codec: Codec) -> int:
        return 1

    def alike(self, data: bytes) -> object:
        return None

    def coded(self, codec: Codec, data: Sequence[bytes]) -> Sequence[bytes]:
        limit = self._max_pixels
        photos = (read_image(image, max_pixels=limit) for image in data)
        return [codec.encode(p.pixels, max_pixels=limit, **self._choices) for p in photos]

    def contents(self, result: bytes) -> bytes:
        return result


def image_sha256(bundle: Bundle, data: bytes, choices: Mapping[str, Any]) -> str:
    """Hash (hexadecimal) of all that a stream depends on; ``choices``: of ``Codec.encode``."""
    made = {"caption": "", "bare": False, **choices}
    digest = hashlib.sha256(encode_manifest(bundle.manifest))
    digest.update(json.dumps(["encode", sorted(made.items())]).encode() + b"\n" + data)
    return digest.hexdigest()
