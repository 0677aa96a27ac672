"""Streams of other programs to .pco and back: the same tokens in another container."""

from __future__ import annotations

import numpy as np

from percoedge.bitstream.cod import pack_cod, unpack_cod
from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, Header, pack
from percoedge.engines.bundle import Bundle
from percoedge.errors import UsageError
from percoedge.runtime.decoding import Batch, open_stream, read_tokens
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.entropy import entropy_codec
from percoedge.runtime.settings import Settings

__all__ = ["cod_from_pco", "pco_from_cod"]

_PATCH = 16  # the authors' decoder takes sizes in multiples of this


def pco_from_cod(engines: EngineSet, data: bytes, *, bare: bool = False) -> bytes:
    """A ``.cod`` stream as a ``.pco`` one of a bundle of the same rate.

    Raises StreamError where the stream is of another rate, and EngineError.
    """
    bundle = engines.bundle
    constants = bundle.codec
    width, height, tokens = unpack_cod(data, constants.stride, _bits(bundle))
    with entropy_codec(engines, constants.schedule) as coder:
        coded = coder.encode(tokens, constants.schedule)
    return pack(Header(width, height), coded, None if bare else bundle.fingerprint)


def cod_from_pco(engines: EngineSet, data: bytes, *, bare: bool = False) -> bytes:
    """A ``.pco`` stream as a ``.cod`` one, whose size is rounded up to whole patches.

    Raises StreamError (BundleMismatchError for a stream of another bundle) and EngineError.
    """
    bundle = engines.bundle
    settings = Settings(bundle)
    stream = open_stream(data, settings, bare=bare, cut=False, max_pixels=DEFAULT_MAX_PIXELS)
    tokens = read_tokens(engines, Batch([stream], [0], settings))[0]
    unit = max(1, _PATCH // bundle.codec.stride)
    missing = [(0, -side % unit) for side in tokens.shape]
    return pack_cod(np.pad(tokens, missing, mode="edge"), bundle.codec.stride, _bits(bundle))


def _bits(bundle: Bundle) -> int:
    """Bits of a token. Raises UsageError where a codebook is no power of two."""
    size = bundle.codec.codebook_size
    if size & (size - 1):
        raise UsageError(
            f"expected a bundle whose codebook is a power of two, got {size} vectors in bundle "
            f"{bundle.name!r}; .cod streams are those of CoD-Lite"
        )
    return size.bit_length() - 1
