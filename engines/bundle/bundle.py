"""Opening and reading a bundle: the graphs of one codec with their manifest.

A bundle is data. Opening one runs no code and reads the manifest alone; a graph is read when asked
for, and its SHA-256 is taken over the very bytes that are handed on. Until then the hashes in the
manifest stand for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from percoedge.arguments import shown
from percoedge.bundles import shipped_bundles
from percoedge.engines import memory
from percoedge.engines.bundle.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    CodecConstants,
    FileRecord,
    Manifest,
    Variant,
    decode_manifest,
)
from percoedge.engines.bundle.storage import Storage, open_storage
from percoedge.engines.contract import GraphSource, TensorSpec, digest_of_hashes
from percoedge.errors import BundleError, UsageError

__all__ = ["Bundle", "StoredGraph"]

_CHUNK_BYTES = 1 << 20


class Bundle:
    """The manifest of a bundle and access to its graphs; open one with ``Bundle.open``."""

    def __init__(self, manifest: Manifest, storage: Storage, path: Path) -> None:
        self.manifest = manifest
        self.path = path
        self._storage = storage

    @classmethod
    def open(cls, name_or_path: str | os.PathLike[str]) -> Bundle:
        """Open a shipped bundle by its name ("tiny"), or a directory, or a .zip of one.

        A shipped name wins over a directory of that name in the working directory: write "./tiny"
        for the latter. Raises BundleError when it is missing, malformed or unsafe, and UsageError
        for what is no name or path.
        """
        if not isinstance(name_or_path, (str, os.PathLike)):
            raise UsageError(f"expected the name or path of a bundle, got {shown(name_or_path)}")
        shipped = shipped_bundles()
        path = Path(name_or_path)
        if isinstance(name_or_path, str) and name_or_path in shipped:
            path = shipped[name_or_path]
        elif name_or_path == "" or not path.exists():
            raise BundleError(
                f"expected a bundle directory, a .zip of one, or one of the shipped bundles "
                f"({', '.join(shipped) or 'none'}), got {str(name_or_path)!r}; check the path"
            )
        storage = open_storage(path)
        size_bytes = storage.size(MANIFEST_NAME)
        if size_bytes > MAX_MANIFEST_BYTES:
            raise BundleError(
                f"{path}: expected a manifest of at most {MAX_MANIFEST_BYTES} bytes, "
                f"got {size_bytes}; fetch or export the bundle again"
            )
        with storage.open(MANIFEST_NAME) as file:
            data = file.read(MAX_MANIFEST_BYTES)
        return cls(decode_manifest(data, f"{path}/{MANIFEST_NAME}"), storage, path)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was opened with: a shipped bundle's name, else its path."""
        names = (name for name, path in shipped_bundles().items() if path == self.path)
        return Bundle.open, (next(names, self.path.absolute()),)

    @property
    def name(self) -> str:
        """The name in the manifest."""
        return self.manifest.name

    @property
    def codec(self) -> CodecConstants:
        """The constants of the codec that the graphs were exported for."""
        return self.manifest.codec

    @property
    def fingerprint(self) -> bytes:
        """The first 4 bytes of the manifest's fingerprint, as they stand in a stream."""
        return bytes.fromhex(self.manifest.fingerprint[:8])

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the graphs: "encoder", "entropy" and so on."""
        return tuple(self.manifest.graphs)

    def size_bytes(self, kinds: Iterable[str], variant: str) -> int:
        """Bytes of the files of these graphs, as the manifest states them."""
        return sum(r.size for kind in kinds for r in self._variant(kind, variant).files)

    def graph(self, kind: str, variant: str) -> StoredGraph:
        """One graph, of which nothing is read yet; variants are those of ``read``.

        Raises BundleError when there is no such graph or variant.
        """
        chosen, graph = self._variant(kind, variant), self.manifest.graphs[kind]
        hashes = {chosen.location(record): record.sha256 for record in chosen.data}
        return StoredGraph(
            kind=kind,
            variant=graph.nearest(variant),
            sha256=digest_of_hashes(chosen.model.sha256, hashes),
            inputs=graph.input_specs,
            outputs=graph.output_specs,
            read=lambda: self.read(kind, variant),
        )

    def read(self, kind: str, variant: str) -> GraphSource:
        """Read one graph with its data, each file checked against its hash and size.

        Where a graph has no variant "int8", "fp32" is read in its place. Raises BundleError when
        there is no such graph or variant or a file is missing or altered, and BackendError when
        the host has no memory for it.
        """
        chosen = self._variant(kind, variant)
        graph = self.manifest.graphs[kind]
        memory.require(sum(record.size for record in chosen.files), f"reading graph {kind!r}")
        return GraphSource(
            kind=kind,
            variant=graph.nearest(variant),
            model=self.read_file(chosen.model),
            data={chosen.location(record): self.read_file(record) for record in chosen.data},
            inputs=graph.input_specs,
            outputs=graph.output_specs,
        )

    def read_tokenizer(self, kind: str) -> bytes:
        """Read the tokenizer of a text graph, checked like a graph. Raises BundleError."""
        record = self.manifest.tokenizers.get(kind)
        if record is None:
            raise BundleError(
                f"{self.path}: expected a tokenizer of graph {kind!r}, got those of "
                f"{', '.join(self.manifest.tokenizers) or 'none'}; export the bundle again"
            )
        return self.read_file(record)

    def verify(self) -> None:
        """Check the hash of every file, holding little in memory; raises BundleError."""
        for record in self.files:
            digest, left = hashlib.sha256(), record.size
            self._check_size(record)
            with self._storage.open(record.file) as file:
                while chunk := file.read(min(_CHUNK_BYTES, left + 1)):
                    digest.update(chunk)
                    left -= len(chunk)
                    if left < 0:
                        break
            self._check_digest(record, digest.hexdigest())

    @property
    def files(self) -> list[FileRecord]:
        """Every file of the bundle once, the manifest aside, in the order of the manifest."""
        return list({record.file: record for record in self.manifest.files}.values())

    def _variant(self, kind: str, variant: str) -> Variant:
        graph = self.manifest.graphs.get(kind)
        if graph is None:
            raise BundleError(
                f"{self.path}: expected a graph {kind!r}, got {', '.join(self.kinds)}; "
                "use a bundle that has it"
            )
        name = graph.nearest(variant)
        if name not in graph.variants:
            raise BundleError(
                f"{self.path}: expected a variant {name!r} of graph {kind!r}, got "
                f"{', '.join(graph.variants)}; choose another backend or export that variant"
            )
        return graph.variants[name]

    def read_file(self, record: FileRecord) -> bytes:
        """Read one of ``files``, checked against its hash and size. Raises BundleError."""
        self._check_size(record)
        with self._storage.open(record.file) as file:
            data = file.read(record.size)
        self._check_digest(record, hashlib.sha256(data).hexdigest())
        return data

    def _check_size(self, record: FileRecord) -> None:
        size_bytes = self._storage.size(record.file)
        if size_bytes != record.size:
            raise BundleError(
                f"{self.path}: {record.file!r}: expected {record.size} bytes, got {size_bytes}; "
                "the file was cut or replaced: fetch or export the bundle again"
            )

    def _check_digest(self, record: FileRecord, sha256: str) -> None:
        if sha256 != record.sha256:
            raise BundleError(
                f"{self.path}: {record.file!r}: expected SHA-256 {record.sha256}, got {sha256}; "
                "the file was altered: fetch or export the bundle again"
            )


@dataclass(frozen=True)
class StoredGraph:
    """A graph that lies in a bundle; see the contract of Graph."""

    kind: str
    variant: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    read: Callable[[], GraphSource]
