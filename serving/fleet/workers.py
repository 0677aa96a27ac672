"""What a process of a fleet does: reads files, decodes or encodes them, writes the outputs.

Files never travel through Ray: its rows name them. The rules are those of ``percoedge decode`` of
a folder: an output is replaced only if the record says that it was written here, and the record
has it before it gets its name. Nobody appends to files on an object store, and no two machines to
one file; so here the record is a file for each batch, in ``percoedge-outputs/``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from percoedge.bitstream.container import MAX_STREAM_BYTES, unpack
from percoedge.engines.bundle import Bundle
from percoedge.engines.selection import runs_on_gpu
from percoedge.errors import EngineError, InputError, OutputError, PercoedgeError
from percoedge.runtime.cli.folder.decode import stream_sha256
from percoedge.runtime.cli.folder.encode import image_sha256
from percoedge.runtime.cli.folder.record import entry_from_line, line_from_entry
from percoedge.runtime.codec import Codec
from percoedge.runtime.images import image_bytes, read_image
from percoedge.runtime.settings import Settings
from percoedge.serving.fleet.places import NO_PLAIN_FILE, Place

__all__ = ["RECORD_FOLDER", "RESULTS", "Job", "Tries", "Worker"]

RECORD_FOLDER = "percoedge-outputs"
"""In the folder of the outputs: a file of the record for each batch of each run."""

RESULTS = pa.schema(
    {
        **{"name": pa.string(), "state": pa.string(), "error": pa.string()},
        **{"message": pa.string(), "bytes_in": pa.int64(), "bytes_out": pa.int64()},
        **{"node": pa.string(), "gpus": pa.list_(pa.string())},
    }
)
"""A row for each input: state is "done", "kept", "bad" or "fatal"; error and message say why."""

_MAX_IMAGE_BYTES = 1 << 30
_MAX_RECORD_BYTES = 1 << 28
_MAX_TRIES = 2  # of a file that its process dies at


@dataclass(frozen=True)
class Job:
    """What is to be done to every file, for all processes the same.

    decodes: else it encodes. choices: keyword arguments of ``Codec.decode`` or ``Codec.encode``.
    kind: the format of decoded images. run: a name that no other run has. force: make outputs again
    that are there, and replace files that are not ours.
    """

    decodes: bool
    source: Place
    target: Place
    bundle: str
    backend: str
    threads: int
    low_memory: bool
    max_pixels: int
    run: str
    kind: str = "PNG"
    force: bool = False
    choices: dict[str, Any] = field(default_factory=dict)

    def source_sha256(self, bundle: Bundle, data: bytes) -> str:
        """Hash (hexadecimal) of all that an output depends on, as for a folder."""
        if self.decodes:
            settings = Settings(bundle, **self.choices)
            return stream_sha256(settings, data, self.kind, bare=False, cut=False)
        return image_sha256(bundle, data, self.choices)


@dataclass
class _Item:
    """A file of a batch; known: hashes of outputs of its name and of their sources.

    mine: hashes of those that this run has written, before a process died.
    """

    name: str
    output: str
    known: dict[str, str]
    mine: set[str] = field(default_factory=set)
    data: bytes = b""
    source_sha256: str = ""
    contents: bytes = b""
    state: str = ""
    error: Exception | None = None


class Tries:
    """An actor that outlives workers: how often a batch, or a file of it, was begun.

    It forgets when its own machine dies; then a file has some tries more.
    """

    def __init__(self) -> None:
        self._begun: Counter[str] = Counter()

    def begin(self, name: str) -> int:
        """Count one more, and return them."""
        self._begun[name] += 1
        return self._begun[name]


class Worker:
    """One process with a codec, loaded when it is made; Ray Data calls it with batches.

    What concerns one file is told in its row, as "bad". What concerns all of them, an OutputError
    or a codec that cannot be loaded, is "fatal". Ray does a batch again whose process died; then
    its files are done one by one, and the one at which the process dies again is bad.

    tries: the handle of an actor of Tries.
    """

    def __init__(self, job: Job, tries: Any) -> None:
        self._job, self._tries = job, tries
        self._failure: PercoedgeError | None = None
        try:
            self._codec = Codec.load(
                job.bundle, job.backend, threads=job.threads, low_memory=job.low_memory
            )
            self._bundle = self._codec.bundle
            kinds = ("entropy", "decoder" if job.decodes else "encoder")
            self._codec.load_engines([kind for kind in kinds if kind in self._bundle.kinds])
        except PercoedgeError as error:  # told with the rows: Ray would start it again and again
            self._failure = error
        context = ray.get_runtime_context()
        self._node = context.get_node_id()[:8]
        self._gpus = [str(gpu) for gpu in context.get_accelerator_ids().get("GPU", [])]

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows of name, output and known (JSON) in, rows of RESULTS out, one for each."""
        items = [
            _Item(row["name"], row["output"], json.loads(row["known"])) for row in batch.to_pylist()
        ]
        if self._failure is None:
            self._run(items)
        else:
            for item in items:
                item.state, item.error = "fatal", self._failure
        return pa.Table.from_pylist([self._row(item) for item in items], RESULTS)

    def _run(self, items: Sequence[_Item]) -> None:
        part = self._part(items)
        self._take_back(part, items)
        if self._begun(part) == 1:
            for item in items:
                self._read(item)
            self._do([item for item in items if not item.state], part)
            return
        for item in items:
            part = self._part([item])
            self._take_back(part, [item])
            self._read(item)
            if not item.state and self._begun(item.name) > _MAX_TRIES:
                item.state = "bad"
                item.error = EngineError(
                    f"expected the engines to run, got the end of their process {_MAX_TRIES} times"
                )
            self._do([item] if not item.state else [], part)

    def _begun(self, name: str) -> int:
        count: int = ray.get(self._tries.begin.remote(name))
        return count

    def _do(self, items: Sequence[_Item], part: str) -> None:
        self._make(items)
        made = [item for item in items if not item.state]
        if made:
            self._write(part, made)

    def _part(self, items: Sequence[_Item]) -> str:
        """The name of the record of some files of this run."""
        names = "\n".join(item.output for item in items)
        key = hashlib.sha256(names.encode()).hexdigest()[:16]
        return f"{RECORD_FOLDER}/{self._job.run}-{key}.jsonl"

    def _take_back(self, part: str, items: Sequence[_Item]) -> None:
        """Know what a process that died at these files had noted."""
        by_output = {item.output: item for item in items}
        with contextlib.suppress(InputError):  # there was none
            for line in self._job.target.read(part, _MAX_RECORD_BYTES).splitlines():
                entry = entry_from_line(line)
                if entry and entry[0] in by_output:
                    by_output[entry[0]].known[entry[1]] = entry[2]
                    by_output[entry[0]].mine.add(entry[1])

    def _read(self, item: _Item) -> None:
        limit_bytes = MAX_STREAM_BYTES if self._job.decodes else _MAX_IMAGE_BYTES
        try:
            item.data = self._job.source.read(item.name, limit_bytes)
            item.source_sha256 = self._job.source_sha256(self._bundle, item.data)
            item.state = self._state(item)
        except Exception as error:  # of this file: the others are done all the same
            item.state, item.error = "bad", error

    def _state(self, item: _Item) -> str:
        """What the output is already; "" where it is to be made.

        Raises InputError where another file is.
        """
        there = self._job.target.sha256(item.output)
        if there is None:
            return ""
        if there in item.mine:
            return "done"
        if self._job.force and there != NO_PLAIN_FILE:
            return ""
        if there not in item.known:
            raise InputError(
                f"cannot write {item.output}: expected no file, or one that was written here and "
                "not changed since, got another one; move it, name another folder, or replace it "
                "with --force"
            )
        return "kept" if item.known[there] == item.source_sha256 else ""

    def _make(self, items: Sequence[_Item]) -> None:
        for group in self._groups(items):
            images: Sequence[Any] = [None] * len(group)
            if len(group) > 1:
                with contextlib.suppress(Exception):  # of one, or all: they are told one by one
                    images = self._codec.decode_batch(
                        [item.data for item in group],
                        max_pixels=self._job.max_pixels,
                        **self._job.choices,
                    )
            for item, image in zip(group, images, strict=True):
                try:
                    item.contents = self._made(item, image)
                except Exception as error:  # of this file
                    item.state, item.error = "bad", error

    def _groups(self, items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
        """Files that go through the codec together: on a GPU streams of one size."""
        if not self._job.decodes or not runs_on_gpu(self._codec.backend.name):
            yield from ([item] for item in items)
            return
        alike: dict[object, list[_Item]] = {}
        for item in items:
            size: object = item.name
            with contextlib.suppress(PercoedgeError):  # told when its turn comes
                header = unpack(item.data).header
                size = (header.width, header.height)
            alike.setdefault(size, []).append(item)
        yield from alike.values()

    def _made(self, item: _Item, image: Any) -> bytes:
        job = self._job
        if not job.decodes:
            pixels = read_image(item.data, max_pixels=job.max_pixels).pixels
            return self._codec.encode(pixels, max_pixels=job.max_pixels, **job.choices)
        if image is None:
            image = self._codec.decode(item.data, max_pixels=job.max_pixels, **job.choices)
        return image_bytes(image, job.kind)

    def _write(self, part: str, items: Sequence[_Item]) -> None:
        """Write the record, then the outputs."""
        lines = [line_from_entry(i.output, i.contents, i.source_sha256) for i in items]
        try:
            self._job.target.write(part, b"".join(lines))
            for item in items:
                self._job.target.write(item.output, item.contents)
                item.state = "done"
        except OutputError as error:  # the next ones would fail as well
            for item in items:
                if not item.state:
                    item.state, item.error = "fatal", error

    def _row(self, item: _Item) -> dict[str, Any]:
        return {
            "name": item.name,
            "state": item.state,
            "error": type(item.error).__name__ if item.error else None,
            "message": str(item.error) if item.error else None,
            "bytes_in": len(item.data),
            "bytes_out": len(item.contents) if item.state == "done" else 0,
            "node": self._node,
            "gpus": self._gpus,
        }
