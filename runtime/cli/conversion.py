"""Streams of other programs to .pco and back: the same tokens in another container."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.cod import pack_cod, unpack_cod
from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_SIDE, Header, pack
from percoedge.bitstream.perco import pack_perco, unpack_perco
from percoedge.engines.bundle import Bundle
from percoedge.errors import StreamError, UsageError
from percoedge.runtime.decoding import Batch, check_pixels, open_stream, read_tokens
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.entropy import Tokens, entropy_codec
from percoedge.runtime.settings import Settings

__all__ = ["cod_from_pco", "pco_from_cod", "pco_from_perco", "perco_from_pco"]

_PATCH = 16  # CoD-Lite's decoder takes sizes in multiples of this


def pco_from_cod(
    engines: EngineSet, data: bytes, *, bare: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> bytes:
    """A ``.cod`` stream of CoD-Lite as a ``.pco`` one of a bundle of the same rate.

    Raises StreamError where the stream is of another rate, and EngineError.
    """
    bundle = engines.bundle
    width, height, tokens = unpack_cod(data, bundle.codec.stride, _bits(bundle))
    return _packed(engines, _header(width, height, max_pixels), tokens, bare)


def cod_from_pco(
    engines: EngineSet, data: bytes, *, bare: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> bytes:
    """A ``.pco`` stream as a ``.cod`` one, whose size is rounded up to whole patches.

    A caption is left out. Raises StreamError (BundleMismatchError for a stream of another bundle)
    and EngineError.
    """
    codec = engines.bundle.codec
    _, tokens = _unpacked(engines, data, bare, max_pixels)
    unit = max(1, _PATCH // codec.stride)
    missing = [(0, -side % unit) for side in tokens.shape]
    return pack_cod(np.pad(tokens, missing, mode="edge"), codec.stride, _bits(engines.bundle))


def pco_from_perco(
    engines: EngineSet, data: bytes, *, bare: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> bytes:
    """A ``.pkl`` stream of PerCo (SD) as a ``.pco`` one; errors are those of ``pco_from_cod``."""
    bundle = engines.bundle
    width, height, caption, tokens = unpack_perco(data, bundle.codec.stride, _bits(bundle))
    header = _header(width, height, max_pixels, caption)
    return _packed(engines, header, tokens, bare)


def perco_from_pco(
    engines: EngineSet, data: bytes, *, bare: bool = False, max_pixels: int = DEFAULT_MAX_PIXELS
) -> bytes:
    """A ``.pco`` stream as a ``.pkl`` one, whose size is rounded up to whole tokens.

    Errors are those of ``cod_from_pco``.
    """
    bundle = engines.bundle
    caption, tokens = _unpacked(engines, data, bare, max_pixels)
    return pack_perco(tokens, bundle.codec.stride, _bits(bundle), caption)


def _packed(engines: EngineSet, header: Header, tokens: Tokens, bare: bool) -> bytes:
    schedule = engines.bundle.codec.schedule
    with entropy_codec(engines, schedule) as coder:
        coded = coder.encode(tokens, schedule)
    return pack(header, coded, None if bare else engines.bundle.fingerprint)


def _header(width: int, height: int, max_pixels: int, caption: str = "") -> Header:
    """Raises StreamError for a size that no ``.pco`` stream has, or of more pixels than allowed."""
    if max(width, height) > MAX_SIDE:
        raise StreamError(
            f"expected an image of at most {MAX_SIDE} pixels a side, got {width}x{height}"
        )
    check_pixels(width, height, max_pixels)
    return Header(width, height, caption=caption)


def _unpacked(
    engines: EngineSet, data: bytes, bare: bool, max_pixels: int
) -> tuple[str, NDArray[np.int32]]:
    """Caption, and tokens (h,w), of a stream of the bundle."""
    settings = Settings(engines.bundle)
    stream = open_stream(data, settings, bare=bare, cut=False, max_pixels=max_pixels)
    return stream.header.caption, read_tokens(engines, Batch([stream], [], settings))[0]


def _bits(bundle: Bundle) -> int:
    """Bits of a token. Raises UsageError where a codebook is no power of two."""
    size = bundle.codec.codebook_size
    if size & (size - 1):
        raise UsageError(
            f"expected a bundle whose codebook is a power of two, got {size} vectors in bundle "
            f"{bundle.name!r}; tokens of .cod and .pkl streams have whole bits"
        )
    return size.bit_length() - 1
