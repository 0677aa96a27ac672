"""From pixels to a stream: the encoder graph tile by tile, the range coder, the container."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.container import MAX_STREAM_BYTES, Header, pack
from percoedge.bitstream.schedules import pass_count
from percoedge.errors import UsageError
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.entropy import Tokens, entropy_codec
from percoedge.runtime.settings import schedule_of
from percoedge.runtime.tiling.tiles import context_tiles, grid_of

__all__ = ["encode", "encode_within", "tokens_from_pixels"]


def encode(
    engines: EngineSet, pixels: NDArray[np.uint8], header: Header, fingerprint: bytes | None
) -> bytes:
    """Encode pixels uint8 (H,W,3), of the size in the header, to the stream that it announces.

    ``fingerprint``: 4 bytes for the file framing, None for the bare one. Raises UsageError for a
    header out of its domain, before any engine is loaded, or EngineError.
    """
    pack(header, b"", fingerprint)  # finds a bad caption or seed before the work is done
    tokens = tokens_from_pixels(engines, pixels)
    schedule = schedule_of(header, engines.bundle)
    with entropy_codec(engines, schedule) as coder, engines.clock.timed("entropy coding"):
        data = coder.encode(tokens, schedule, header.passes_sent)
    return pack(header, data, fingerprint)


def encode_within(
    engines: EngineSet,
    pixels: NDArray[np.uint8],
    header: Header,
    fingerprint: bytes | None,
    max_bytes: int,
) -> bytes:
    """Encode as ``encode`` does, with the most passes whose whole stream has at most so many bytes.

    ``header.passes_sent`` is not looked at. Passes are coded until no longer stream can fit, each
    once. Raises UsageError when no stream fits, too.
    """
    pack(header, b"", fingerprint)
    tokens = tokens_from_pixels(engines, pixels)
    schedule = schedule_of(header, engines.bundle)
    fitting, smallest_bytes = b"", MAX_STREAM_BYTES
    with entropy_codec(engines, schedule) as coder, engines.clock.timed("entropy coding"):
        for passes, data in enumerate(coder.encode_progressive(tokens, schedule), 1):
            part = None if passes == pass_count(schedule) else passes
            stream = pack(replace(header, passes_sent=part), data, fingerprint)
            smallest_bytes = min(smallest_bytes, len(stream))
            if len(stream) <= max_bytes:
                fitting = stream
            # A stream of all passes does not say how many: it may be shorter than one of fewer.
            least_bytes = len(pack(replace(header, passes_sent=None), data, fingerprint))
            if least_bytes > max_bytes and least_bytes >= smallest_bytes:
                break
    if not fitting:
        raise UsageError(
            f"expected max_bytes (--bytes) of {smallest_bytes} or more, which the smallest stream "
            f"of this image takes, got {max_bytes}; allow more bytes or shorten the caption"
        )
    return fitting


def tokens_from_pixels(engines: EngineSet, pixels: NDArray[np.uint8]) -> Tokens:
    """Tokens int32 (h,w) of pixels uint8 (H,W,3), edges repeated up to whole tokens.

    Tiles have a margin around them as wide as the encoder sees, so that cutting changes no token.
    Raises EngineError.
    """
    constants = engines.bundle.codec
    stride = constants.stride
    grid = grid_of(pixels.shape[0], pixels.shape[1], stride)
    tokens = np.empty(grid, np.int32)
    engines.require_memory("encoder", tokens.size * stride**2)
    with engines.use("encoder") as engine, engines.clock.timed("encoder"):
        pairs = context_tiles(
            *grid, constants.encoder_tile, constants.encoder_margin, engine.max_batch
        )
        for outer, inner in pairs:
            tile = pixels[outer.scaled(stride)]
            whole = (outer.shape[0] * stride, outer.shape[1] * stride, 3)
            missing = [(0, side - got) for side, got in zip(whole, tile.shape, strict=True)]
            image = np.pad(tile, missing, mode="edge")[None]
            coded = np.asarray(engine.run({"image": image})["tokens"])[0]
            top, left = inner.top - outer.top, inner.left - outer.left
            rows, columns = inner.shape
            tokens[inner.slices] = coded[top : top + rows, left : left + columns]
    return tokens
