"""``percoedge decode`` of a folder: every stream to an image.

On a GPU, images of one size go through together, as many as its engines take; on a CPU one by one
takes the least work.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_STREAM_BYTES, unpack
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import encode_manifest
from percoedge.errors import PercoedgeError
from percoedge.runtime.cli.console import Console
from percoedge.runtime.cli.folder.work import check_folder, run_folder
from percoedge.runtime.codec import Codec
from percoedge.runtime.files import STANDARD_STREAM
from percoedge.runtime.images import READ_SUFFIXES, format_of, image_bytes, suffix_of
from percoedge.runtime.settings import Settings

__all__ = ["decode_folder", "stream_sha256"]


def decode_folder(options: Namespace, console: Console) -> int:
    """Decode every .pco file in a folder into another; returns and raises as ``run_folder``."""
    check_folder(options, "images", READ_SUFFIXES)
    kind = format_of(STANDARD_STREAM, options.format)
    bundle = Bundle.open(options.bundle)
    settings = Settings(bundle, options.steps, options.guidance, options.seed)  # checked once
    return run_folder(_Decode(settings, options, kind), bundle, options, console)


class _Decode:
    """See FolderWork."""

    command, inputs, outputs = "decode", "streams", "images"
    suffixes: tuple[str, ...] = (".pco",)
    limit_bytes = MAX_STREAM_BYTES
    kinds: tuple[str, ...] = ("entropy", "decoder")

    def __init__(self, settings: Settings, options: Namespace, kind: str) -> None:
        self.suffix = suffix_of(kind)
        self.described: Mapping[str, Any] = {"format": kind}
        self._settings, self._kind = settings, kind
        self._bare, self._cut = options.bare, options.cut
        self._how: dict[str, Any] = {
            "steps": settings.steps,
            "guidance": settings.guidance,
            "seed": settings.seed,
            "bare": options.bare,
            "max_pixels": options.max_pixels or DEFAULT_MAX_PIXELS,
        }

    def source_sha256(self, data: bytes) -> str:
        return stream_sha256(self._settings, data, self._kind, bare=self._bare, cut=self._cut)

    def most_together(self, codec: Codec) -> int:
        return 1 if self._cut else codec.max_batch or 1

    def alike(self, data: bytes) -> object:
        with contextlib.suppress(PercoedgeError):  # told when its turn comes
            header = unpack(data, bare=self._bare).header
            return header.width, header.height
        return None

    def coded(self, codec: Codec, data: Sequence[bytes]) -> Sequence[Image.Image]:
        if len(data) == 1:
            return [codec.decode(data[0], cut=self._cut, **self._how)]
        return codec.decode_batch(data, **self._how)

    def contents(self, result: Image.Image) -> bytes:
        return image_bytes(result, self._kind)


def stream_sha256(settings: Settings, data: bytes, kind: str, *, bare: bool, cut: bool) -> str:
    """Hash (hexadecimal) of all that an image of format ``kind`` depends on."""
    choices = [settings.steps, settings.guidance, settings.seed, bare, cut, kind]
    digest = hashlib.sha256(encode_manifest(settings.bundle.manifest))
    digest.update(json.dumps(choices).encode() + b"\n" + data)
    return digest.hexdigest()
