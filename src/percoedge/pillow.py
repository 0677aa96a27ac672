"""Pillow plugin: after ``import percoedge.pillow``, Pillow opens and saves ``.pco`` files.

    import percoedge.pillow
    from PIL import Image

    Image.open("photo.jpg").save("photo.pco", caption="a red barn")
    Image.open("photo.pco").show()

Opening reads the header only; the models are loaded when pixels are asked for, once for all
files. The codec is ``Codec.load("tiny")`` unless `use_codec` names another. What Pillow opens can
be loaded: its own limit, ``Image.MAX_IMAGE_PIXELS``, is the one that counts. Saving refuses more
than 2**26 pixels, as `Codec.encode` does, unless ``max_pixels`` is given.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageFile

from percoedge.bitstream.container import MAX_STREAM_BYTES, unpack
from percoedge.errors import StreamError

if TYPE_CHECKING:
    from percoedge.runtime.codec import Codec

__all__ = ["FORMAT", "PcoFileError", "use_codec"]

FORMAT = "PCO"
"""Pillow's name for the format: ``Image.open(name).format``, ``image.save(name, "PCO")``."""

_MAGIC = b"\x50\xc0"
_READ_LIMIT_BYTES = MAX_STREAM_BYTES + 1  # one more than is legal, so that unpack can say so
_SAVE_OPTIONS = ("caption", "schedule", "passes", "max_bytes", "seed", "max_pixels")

_codecs: list[Codec] = []  # none or one: the codec in use


def use_codec(codec: Codec | None) -> None:
    """Open and save with this codec from now on; None goes back to the default one.

    The codec given is not closed here; it belongs to the caller.
    """
    _codecs[:] = [] if codec is None else [codec]


def _codec() -> Codec:
    if not _codecs:
        from percoedge.runtime.codec import Codec

        _codecs.append(Codec.load("tiny"))
    return _codecs[0]


class PcoFileError(StreamError, OSError):
    """A damaged ``.pco`` file, or one of another bundle: an OSError, as Pillow's callers expect."""


@contextlib.contextmanager
def _as_file_error() -> Iterator[None]:
    try:
        yield
    except StreamError as error:
        raise PcoFileError(str(error)) from error


class PcoImageFile(ImageFile.ImageFile):
    """A ``.pco`` file: mode "RGB"; a caption, where there is one, is in ``info["caption"]``.

    Opening and loading raise PcoFileError when the magic is right and the rest is not.
    """

    format = FORMAT
    format_description = "percoedge stream"

    def _open(self) -> None:
        with _as_file_error():
            header = unpack(self.fp.read(_READ_LIMIT_BYTES)).header  # type: ignore[union-attr]
        self._size = (header.width, header.height)
        self._mode = "RGB"
        if header.caption:
            self.info["caption"] = header.caption
        self.tile = [ImageFile._Tile("percoedge", (0, 0, *self.size), 0, None)]


class _Decoder(ImageFile.PyDecoder):
    _pulls_fd = True

    def decode(self, buffer: object) -> tuple[int, int]:
        data = self.fd.read(_READ_LIMIT_BYTES)  # type: ignore[union-attr]
        # Image.open has held the size against Pillow's own limit.
        max_pixels = self.state.xsize * self.state.ysize
        with _as_file_error():
            self.set_as_raw(_codec().decode(data, max_pixels=max_pixels).tobytes())
        return -1, 0  # all is read, no error


def _save(image: Image.Image, stream: IO[bytes], filename: str | bytes) -> None:
    """Encode; `_SAVE_OPTIONS` of `Codec.encode` may be given."""
    given = image.encoderinfo
    options = {name: given[name] for name in _SAVE_OPTIONS if name in given}
    stream.write(_codec().encode(image, **options))


Image.register_open(FORMAT, PcoImageFile, lambda prefix: prefix.startswith(_MAGIC))
Image.register_save(FORMAT, _save)
Image.register_decoder("percoedge", _Decoder)
Image.register_extension(FORMAT, ".pco")
Image.register_mime(FORMAT, "image/x-percoedge")
