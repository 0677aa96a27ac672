"""The `.pco` container: one photo's header, caption and range-coded tokens as bytes.

Two framings of one body: *file* (magic, version, bundle fingerprint, checksum) and *bare* (the
body alone, for protocols that carry these elsewhere). Specified in FORMAT.md, sections 2 to 4.
Every limit is checked before anything is allocated by it. This module never looks into the tokens.
"""

from __future__ import annotations

import binascii
from dataclasses import dataclass
from typing import Final

from percoedge.arguments import expect_int, expect_number, expect_text
from percoedge.bitstream.captions import MAX_CAPTION_BYTES, pack_caption, unpack_caption
from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.errors import StreamError, UsageError
from percoedge.signatures import WRAPPED, format_name

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "FINGERPRINT_BYTES",
    "MAX_SEED",
    "MAX_SIDE",
    "MAX_STREAM_BYTES",
    "Header",
    "Stream",
    "max_token_bytes",
    "pack",
    "unpack",
]

MAX_SIDE: Final = 16384
"""Longest side of an image in pixels; two such sides make 2**28 pixels, the limit of the area."""

DEFAULT_MAX_PIXELS: Final = 1 << 26
"""Largest area that is encoded or decoded unless a caller allows more, 67,108,864 pixels.

Photos of 24, 48 and 61 megapixels are below, and what they need in memory fits a small computer. A
stream of 14 bytes or a PNG of 33 kB may announce 2**28 pixels, which does not.
"""

MAX_SEED: Final = (1 << 32) - 1

FINGERPRINT_BYTES: Final = 4

_MAGIC = b"\x50\xc0"
_VERSION = 1
_CHECKSUM_AT = len(_MAGIC) + 1 + FINGERPRINT_BYTES
_FRAMING_BYTES = _CHECKSUM_AT + 2
_SIZE_BYTES = 4
_HEAD_BYTES = 4096  # by which other formats are known
_MAX_CAPTION_PART = 2 + MAX_CAPTION_BYTES
_MAX_OPTIONS_PART = 9
_TOKEN_BLOCK = 8  # no bundle has more than 32 bits of tokens per 8x8 pixels

# Flags of the body, and bits of the presence byte of the option block.
_HAS_OPTIONS, _HAS_CAPTION, _RESERVED_FLAGS = 0x1, 0x2, 0xC
_SCHEDULE, _PASSES, _SEED, _STEPS, _GUIDANCE, _RESERVED_OPTIONS = 0x01, 0x02, 0x04, 0x08, 0x10, 0xE0

_GUIDANCE_UNITS = 16


@dataclass(frozen=True)
class Header:
    """What a stream says besides its tokens; None is "as the bundle does by default".

    `width`, `height`: 1..`MAX_SIDE` pixels. `schedule`: one of `SCHEDULES`. `passes_sent`: 1..the
    number of passes of the schedule (None: all). `seed`: of the noise, 0..2**32-1 (None: derived
    from the tokens). `steps`: hint, 1..255. `guidance`: hint, 0..15.9375 in steps of 1/16.
    `caption`: at most 1 KiB of UTF-8. `pack` raises UsageError for anything else.
    """

    width: int
    height: int
    schedule: str | None = None
    passes_sent: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    caption: str = ""


@dataclass(frozen=True)
class Stream:
    """A stream taken apart.

    `fingerprint`: 4 bytes, None in a bare stream. `tokens`: range-coded. `sizes`: bytes of each
    part, `framing`, `header`, `options`, `caption`, `tokens`. `checksum_ok`: whether the checksum
    is right; None in a bare stream, which has none.
    """

    header: Header
    fingerprint: bytes | None
    tokens: bytes
    sizes: dict[str, int]
    checksum_ok: bool | None

    @property
    def seed(self) -> int:
        """Seed of the noise, 0..2**32-1: the one sent, else the CRC-32 of the tokens' bytes."""
        return binascii.crc32(self.tokens) if self.header.seed is None else self.header.seed


def max_token_bytes(width: int, height: int) -> int:
    """Return the limit of the range-coded tokens of an image: 4 bytes per 8x8 pixels begun, and 1.

    Four tokens of 8 bits, coded uniformly, take all of the 4 bytes; what the range coder rounds
    seldom takes one more.
    """
    return 4 * -(-width // _TOKEN_BLOCK) * -(-height // _TOKEN_BLOCK) + 1


MAX_STREAM_BYTES: Final = (
    _FRAMING_BYTES
    + _SIZE_BYTES
    + _MAX_OPTIONS_PART
    + _MAX_CAPTION_PART
    + max_token_bytes(MAX_SIDE, MAX_SIDE)
)
"""A longer stream is refused unread; readers of files need not fetch more than one byte beyond."""


def pack(header: Header, tokens: bytes, fingerprint: bytes | None) -> bytes:
    """Return the stream of a header and range-coded tokens.

    `fingerprint`: 4 bytes of the bundle's fingerprint for the file framing, None for the bare one.
    Raises UsageError for a header out of its domain, tokens that end in a zero byte (they are not
    from a `TokenEncoder`) or are too many for the size of the image.
    """
    if tokens[-1:] == b"\0":
        raise UsageError("expected tokens from TokenEncoder.finish(); got a zero byte at their end")
    width = expect_int("width", header.width, 1, MAX_SIDE)
    height = expect_int("height", header.height, 1, MAX_SIDE)
    if len(tokens) > max_token_bytes(width, height):
        raise UsageError(
            f"expected at most {max_token_bytes(width, height)} bytes of tokens for "
            f"{width}x{height} pixels; got {len(tokens)}"
        )
    options = _pack_options(header)
    text = expect_text("caption", header.caption)
    caption = pack_caption(text) if text else b""
    flags = (_HAS_OPTIONS if options else 0) | (_HAS_CAPTION if caption else 0)
    size = (width - 1) << 18 | (height - 1) << 4 | flags
    body = size.to_bytes(_SIZE_BYTES, "big") + options + caption + tokens
    if fingerprint is None:
        return body
    if len(fingerprint) != FINGERPRINT_BYTES:
        raise UsageError(
            f"expected a fingerprint of {FINGERPRINT_BYTES} bytes; got {len(fingerprint)}"
        )
    start = _MAGIC + bytes([_VERSION]) + fingerprint
    return start + _checksum(start, body) + body


def unpack(data: bytes, *, bare: bool = False, cut: bool = False) -> Stream:
    """Take a stream apart.

    `bare`: the stream has the bare framing (the bytes do not tell). `cut`: accept a stream whose
    tokens are cut or damaged: the checksum is computed but not insisted on. Raises StreamError
    naming the rule that is broken; whether the bundle fits is for the caller to check.
    """
    data = bytes(data[: MAX_STREAM_BYTES + 1])
    if len(data) > MAX_STREAM_BYTES:
        raise StreamError(
            f"expected a stream of at most {MAX_STREAM_BYTES} bytes; got more: not a .pco stream"
        )
    fingerprint: bytes | None = None
    checksum_ok: bool | None = None
    body_at = 0
    if not bare:
        fingerprint, checksum_ok = _unpack_framing(data, insist=not cut)
        body_at = _FRAMING_BYTES
    size = int.from_bytes(_take(data, body_at, _SIZE_BYTES, "size of the image"), "big")
    width, height, flags = (size >> 18) + 1, (size >> 4 & 0x3FFF) + 1, size & 0xF
    if flags & _RESERVED_FLAGS:
        raise StreamError(
            f"expected the reserved flags to be 0; got flags {flags:#x}: "
            "a newer format, a damaged stream or the wrong framing"
        )
    options_at = caption_at = body_at + _SIZE_BYTES
    options: dict[str, int] = {}
    if flags & _HAS_OPTIONS:
        options, caption_at = _unpack_options(data, options_at)
    caption, tokens_at = "", caption_at
    if flags & _HAS_CAPTION:
        # No caption is longer than its part may be: hand over no more than that.
        caption, taken = unpack_caption(data[caption_at : caption_at + _MAX_CAPTION_PART])
        if not caption:
            raise StreamError("expected no caption flag for an empty caption; got the flag set")
        tokens_at += taken
    tokens = data[tokens_at:]
    if len(tokens) > max_token_bytes(width, height):
        raise StreamError(
            f"expected at most {max_token_bytes(width, height)} bytes of tokens for "
            f"{width}x{height} pixels; got {len(tokens)}"
        )
    if tokens[-1:] == b"\0" and not cut:
        raise StreamError("expected tokens without zero bytes at their end; got one: bytes added?")
    guidance = options.get("guidance")
    header = Header(
        width=width,
        height=height,
        schedule=SCHEDULES[options["schedule"]] if "schedule" in options else None,
        passes_sent=options.get("passes_sent"),
        seed=options.get("seed"),
        steps=options.get("steps"),
        guidance=None if guidance is None else guidance / _GUIDANCE_UNITS,
        caption=caption,
    )
    sizes = {
        "framing": body_at,
        "header": _SIZE_BYTES,
        "options": caption_at - options_at,
        "caption": tokens_at - caption_at,
        "tokens": len(tokens),
    }
    return Stream(header, fingerprint, tokens, sizes, checksum_ok)


def _checksum(start: bytes, body: bytes) -> bytes:
    """CRC-16 of everything in the file but itself, two bytes, big endian."""
    return binascii.crc_hqx(body, binascii.crc_hqx(start, 0)).to_bytes(2, "big")


def _unpack_framing(data: bytes, *, insist: bool) -> tuple[bytes, bool]:
    if data[: len(_MAGIC)] != _MAGIC:
        other = format_name(data[:_HEAD_BYTES])
        if other is not None:
            remedy = WRAPPED.get(other, "is it the right file?")
            raise StreamError(f"expected a .pco file, got {other}; {remedy}")
        raise StreamError(
            f"expected a .pco file, beginning with {_MAGIC.hex(' ')}; got "
            f"{data[: len(_MAGIC)].hex(' ') or 'nothing'}: for a bare stream say so "
            "(--bare, bare=True)"
        )
    version = _take(data, len(_MAGIC), 1, "version of the format")[0]
    if version != _VERSION:
        raise StreamError(
            f"expected version {_VERSION} of the .pco format; got {version}: "
            "a newer percoedge may read it"
        )
    start = _take(data, 0, _CHECKSUM_AT, "framing")
    checksum = _take(data, _CHECKSUM_AT, 2, "checksum")
    computed = _checksum(start, data[_FRAMING_BYTES:])
    if insist and checksum != computed:
        raise StreamError(
            f"expected the checksum {computed.hex()}; got {checksum.hex()}: the file is cut or "
            "corrupted; cut=True (--cut) decodes what is left of it"
        )
    return start[-FINGERPRINT_BYTES:], checksum == computed


def _pack_options(header: Header) -> bytes:
    """The option block, empty where every option is left to the bundle."""
    passes_limit = 255
    presence, fields = 0, b""
    if header.schedule is not None:
        passes_limit = pass_count(header.schedule)
        presence |= _SCHEDULE
        fields += bytes([SCHEDULES.index(header.schedule)])
    if header.passes_sent is not None:
        presence |= _PASSES
        fields += bytes([expect_int("passes_sent", header.passes_sent, 1, passes_limit)])
    if header.seed is not None:
        presence |= _SEED
        fields += expect_int("seed", header.seed, 0, MAX_SEED).to_bytes(4, "big")
    if header.steps is not None:
        presence |= _STEPS
        fields += bytes([expect_int("steps", header.steps, 1, 255)])
    if header.guidance is not None:
        units = expect_number("guidance", header.guidance, 0, 255 / _GUIDANCE_UNITS)
        units *= _GUIDANCE_UNITS
        if units != int(units):
            raise UsageError(
                f"expected a guidance of 0..15.9375 in steps of 1/16; got {header.guidance}: "
                "round it"
            )
        presence |= _GUIDANCE
        fields += bytes([int(units)])
    return bytes([presence]) + fields if presence else b""


def _unpack_options(data: bytes, at: int) -> tuple[dict[str, int], int]:
    """Return the options present, as integers, and where the block ends."""
    presence = _take(data, at, 1, "options")[0]
    at += 1
    if presence & _RESERVED_OPTIONS:
        raise StreamError(f"expected the reserved option bits to be 0; got {presence:#04x}")
    if not presence:
        raise StreamError("expected no option flag for an empty option block; got the flag set")
    options: dict[str, int] = {}
    for bit, name, n_bytes in (
        (_SCHEDULE, "schedule", 1),
        (_PASSES, "passes_sent", 1),
        (_SEED, "seed", 4),
        (_STEPS, "steps", 1),
        (_GUIDANCE, "guidance", 1),
    ):
        if presence & bit:
            options[name] = int.from_bytes(_take(data, at, n_bytes, name), "big")
            at += n_bytes
    schedule = options.get("schedule")
    if schedule is not None and schedule >= len(SCHEDULES):
        raise StreamError(f"expected a schedule id below {len(SCHEDULES)}; got {schedule}")
    passes_limit = 255 if schedule is None else pass_count(SCHEDULES[schedule])
    if not 1 <= options.get("passes_sent", 1) <= passes_limit:
        raise StreamError(f"expected 1..{passes_limit} passes sent; got {options['passes_sent']}")
    if options.get("steps") == 0:
        raise StreamError("expected a steps hint of 1..255; got 0")
    return options, at


def _take(data: bytes, at: int, n_bytes: int, what: str) -> bytes:
    part = data[at : at + n_bytes]
    if len(part) != n_bytes:
        raise StreamError(
            f"expected {n_bytes} bytes of {what}; got {len(part)}: the stream is cut before its "
            "tokens begin; fetch it again"
        )
    return part
