"""What must hold for any bytes at all, from the container down to the tokens; no neural nets.

`check` takes hostile bytes through everything they reach before the float graphs, in a codec whose
entropy graph is a few lines of numpy, and raises for whatever a decoder must never do. It knows
nothing of where the bytes come from: `fuzz_container.py` and the tests bring them.
"""

from __future__ import annotations

import binascii
import itertools
import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.captions import MAX_CAPTION_BYTES, pack_caption, unpack_caption
from percoedge.bitstream.container import Header, Stream, pack, unpack
from percoedge.bitstream.rangecoder import (
    DEFAULT,
    PURE,
    Coder,
    CutDecoder,
    TokenDecoder,
    TokenEncoder,
)
from percoedge.bitstream.schedules import pass_count
from percoedge.engines.bundle import Bundle, StoredGraph
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.engines.fake import FakeBackend, FakeEngine
from percoedge.errors import BundleMismatchError, StreamError
from percoedge.runtime.codec import Codec
from percoedge.runtime.entropy import EntropyCodec
from percoedge.runtime.info import lines_from_description

__all__ = [
    "FINGERPRINT",
    "FRAMING_BYTES",
    "K",
    "MAX_PIXELS",
    "SCHEDULE",
    "STRIDE",
    "TILE",
    "Broken",
    "Target",
    "as_file",
]

K = 50
STRIDE = 8
TILE = 4
SCHEDULE = "qlds-4"
FINGERPRINT = b"fuzz"
MAX_PIXELS = 2048
"""At most 256 tokens (of an image one pixel high), so that no input takes long."""

MAX_SECONDS = 1.0  # of processor time, so that a busy machine raises no alarm
MAX_GROWTH_BYTES = 256 << 20
FRAMING_BYTES = 9
_MAGIC = b"\x50\xc0\x01"
_CODER_SYMBOLS = 24  # of the comparison of the two range coders

# Rows of weights from nearly flat to all in one symbol, the extremes 1 and 2^16 among them.
_ROWS = 61
_SHIFTS = (np.arange(_ROWS)[:, None] * 7 + np.arange(K)[None, :] * 11) % (
    1 + np.arange(_ROWS)[:, None] % 17
)
_TABLE: NDArray[np.int32] = (1 << _SHIFTS).astype(np.int32)

_INPUTS = (TensorSpec("tokens", "int32", ("n", "h", "w")), TensorSpec("positions", "int32", ("p",)))
_OUTPUTS = (TensorSpec("weights", "int32", ("n", "p", K)),)


class Broken(Exception):
    """An input made the decoder do what it must not."""


def expect(holds: object, what: str) -> None:
    """Raise `Broken` unless it holds."""
    if not holds:
        raise Broken(what)


def as_file(body: bytes) -> bytes:
    """The file around a body, its checksum right, as a hostile writer would make it."""
    start = _MAGIC + FINGERPRINT
    checksum = binascii.crc_hqx(body, binascii.crc_hqx(start, 0))
    return start + checksum.to_bytes(2, "big") + body


def weights(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """In place of the entropy graph: weights 1..2^16 that depend on all tokens of the tile."""
    flat = feeds["tokens"].reshape(len(feeds["tokens"]), -1)
    context = flat @ np.arange(1, flat.shape[1] + 1, dtype=np.int32)
    return {"weights": _TABLE[(context[:, None] + feeds["positions"] * 5) % _ROWS]}


class _Models(Bundle):
    """The constants of a bundle that has no files."""

    def __init__(self) -> None:
        self._constants = CodecConstants(
            stride=STRIDE,
            codebook_size=K,
            latent_channels=4,
            latent_stride=4,
            schedule=SCHEDULE,
            steps=2,
            guidance=1.0,
            entropy_tile=TILE,
            flow_tile=4,
            flow_overlap=1,
            flow_batch=1,
            decoder_tile=4,
            encoder_margin=1,
            decoder_margin=1,
            captions_condition=False,
        )

    @property
    def name(self) -> str:
        return "fuzz"

    @property
    def codec(self) -> CodecConstants:
        return self._constants

    @property
    def fingerprint(self) -> bytes:
        return FINGERPRINT

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("entropy",)

    def graph(self, kind: str, variant: str) -> StoredGraph:
        source = GraphSource(kind, variant, b"", {}, _INPUTS, _OUTPUTS)
        return StoredGraph(kind, variant, source.sha256, _INPUTS, _OUTPUTS, source.read)


class Target:
    """The codec that inputs are tried on; one serves for any number of them."""

    def __init__(self) -> None:
        self.engine = FakeEngine(_INPUTS, _OUTPUTS, weights)
        self.coder = EntropyCodec(self.engine, K, TILE)
        self._backend = FakeBackend({"entropy": weights})
        self.codec = Codec(_Models(), self._backend)
        self.codec.load_engines(["entropy"])
        self.decoded = 0

    def forget(self) -> None:
        """Drop what the fakes have recorded."""
        self.engine.calls.clear()
        for _, engine in self._backend.engines:
            engine.calls.clear()

    def check(self, data: bytes) -> None:
        """Raise `Broken`, or whatever went wrong, unless every rule holds for this input.

        It counts the inputs whose tokens were decoded, cut or not, in `decoded`.
        """
        began, memory = time.process_time(), _peak_bytes()
        # One input in eight, told by their bytes alone, goes through what costs more.
        thorough = binascii.crc32(data) % 8 == 0
        bodies = {data}
        if data[:2] == _MAGIC[:2]:
            bodies.add(data[FRAMING_BYTES:])
            for cut in (False, True):
                self._check_file(data, cut, thorough)
        framings = itertools.product(bodies, (False, True))
        decoded = [self._check_body(body, cut, thorough) for body, cut in framings]
        self.decoded += any(decoded)
        if thorough:
            _check_caption(data)
            _check_coders(data)
        self.forget()
        expect(time.process_time() - began < MAX_SECONDS, f"within {MAX_SECONDS} s")
        expect(_peak_bytes() - memory < MAX_GROWTH_BYTES, f"within {MAX_GROWTH_BYTES} bytes")

    def _check_file(self, data: bytes, cut: bool, thorough: bool) -> None:
        """The bytes as a file, whatever its checksum and fingerprint."""
        stream = self._unpack(data, bare=False, cut=cut, thorough=thorough)
        if stream is None:
            return
        sound = data == as_file(data[FRAMING_BYTES:])
        own = stream.fingerprint == FINGERPRINT
        expect(stream.checksum_ok == sound or not own, "the checksum computed")
        expect(cut or stream.checksum_ok, "the checksum insisted on")
        try:
            self.codec.decode_tokens(data, cut=cut, max_pixels=MAX_PIXELS)
        except BundleMismatchError:
            expect(not own, "no mismatch with its own bundle")
        except StreamError:
            expect(own, "other bundles told before all else")
        else:
            expect(own, "other bundles refused")

    def _check_body(self, body: bytes, cut: bool, thorough: bool) -> bool:
        """The bytes as a bare stream, and as the body of a file whose checksum is right.

        Returns whether its tokens were decoded.
        """
        stream = self._unpack(body, bare=True, cut=cut, thorough=thorough)
        if thorough:
            framed = self._unpack(as_file(body), bare=False, cut=cut, thorough=True)
            expect((stream is None) == (framed is None), "both framings accepted or neither")
            if stream is not None and framed is not None:
                expect(stream.header == framed.header, "one header in both framings")
                expect(stream.tokens == framed.tokens, "the same tokens in both framings")
        if stream is None:
            return False
        tokens = self._tokens(body, bare=True, cut=cut)
        if tokens is None:
            return False
        header = stream.header
        expect(tokens.dtype == np.int32 and tokens.shape == _grid(header), "a grid of that size")
        expect(tokens.min() >= 0 and tokens.max() < K, "tokens of the codebook")
        expect(header.width * header.height <= MAX_PIXELS, "the limit of pixels kept")
        if thorough:
            again = self._tokens(body, bare=True, cut=cut)
            expect(again is not None and (again == tokens).all(), "the same tokens again")
            if not cut:
                self._check_encoding(stream, tokens)
                whole = self._tokens(as_file(body), bare=False, cut=False)
                expect(whole is not None and (whole == tokens).all(), "framings decode alike")
            self._check_progressive(stream, tokens, cut)
            description = self.codec.info(body, bare=True, cut=cut)
            json.dumps(description)
            lines_from_description("fuzz", description)
        return True

    def _unpack(self, data: bytes, *, bare: bool, cut: bool, thorough: bool) -> Stream | None:
        """Take the stream apart and, if it is whole, together again; None where it is refused."""
        try:
            stream = unpack(data, bare=bare, cut=cut)
        except StreamError as error:
            expect(str(error), "a message that says why")
            return None
        expect(sum(stream.sizes.values()) == len(data), "every byte accounted for")
        if not cut and (thorough or not stream.header.caption):  # packing captions is slow
            _check_packing(stream, data)
        return stream

    def _tokens(self, data: bytes, *, bare: bool, cut: bool) -> NDArray[np.int32] | None:
        try:
            return self.codec.decode_tokens(data, bare=bare, cut=cut, max_pixels=MAX_PIXELS)
        except StreamError as error:
            expect(str(error), "a message that says why")
            return None

    def _check_encoding(self, stream: Stream, tokens: NDArray[np.int32]) -> None:
        """What was decoded encodes to canonical bytes, which are never longer, and decodes back."""
        schedule, sent = stream.header.schedule or SCHEDULE, stream.header.passes_sent
        canonical = self.coder.encode(tokens, schedule, sent)
        expect(len(canonical) <= len(stream.tokens), "no stream shorter than the canonical one")
        decoded = self.coder.decode_partial(
            canonical, _grid(stream.header), schedule, passes_sent=sent, seed=stream.seed
        )
        expect((decoded == tokens).all(), "the canonical stream decodes to the same tokens")

    def _check_progressive(self, stream: Stream, tokens: NDArray[np.int32], cut: bool) -> None:
        """Pass after pass more is known, and the last grid is that of decoding at once."""
        schedule, sent = stream.header.schedule or SCHEDULE, stream.header.passes_sent
        grids = list(
            self.coder.decode_progressive(
                stream.tokens,
                _grid(stream.header),
                schedule,
                passes_sent=sent,
                cut=None if cut else False,  # as for a stream without checksum
                seed=stream.seed,
            )
        )
        known = [grid.known for grid in grids]
        expect(known == sorted(set(known)) and known[-1] <= tokens.size, "known tokens increase")
        expect((grids[-1].tokens == tokens).all(), "progressive decoding ends in the same tokens")
        expect(
            cut or sent not in (None, pass_count(schedule)) or known[-1] == tokens.size,
            "a whole stream known to the end",
        )


def _grid(header: Header) -> tuple[int, int]:
    return -(-header.height // STRIDE), -(-header.width // STRIDE)


def _check_packing(stream: Stream, data: bytes) -> None:
    """An accepted stream packs to the same bytes.

    Only a caption has several spellings: then its own shortest one is where packing settles.
    """
    packed = pack(stream.header, stream.tokens, stream.fingerprint)
    if packed == data:
        return
    expect(stream.header.caption, "one spelling of each stream")
    again = unpack(packed, bare=stream.fingerprint is None)
    expect(
        (again.header, again.tokens, again.fingerprint)
        == (stream.header, stream.tokens, stream.fingerprint),
        "packing loses nothing",
    )
    expect(pack(again.header, again.tokens, again.fingerprint) == packed, "packing settles")


def _check_caption(data: bytes) -> None:
    try:
        text, taken = unpack_caption(data)
    except StreamError as error:
        expect(str(error), "a message that says why")
        return
    expect(0 < taken <= len(data), "a caption that lies in the data")
    expect(len(text.encode()) <= MAX_CAPTION_BYTES, "the limit of captions kept")
    packed = pack_caption(text)
    expect(unpack_caption(packed) == (text, len(packed)), "captions survive packing")


def _check_coders(data: bytes) -> None:
    """Both range coders make the same of any bytes, and of cut ones nothing that is untrue."""
    expect(_decoded(data, DEFAULT) == _decoded(data, PURE), "both range coders decode alike")
    whole = _decoded(data, DEFAULT)
    for length in {len(data), len(data) // 2}:
        certain = _certain(data[:length], DEFAULT)
        expect(certain == _certain(data[:length], PURE), "both range coders cut alike")
        if len(whole) == _CODER_SYMBOLS:
            expect(
                certain is not None and whole[: len(certain)] == certain,
                "certain symbols are those of the whole",
            )
    if len(whole) == _CODER_SYMBOLS:
        encoders = TokenEncoder(DEFAULT), TokenEncoder(PURE)
        for encoder in encoders:
            encoder.encode(whole, _TABLE[:_CODER_SYMBOLS])
        expect(encoders[0].finish() == encoders[1].finish(), "both range coders encode alike")


def _decoded(data: bytes, coder: Coder) -> list[int]:
    """Symbols up to the first that is refused."""
    decoder, symbols = TokenDecoder(data, coder), []
    try:
        for row in range(_CODER_SYMBOLS):
            symbols += decoder.decode(_TABLE[row : row + 1]).tolist()
    except StreamError:
        pass
    return symbols


def _certain(data: bytes, coder: Coder) -> list[int] | None:
    """Symbols that the bytes settle; None where they are refused."""
    decoder = CutDecoder(data, coder)
    certain: list[int] = []
    try:
        for rows in np.split(_TABLE[:_CODER_SYMBOLS], 3):
            symbols, count = decoder.decode(rows)
            expect((symbols[count:] == K).all(), "MASK where nothing is certain")
            certain += symbols[:count].tolist()
    except StreamError:
        return None
    return certain


def _peak_bytes() -> int:
    """The most memory this process has held; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
