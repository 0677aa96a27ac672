"""The codec: photos to .pco streams and back, through the engines of one bundle."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from PIL import Image

from percoedge.arguments import expect_flag, expect_int, expect_text, shown
from percoedge.bitstream.container import DEFAULT_MAX_PIXELS, MAX_STREAM_BYTES, Header, Stream
from percoedge.bitstream.schedules import pass_count
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.engines.processors import expect_workers
from percoedge.engines.selection import select
from percoedge.errors import InputError, UsageError, naming
from percoedge.runtime.decoding import (
    Batch,
    Noise,
    batch_slices,
    batches,
    open_stream,
    read_progressive,
    read_tokens,
    render,
)
from percoedge.runtime.encoding import encode, encode_within, tokens_from_pixels
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.entropy import DecodedTokens, Tokens
from percoedge.runtime.files import ByteSource, read_bytes
from percoedge.runtime.images import Source, read_image
from percoedge.runtime.info import describe
from percoedge.runtime.settings import Settings
from percoedge.runtime.text import TextConditioner

__all__ = ["DEFAULT_MAX_PIXELS", "Codec", "ProgressiveImage"]


@dataclass(frozen=True)
class ProgressiveImage:
    """An image after one more pass: ``known`` of ``total`` tokens read, the others sampled."""

    image: Image.Image
    known: int
    total: int


class Codec:
    """Encodes and decodes with one bundle on one backend; make one with ``Codec.load``.

    Engines are loaded at their first use and kept, or with ``low_memory`` freed after each stage.
    Threads may share a codec; with ``low_memory`` they take turns at the engines. Another process
    gets a codec that is loaded anew with the same arguments: pickle does that, and copy.deepcopy.
    """

    def __init__(self, bundle: Bundle, backend: Backend, *, low_memory: bool = False) -> None:
        """Use an opened bundle on a backend object. Raises UsageError for anything else."""
        if not isinstance(bundle, Bundle):
            raise UsageError(f"expected a Bundle, got {shown(bundle)}; Codec.load takes its name")
        if isinstance(backend, (str, type)) or not callable(getattr(backend, "load", None)):
            raise UsageError(
                f"expected a backend, an object with name, variant and load, got {shown(backend)}; "
                "Codec.load takes its name"
            )
        self.bundle = bundle
        self.backend = backend
        self._engines = EngineSet(bundle, backend, low_memory=expect_flag("low_memory", low_memory))
        self._text = TextConditioner(self._engines)
        self._loaded_with: tuple[str | Backend, int | None] = (backend, None)

    @property
    def timings_ms(self) -> dict[str, float]:
        """Milliseconds by stage of this thread's last call, the loading of engines under "load"."""
        return dict(self._engines.clock.timings_ms)

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
        an object of that protocol; ``threads``, 1 to 8 for each usable processor, limits the CPU
        threads of a named one.
        Raises BundleError, BackendError or UsageError.
        """
        threads = None if threads is None else expect_workers("threads", threads)
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
        chosen = backend
        if isinstance(backend, str):
            backend = select(backend, bundle=opened, threads=threads)
        codec = cls(opened, backend, low_memory=low_memory)
        codec._loaded_with = (chosen, threads)
        return codec

    # ---- encode ---------------------------------------------------------------------------------

    def encode(
        self,
        image: Source,
        *,
        caption: str = "",
        schedule: str | None = None,
        passes: int | None = None,
        max_bytes: int | None = None,
        seed: int | None = None,
        bare: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> bytes:
        """Encode a photo (anything that ``read_image`` takes) to a stream.

        ``caption``: at most 1 KiB of UTF-8, stored, and a condition of the decoder where the bundle
        has text towers. ``schedule``: a name of ``percoedge.bitstream.schedules.SCHEDULES``, None
        for the bundle's. ``passes``: send only the first so many passes; the decoder samples the
        rest. ``max_bytes``, in place of ``passes``: send as many as a stream of at most so many
        bytes holds, caption and all; a UsageError says the smallest size where not even one fits.
        ``seed``: of the decoder's noise (0..2^32-1), None to derive it from the stream. ``bare``:
        without magic, fingerprint and checksum. ``max_pixels``: refuse larger images; decoders
        refuse them too, unless they allow more. Raises ImageError, InputError, UsageError or
        EngineError.
        """
        fingerprint = None if expect_flag("bare", bare) else self.bundle.fingerprint
        expect_text("caption", caption)
        own = self.bundle.codec.schedule
        count = pass_count(own if schedule is None else schedule)
        if passes is not None and max_bytes is not None:
            raise UsageError(
                f"expected passes or max_bytes, got both ({shown(passes)} and {shown(max_bytes)}); "
                "leave one out"
            )
        passes = count if passes is None else expect_int("passes", passes, 1, count)
        max_bytes = None if max_bytes is None else expect_int("max_bytes", max_bytes, 1)
        max_pixels = expect_int("max_pixels", max_pixels, 1)
        self._engines.clock.restart()
        with self._engines.clock.timed("read image"):
            pixels = read_image(image, max_pixels=max_pixels).pixels
        header = Header(
            width=pixels.shape[1],
            height=pixels.shape[0],
            schedule=None if schedule == own else schedule,
            passes_sent=None if passes == count else passes,
            seed=seed,
            caption=caption,
        )
        if max_bytes is not None:
            return encode_within(self._engines, pixels, header, fingerprint, max_bytes)
        return encode(self._engines, pixels, header, fingerprint)

    def tokens(self, image: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Tokens:
        """Tokens int32 (h,w) of a photo: what a stream of all passes carries.

        Raises ImageError, InputError, UsageError or EngineError.
        """
        self._engines.clock.restart()
        pixels = read_image(image, max_pixels=expect_int("max_pixels", max_pixels, 1)).pixels
        return tokens_from_pixels(self._engines, pixels)

    # ---- decode ---------------------------------------------------------------------------------

    def decode(
        self,
        data: ByteSource,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        bare: bool = False,
        cut: bool = False,
        passes: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Image.Image:
        """Decode a stream (bytes, a path or an open file) to an RGB image of the size encoded.

        ``steps`` (1..255), ``guidance`` and ``seed`` replace what the stream or else the bundle
        says. ``cut``: the stream may have been cut short: decode what is left of it; missing tokens
        are sampled, and a whole stream decodes as without it. ``passes``: decode the first so many
        only (1 or more), as ``decode_progressive`` does; None for all. The same call gives the same
        image on the same machine, and the same tokens on every one. Raises StreamError
        (BundleMismatchError for a stream of another bundle), InputError, UsageError or EngineError.
        """
        settings = Settings(self.bundle, steps, guidance, seed)
        passes = None if passes is None else expect_int("passes", passes, 1)
        batch = self._alone(data, settings, bare, cut, max_pixels)
        return self._images(replace(batch, passes=passes))[0]

    def decode_batch(
        self,
        streams: Iterable[ByteSource],
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        bare: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        lanes: int = 1,
    ) -> list[Image.Image]:
        """Decode several streams; those of one size and the same settings run together.

        Images come back in the order of the streams, and are what ``decode`` gives, whatever else
        is in the batch, up to the last bits of floating point; int8 graphs may round these to the
        next of their steps, which the eye does not see (above 40 dB). Memory grows with the batch
        up to what the engines take at a time; beyond, only images and a latent for each are kept.
        ``lanes``: parts of the batch, each of what the engines take, that are decoded at the same
        time in threads, for images a second; ``timings_ms`` then tells of opening streams only.
        Raises as ``decode`` does, for the first stream that is wrong, before anything is decoded;
        the message begins with its index, "stream 0" being the first.
        """
        lanes = expect_workers("lanes", lanes)
        if isinstance(streams, (str, bytes, bytearray)) or not isinstance(streams, Iterable):
            raise UsageError(f"expected a list of streams, got {shown(streams)}")
        settings = Settings(self.bundle, steps, guidance, seed)
        opened = self._opened(streams, settings, bare, False, max_pixels, numbered=True)
        images: dict[int, Image.Image] = {}
        whole = batches(opened, settings)
        if lanes == 1:
            for batch in whole:
                images.update(zip(batch.places, self._images(batch), strict=True))
        elif whole:
            most = self._engines.max_batch or 1  # a CPU is as fast one by one
            parts = [part for batch in whole for part in batch_slices(batch, most)]
            with ThreadPoolExecutor(lanes) as threads:
                for part, made in zip(parts, threads.map(self._images, parts), strict=True):
                    images.update(zip(part.places, made, strict=True))
        return [images[index] for index in range(len(opened))]

    def decode_tokens(
        self,
        data: ByteSource,
        *,
        bare: bool = False,
        cut: bool = False,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Tokens:
        """Tokens int32 (h,w) of a stream, sampled where not sent. Raises as ``decode``."""
        batch = self._alone(data, Settings(self.bundle), bare, cut, max_pixels)
        tokens: Tokens = read_tokens(self._engines, batch)[0]
        return tokens

    def decode_progressive(
        self,
        data: ByteSource,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        bare: bool = False,
        cut: bool = True,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Iterator[ProgressiveImage]:
        """Yield an image after each pass of a stream that may be cut anywhere behind its header.

        The last image is that of ``decode``. Raises as ``decode`` does: for arguments and the
        header at once, for tokens that no encoder makes at the first image.
        """
        settings = Settings(self.bundle, steps, guidance, seed)
        batch = self._alone(data, settings, bare, cut, max_pixels)
        return self._progress(batch)

    def info(self, data: ByteSource, *, bare: bool = False, cut: bool = False) -> dict[str, Any]:
        """What a stream says: size, settings, caption, and where each byte goes.

        No token is decoded. Raises StreamError for a broken stream; one of another bundle is
        described too.
        """
        bare, cut = expect_flag("bare", bare), expect_flag("cut", cut)
        return describe(_stream_bytes(data), self.bundle, bare=bare, cut=cut)

    def _alone(
        self, data: ByteSource, settings: Settings, bare: bool, cut: bool, max_pixels: int
    ) -> Batch:
        """One stream, checked, as a batch."""
        return Batch(self._opened([data], settings, bare, cut, max_pixels), [], settings, cut)

    def _opened(
        self,
        sources: Iterable[ByteSource],
        settings: Settings,
        bare: bool,
        cut: bool,
        max_pixels: int,
        *,
        numbered: bool = False,
    ) -> list[Stream]:
        """Streams, checked; the clock starts here. ``numbered``: whether errors say which it is."""
        bare, cut = expect_flag("bare", bare), expect_flag("cut", cut)
        max_pixels = expect_int("max_pixels", max_pixels, 1)
        self._engines.clock.restart()
        opened = []
        for number, source in enumerate(sources):
            name = f"stream {number}" if numbered else ""
            with self._engines.clock.timed("container"), naming(name, InputError, UsageError):
                data = _stream_bytes(source)
                opened.append(
                    open_stream(data, settings, bare=bare, cut=cut, max_pixels=max_pixels)
                )
        return opened

    def _images(self, batch: Batch) -> list[Image.Image]:
        start = Noise(batch)
        tokens = read_tokens(self._engines, batch, start)
        condition = self._text.condition(batch.captions)
        return render(self._engines, batch, tokens, condition, start)

    def _progress(self, batch: Batch) -> Iterator[ProgressiveImage]:
        condition = self._text.condition(batch.captions)
        grids: Iterable[DecodedTokens] = read_progressive(self._engines, batch)
        for grid in list(grids) if self._engines.low_memory else grids:  # one engine at a time
            image = render(self._engines, batch, grid.tokens[None], condition)[0]
            yield ProgressiveImage(image, grid.known, grid.tokens.size)

    # ---- engines --------------------------------------------------------------------------------

    def load_engines(self, kinds: Sequence[str]) -> None:
        """Load engines ahead of their first use, so that it is not slower than the next ones.

        ``kinds``: names of graphs, of ``bundle.kinds``. Raises UsageError or EngineError.
        """
        if isinstance(kinds, (str, bytes)) or not isinstance(kinds, Iterable):
            raise UsageError(f"expected a list of names of graphs, got {shown(kinds)}")
        for kind in kinds:
            with self._engines.use(expect_text("the name of a graph", kind)):
                pass

    @property
    def max_batch(self) -> int | None:
        """Images of one size that engines take together; None on a CPU, which gains little by it.

        Loads the decoder. Raises EngineError.
        """
        return self._engines.max_batch

    def close(self) -> None:
        """Free all engines; the codec may be used again and loads them anew.

        Calls of other threads go on to their end; the engines that they use are freed behind it.
        """
        self._engines.close()

    def __enter__(self) -> Codec:
        """Enter a block at whose end all engines are freed."""
        return self

    def __exit__(self, *details: object) -> None:
        """Free all engines."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the arguments of ``load``; engines are loaded anew where they are needed.

        Raises UsageError for a backend object that cannot be pickled.
        """
        backend, threads = self._loaded_with
        try:
            pickle.dumps(backend)
        except Exception as error:  # whatever its parts raise
            raise UsageError(
                f"expected a backend that can be pickled, got {shown(backend)} ({error}); load the "
                "codec with a backend's name, or load it in the other process"
            ) from error
        return _load, (self.bundle, backend, threads, self._engines.low_memory)

    def __deepcopy__(self, memo: dict[int, Any]) -> Codec:
        """Another codec with engines of its own; bundle and backend never change and are shared."""
        other = type(self)(self.bundle, self.backend, low_memory=self._engines.low_memory)
        other._loaded_with = self._loaded_with
        return other


def _stream_bytes(source: ByteSource) -> bytes:
    """The bytes of a stream; of a file no more are read than the longest stream has, and one."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)  # the container says what is wrong with its length
    return read_bytes(source, limit_bytes=MAX_STREAM_BYTES, unnamed="the stream")


def _load(bundle: Bundle, backend: str | Backend, threads: int | None, low_memory: bool) -> Codec:
    return Codec.load(bundle, backend, threads=threads, low_memory=low_memory)
