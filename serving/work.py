"""What a lane does: decode and encode with the codecs that it has loaded.

Everything that crosses the border of a lane is small and pickles: tasks in, outcomes out. A task
that fails gives its error as its outcome, so that it never fails the others of its batch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from percoedge.bitstream.container import unpack
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.selection import select
from percoedge.errors import PercoedgeError, UsageError
from percoedge.runtime.codec import DEFAULT_MAX_PIXELS, Codec
from percoedge.runtime.images import image_bytes, read_image
from percoedge.runtime.images.classical import CLASSICAL, PhotoRival
from percoedge.serving.settings import ServiceSettings

__all__ = ["ClassicalTask", "DecodeTask", "EncodeTask", "Outcome", "Worker"]

_WARM_UP_SIDE = 256


@dataclass(frozen=True)
class DecodeTask:
    """One stream to decode, as ``Codec.decode`` does; ``format`` is "PNG", "JPEG" or "WEBP"."""

    data: bytes
    format: str = "PNG"
    steps: int | None = None
    guidance: float | None = None
    seed: int | None = None
    cut: bool = False
    passes: int | None = None

    @property
    def batch_key(self) -> object:
        """Tasks of one key may be decoded together; None for a task that goes alone."""
        if self.cut or self.passes is not None:
            return None
        stream = unpack(self.data)
        header = stream.header
        return (
            stream.fingerprint,
            *(header.width, header.height, header.schedule, header.passes_sent),
            *(header.steps, header.guidance, self.steps, self.guidance, self.seed),
        )


@dataclass(frozen=True)
class EncodeTask:
    """One image file to encode with a bundle of the service (None: the first)."""

    data: bytes
    bundle: str | None = None
    caption: str = ""
    schedule: str | None = None
    passes: int | None = None
    max_bytes: int | None = None
    seed: int | None = None

    @property
    def batch_key(self) -> object:
        """Images are encoded one by one."""
        return None


@dataclass(frozen=True)
class ClassicalTask:
    """One image file to show as JPEG, WebP or AVIF gives it with at most so many bytes."""

    data: bytes
    codec: str
    budget_bytes: int

    @property
    def batch_key(self) -> object:
        """Each goes alone."""
        return None


Task = DecodeTask | EncodeTask | ClassicalTask


@dataclass(frozen=True)
class Outcome:
    """The answer to a task: bytes of a file, its size in pixels, notes, and times by stage.

    bundle: the name of the one used. classical_bytes: what the other codec took.
    """

    body: bytes
    width: int
    height: int
    bundle: str | None
    notes: tuple[str, ...] = ()
    timings_ms: dict[str, float] = field(default_factory=dict)
    classical_bytes: int | None = None


class Worker:
    """The codecs of a lane, or of all lanes that are threads: a bundle each.

    Raises BundleError or BackendError when one cannot be loaded.
    """

    def __init__(self, settings: ServiceSettings, threads: int | None) -> None:
        self._max_pixels = settings.max_pixels or DEFAULT_MAX_PIXELS
        self._codecs: dict[str, Codec] = {}
        for name in settings.bundles:
            bundle = Bundle.open(name)
            backend = select(settings.backend, bundle=bundle, threads=threads)
            self._codecs[name] = Codec(bundle, backend)

    @property
    def max_batch(self) -> int:
        """Streams of one size that are best decoded together: what engines take, 1 on a CPU."""
        return min(codec.max_batch or 1 for codec in self._codecs.values())

    def warm_up(self) -> None:
        """One image there and back through every codec: the first request is not the slowest.

        In the calling thread, which may have a stream of its own on a GPU. Raises EngineError.
        """
        pixels = read_image(shipped_photo()).pixels[:_WARM_UP_SIDE, :_WARM_UP_SIDE]
        for codec in self._codecs.values():
            codec.decode(codec.encode(pixels))

    def run(self, tasks: Sequence[Task]) -> list[Outcome | PercoedgeError]:
        """The outcome or the error of each task, in order."""
        if len(tasks) > 1 and all(isinstance(task, DecodeTask) for task in tasks):
            try:
                return list(self._decode_batch([t for t in tasks if isinstance(t, DecodeTask)]))
            except PercoedgeError:
                pass  # one of them is bad: each by itself
        return [self._outcome(task) for task in tasks]

    def _outcome(self, task: Task) -> Outcome | PercoedgeError:
        try:
            if isinstance(task, ClassicalTask):
                return self._classical(task)
            return self._encode(task) if isinstance(task, EncodeTask) else self._decode(task)
        except PercoedgeError as error:
            return error

    def _encode(self, task: EncodeTask) -> Outcome:
        codec = self._named(task.bundle)
        began = time.perf_counter()
        photo = read_image(task.data, max_pixels=self._max_pixels)
        reading_ms = (time.perf_counter() - began) * 1000
        data = codec.encode(
            photo.pixels,
            caption=task.caption,
            schedule=task.schedule,
            passes=task.passes,
            max_bytes=task.max_bytes,
            seed=task.seed,
            max_pixels=self._max_pixels,
        )
        height, width = photo.pixels.shape[:2]
        timings_ms = {**codec.timings_ms, "read image": reading_ms}
        return Outcome(data, width, height, codec.bundle.name, photo.notes, timings_ms)

    def _classical(self, task: ClassicalTask) -> Outcome:
        pixels = read_image(task.data, max_pixels=self._max_pixels).pixels
        rival = next(rival for rival in CLASSICAL if rival.format == task.codec)
        began = time.perf_counter()
        try:
            attempt = PhotoRival(rival, pixels).best(task.budget_bytes)
        except (KeyError, OSError) as error:  # Pillow was built without it, or its sides are short
            raise UsageError(
                f"expected {rival.name} to take this image, it cannot ({error}); choose another"
            ) from error
        height, width = pixels.shape[:2]
        return Outcome(
            image_bytes(attempt.pixels, "PNG"),
            *(width, height, None),
            timings_ms={rival.name: (time.perf_counter() - began) * 1000},
            classical_bytes=attempt.size_bytes,
        )

    def _decode(self, task: DecodeTask) -> Outcome:
        codec = self._codec_for(task)
        image = codec.decode(
            task.data,
            steps=task.steps,
            guidance=task.guidance,
            seed=task.seed,
            cut=task.cut,
            passes=task.passes,
            max_pixels=self._max_pixels,
        )
        return _image_outcome(image, task.format, codec)

    def _decode_batch(self, tasks: list[DecodeTask]) -> Iterator[Outcome]:
        first = tasks[0]
        codec = self._codec_for(first)
        images = codec.decode_batch(
            [task.data for task in tasks],
            steps=first.steps,
            guidance=first.guidance,
            seed=first.seed,
            max_pixels=self._max_pixels,
        )
        for task, image in zip(tasks, images, strict=True):
            yield _image_outcome(image, task.format, codec)

    def _named(self, name: str | None) -> Codec:
        if name is None:
            return next(iter(self._codecs.values()))
        for given, codec in self._codecs.items():
            if name in (given, codec.bundle.name):
                return codec
        known = ", ".join(codec.bundle.name for codec in self._codecs.values())
        raise UsageError(f"expected one of the bundles {known}, got {name!r}")

    def _codec_for(self, task: DecodeTask) -> Codec:
        """The codec of the bundle that made a stream; the service accepts no others."""
        fingerprint = unpack(task.data, cut=task.cut).fingerprint
        alike = (c for c in self._codecs.values() if fingerprint == c.bundle.fingerprint)
        return next(alike, self._named(None))


def _image_outcome(image: Image.Image, format: str, codec: Codec) -> Outcome:
    """An image that a codec has just decoded, as a file."""
    began = time.perf_counter()
    body = image_bytes(image, format)
    writing_ms = (time.perf_counter() - began) * 1000
    return Outcome(
        body,
        *(image.width, image.height, codec.bundle.name),
        timings_ms={**codec.timings_ms, "write image": writing_ms},
    )
