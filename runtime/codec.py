"""The codec: photos to .pco streams and back, through the engines of one bundle."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, Header, Stream, pack, unpack
from percoedge.bitstream.schedules import pass_count
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.engines.selection import select
from percoedge.errors import BundleMismatchError, StreamError, UsageError
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.entropy import DecodedTokens, EntropyCodec
from percoedge.runtime.images import Source, read_image
from percoedge.runtime.info import describe
from percoedge.runtime.rendering import batch_parts, render
from percoedge.runtime.settings import Settings
from percoedge.runtime.text import TextConditioner
from percoedge.runtime.tiles import context_tiles

__all__ = ["DEFAULT_MAX_PIXELS", "Codec", "ProgressiveImage"]

Tokens = NDArray[np.int32]


@dataclass(frozen=True)
class ProgressiveImage:
    """An image after one more pass: ``known`` of ``total`` tokens read, the others sampled."""

    image: Image.Image
    known: int
    total: int


class Codec:
    """Encodes and decodes with one bundle on one backend; make one with ``Codec.load``.

    Engines are loaded at their first use and kept, or with ``low_memory`` freed after each stage.
    Threads may share a codec; with ``low_memory`` they take turns at the engines.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, low_memory: bool = False) -> None:
        self.bundle = bundle
        self.backend = backend
        self._engines = EngineSet(bundle, backend, low_memory=low_memory)
        self._text = TextConditioner(self._engines)

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage of this thread's last call, the loading of engines under "load"."""
        return dict(self._engines.timings_ms)

    @classmethod
    def load(
        cls,
        bundle: str | PathLike[str] | Bundle = "tiny",
        backend: str | Backend = "auto",
        *,
        threads: int | None = None,
        low_memory: bool = False,
    ) -> Codec:
        """Open a bundle (a shipped name, a directory, a .zip) on a backend.

        ``backend`` is "auto" for the best that works here, one of ``percoedge doctor``'s names, or
        an object of that protocol; ``threads`` limits its CPU threads. Raises BundleError,
        BackendError or UsageError.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        if isinstance(backend, str):
            backend = select(backend, bundle=opened, threads=threads)
        return cls(opened, backend, low_memory=low_memory)

    # ---- encode ---------------------------------------------------------------------------------

    def encode(
        self,
        image: Source,
        *,
        caption: str = "",
        schedule: str | None = None,
        passes: int | None = None,
        seed: int | None = None,
        bare: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> bytes:
        """Encode a photo (anything that ``read_image`` takes) to a stream.

        ``caption``: at most 1 KiB of UTF-8, stored, and a condition of the decoder where the bundle
        has text towers. ``schedule``: a name of
        ``percoedge.bitstream.schedules.SCHEDULES``, None for the bundle's. ``passes``: send only
        the first so many passes; the decoder samples the rest. ``seed``: of the decoder's noise
        (0..2^32-1), None to derive it from the stream. ``bare``: without magic, fingerprint and
        checksum. ``max_pixels``: refuse larger images; decoders refuse them, too, unless they are
        told otherwise. Raises ImageError, InputError, UsageError or EngineError.
        """
        chosen = self.bundle.codec.schedule if schedule is None else schedule
        count = pass_count(chosen)
        if passes is not None and passes not in range(1, count + 1):
            raise UsageError(f"expected 1 to {count} passes of schedule {chosen!r}, got {passes}")
        self._engines.restart_clock()
        with self._engines.timed("read image"):
            pixels = read_image(image, max_pixels=max_pixels).pixels
        height, width = pixels.shape[:2]
        header = Header(
            width=width,
            height=height,
            schedule=None if chosen == self.bundle.codec.schedule else chosen,
            passes_sent=None if passes == count else passes,
            seed=seed,
            caption=caption,
        )
        fingerprint = None if bare else self.bundle.fingerprint
        pack(header, b"", fingerprint)  # a bad caption or seed is told before the work is done
        tokens = self._tokens(pixels)
        with self._entropy(chosen) as coder, self._engines.timed("entropy coding"):
            data = coder.encode(tokens, chosen, header.passes_sent)
        return pack(header, data, fingerprint)

    def tokens(self, image: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tokens:
        """Tokens int32 (h,w) of a photo: what a stream of all passes carries."""
        self._engines.restart_clock()
        return self._tokens(read_image(image, max_pixels=max_pixels).pixels)

    def _tokens(self, pixels: NDArray[np.uint8]) -> Tokens:
        constants = self.bundle.codec
        stride = constants.stride
        grid = self._grid(*pixels.shape[:2])
        tokens = np.empty(grid, np.int32)
        with self._engines.use("encoder") as engine, self._engines.timed("encoder"):
            side, margin = constants.entropy_tile, constants.encoder_margin
            for outer, inner in context_tiles(*grid, side, margin):
                tile = pixels[outer.scaled(stride)]
                whole = (outer.shape[0] * stride, outer.shape[1] * stride, 3)
                missing = [(0, side - got) for side, got in zip(whole, tile.shape, strict=True)]
                image = np.pad(tile, missing, mode="edge")[None]
                coded = np.asarray(engine.run({"image": image})["tokens"])[0]
                top, left = inner.top - outer.top, inner.left - outer.left
                size = inner.shape
                tokens[inner.slices] = coded[top : top + size[0], left : left + size[1]]
        return tokens

    # ---- decode ---------------------------------------------------------------------------------

    def decode(
        self,
        data: bytes,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        bare: bool = False,
        cut: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Image.Image:
        """Decode a stream to an RGB image of the size that was encoded.

        ``steps`` (1..255), ``guidance`` and ``seed`` replace what the stream or else the bundle
        says. ``cut``: decode what is left of a file that was cut short; missing tokens are sampled.
        The same call gives the same image on the same machine, and the same tokens on every one.
        Raises StreamError (BundleMismatchError for a stream of another bundle), UsageError or
        EngineError.
        """
        settings = Settings(self.bundle, steps, guidance, seed)
        self._engines.restart_clock()
        stream = self._unpack(data, bare=bare, cut=cut, max_pixels=max_pixels)
        return self._images([stream], settings, cut)[0]

    def decode_batch(
        self,
        streams: Sequence[bytes],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        bare: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> list[Image.Image]:
        """Decode several streams; those of one size and the same settings run together.

        Images come back in the order of the streams, and are what ``decode`` gives, whatever else
        is in the batch, up to the last bits of floating point; int8 graphs may round these to the
        next of their steps, which the eye does not see (above 40 dB). Memory grows with the batch
        up to ``BATCH_PIXELS``; beyond, only images and a latent for each are kept. Raises as
        ``decode`` does, for the first stream that is wrong, before anything is decoded.
        """
        settings = Settings(self.bundle, steps, guidance, seed)
        self._engines.restart_clock()
        unpacked = [
            self._unpack(data, bare=bare, cut=False, max_pixels=max_pixels) for data in streams
        ]
        groups: dict[object, list[int]] = {}
        for index, stream in enumerate(unpacked):
            header = stream.header
            key = (
                *(header.width, header.height, header.schedule),
                *(header.passes_sent, header.steps, header.guidance),
            )
            groups.setdefault(key, []).append(index)
        images: dict[int, Image.Image] = {}
        for members in groups.values():
            batch = self._images([unpacked[i] for i in members], settings)
            images.update(zip(members, batch, strict=True))
        return [images[index] for index in range(len(streams))]

    def decode_tokens(
        self,
        data: bytes,
        *,
        bare: bool = False,
        cut: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Tokens:
        """Tokens int32 (h,w) of a stream, sampled where not sent. Raises as ``decode``."""
        self._engines.restart_clock()
        stream = self._unpack(data, bare=bare, cut=cut, max_pixels=max_pixels)
        tokens: Tokens = self._tokens_of([stream], Settings(self.bundle), cut)[0]
        return tokens

    def decode_progressive(
        self,
        data: bytes,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        bare: bool = False,
        cut: bool = True,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Iterator[ProgressiveImage]:
        """Yield an image after each pass of a stream that may be cut anywhere behind its header.

        The last image is that of ``decode``. Raises as ``decode`` does, at the first image or, for
        tokens that no encoder makes, later. With ``low_memory`` all tokens are read first.
        """
        settings = Settings(self.bundle, steps, guidance, seed)
        self._engines.restart_clock()
        stream = self._unpack(data, bare=bare, cut=cut, max_pixels=max_pixels)
        grids = self._grids(stream, settings, cut)
        parts = self._parts([stream])
        conditions = self._text.condition([[stream.header.caption]])
        for grid in list(grids) if self._engines.low_memory else grids:
            tokens = grid.tokens[None]
            image = render(self._engines, [stream], tokens, settings, parts, conditions)[0]
            yield ProgressiveImage(image, grid.known, grid.tokens.size)

    def info(self, data: bytes, *, bare: bool = False, cut: bool = False) -> dict[str, Any]:
        """What a stream says: size, settings, caption, and where each byte goes.

        No token is decoded. Raises StreamError for a broken stream; one of another bundle is
        described too.
        """
        return describe(data, self.bundle, bare=bare, cut=cut)

    def _unpack(self, data: bytes, *, bare: bool, cut: bool, max_pixels: int) -> Stream:
        with self._engines.timed("container"):
            stream = unpack(data, bare=bare, cut=cut)
        if stream.fingerprint is not None and stream.fingerprint != self.bundle.fingerprint:
            raise BundleMismatchError(
                f"expected a stream of bundle {self.bundle.name!r} "
                f"({self.bundle.fingerprint.hex()}), got one of {stream.fingerprint.hex()}; "
                "decode it with the bundle that made it (--bundle)"
            )
        header = stream.header
        if header.width * header.height > max_pixels:
            raise StreamError(
                f"expected an image of at most {max_pixels} pixels, got {header.width}x"
                f"{header.height}; allow more with max_pixels (--max-pixels) if you trust the file"
            )
        schedule = header.schedule or self.bundle.codec.schedule
        if (header.passes_sent or 1) > pass_count(schedule):
            raise StreamError(
                f"expected at most {pass_count(schedule)} passes of schedule {schedule!r}, got "
                f"{header.passes_sent}; the stream is damaged"
            )
        return stream

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the tokens that cover so many pixels."""
        stride = self.bundle.codec.stride
        return -(-height // stride), -(-width // stride)

    def _images(
        self, streams: list[Stream], settings: Settings, cut: bool = False
    ) -> list[Image.Image]:
        """Images of streams that agree in size, schedule and settings.

        Every stage goes through all parts of the batch before the next one begins, so that with
        ``low_memory`` its engine is loaded once.
        """
        tokens = self._tokens_of(streams, settings, cut)
        captions = [stream.header.caption for stream in streams]
        parts = self._parts(streams)
        conditions = self._text.condition([captions[part] for part in parts])
        return render(self._engines, streams, tokens, settings, parts, conditions)

    def _parts(self, streams: list[Stream]) -> list[slice]:
        """``batch_parts`` of streams that agree in size."""
        header = streams[0].header
        rows, columns = self._grid(header.height, header.width)
        return batch_parts(len(streams), rows * columns * self.bundle.codec.stride**2)

    def _tokens_of(self, streams: list[Stream], settings: Settings, cut: bool) -> NDArray[np.int32]:
        """Tokens (n,h,w) of streams that agree in size, schedule and passes."""
        first = streams[0].header
        schedule = first.schedule or self.bundle.codec.schedule
        shape = self._grid(first.height, first.width)
        with self._entropy(schedule) as coder, self._engines.timed("entropy decoding"):
            damaged = cut and not streams[0].checksum_ok
            if first.passes_sent is None and not damaged:
                data = [stream.tokens for stream in streams]
                decoded = [
                    coder.decode(data[part], shape, schedule) for part in self._parts(streams)
                ]
                return np.concatenate(decoded)
            grids = [
                coder.decode_partial(
                    stream.tokens,
                    shape,
                    schedule,
                    passes_sent=first.passes_sent,
                    cut=damaged,
                    seed=settings.seed_for(stream),
                )
                for stream in streams
            ]
            return np.stack(grids)

    def _grids(self, stream: Stream, settings: Settings, cut: bool) -> Iterator[DecodedTokens]:
        """Grids of one stream, pass by pass."""
        header = stream.header
        schedule = header.schedule or self.bundle.codec.schedule
        with self._entropy(schedule) as coder:
            yield from coder.decode_progressive(
                stream.tokens,
                self._grid(header.height, header.width),
                schedule,
                passes_sent=header.passes_sent,
                cut=cut and not stream.checksum_ok,
                seed=settings.seed_for(stream),
            )

    def load_engines(self, kinds: Sequence[str]) -> None:
        """Load engines ahead of their first use, so that it is not slower than the next ones."""
        for kind in kinds:
            with self._engines.use(kind):
                pass

    @contextlib.contextmanager
    def _entropy(self, schedule: str) -> Iterator[EntropyCodec]:
        constants = self.bundle.codec
        size, tile = constants.codebook_size, constants.entropy_tile
        if schedule == "uniform":
            yield EntropyCodec(None, size, tile)
            return
        with self._engines.use("entropy") as engine:
            yield EntropyCodec(engine, size, tile)

    def close(self) -> None:
        """Free all engines; the codec may be used again and loads them anew."""
        self._engines.close()

    def __enter__(self) -> Codec:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
