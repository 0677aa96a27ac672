"""Writing a bundle: its manifest, over the files that lie there, and the .zip of all of it.

What is written replaces what was there only when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from percoedge.engines.bundle.bundle import Bundle
from percoedge.engines.bundle.manifest import (
    MANIFEST_NAME,
    CodecConstants,
    FileRecord,
    Graph,
    Manifest,
    Variant,
    check_file_name,
    decode_manifest,
    encode_manifest,
    fingerprint_of,
)
from percoedge.engines.bundle.storage import Storage, open_storage
from percoedge.engines.contract import TensorSpec
from percoedge.errors import BundleError, OutputError
from percoedge.replacing import replacing

__all__ = ["GraphFiles", "pack_zip", "replace_manifest", "write_manifest"]

_CHUNK_BYTES = 1 << 20
_ZIP_DATE = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class GraphFiles:
    """What an exporter knows of a graph: its specs, and per variant the model file, then the data.

    File names are relative to the bundle's directory, with "/". ``pixel_bytes``: see the manifest.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    variants: Mapping[str, tuple[str, ...]]
    pixel_bytes: int | None = None


def write_manifest(
    directory: str | os.PathLike[str],
    *,
    name: str,
    family: str,
    language: str,
    codec: CodecConstants,
    graphs: Mapping[str, GraphFiles],
    licence: str,
    provenance: Mapping[str, Any] | None = None,
    tokenizers: Mapping[str, str] | None = None,
) -> Bundle:
    """Hash the files in ``directory``, write its ``manifest.json``, and open the result.

    ``tokenizers``: file name by kind of text graph. Raises BundleError when a file is missing or a
    value is not allowed, OutputError when the manifest cannot be written.
    """
    root = Path(directory)
    storage = open_storage(root)
    try:
        described = {
            kind: Graph.build(
                files.inputs,
                files.outputs,
                {
                    variant: Variant(
                        _record(storage, names[0]),
                        tuple(_record(storage, name) for name in names[1:]),
                    )
                    for variant, names in files.variants.items()
                },
                files.pixel_bytes,
            )
            for kind, files in graphs.items()
        }
        manifest = Manifest(
            format=1,
            name=name,
            family=family,
            fingerprint=fingerprint_of(language, codec),
            language=language,
            codec=codec,
            graphs=described,
            licence=licence,
            provenance=dict(provenance or {}),
            tokenizers={kind: _record(storage, file) for kind, file in (tokenizers or {}).items()},
        )
    except (ValueError, TypeError) as error:
        raise BundleError(f"{root}: {error}") from error
    return replace_manifest(root, manifest)


def replace_manifest(directory: str | os.PathLike[str], manifest: Manifest) -> Bundle:
    """Write ``manifest.json`` of a directory, whose files it describes, and open the result.

    It is decoded again before it is written, so that what is written can be opened. Raises
    BundleError when a value is not allowed, OutputError when it cannot be written.
    """
    root = Path(directory)
    try:
        data = encode_manifest(manifest)
    except (ValueError, TypeError) as error:
        raise BundleError(f"{root}: {error}") from error
    decode_manifest(data, f"{root}/{MANIFEST_NAME}")
    with _written(root / MANIFEST_NAME) as file:
        file.write(data)
    return Bundle.open(root)


def pack_zip(bundle: Bundle, path: str | os.PathLike[str]) -> None:
    """Write a bundle as a .zip: manifest first, then every file once, checked as it is read.

    The same bundle gives the same bytes with one release of zlib. Raises BundleError, or
    OutputError when ``path`` cannot be written.
    """
    with (
        _written(Path(path)) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        archive.writestr(_zip_entry(MANIFEST_NAME), encode_manifest(bundle.manifest))
        for record in bundle.files:
            archive.writestr(_zip_entry(record.file), bundle.read_file(record))


@contextmanager
def _written(target: Path) -> Iterator[BinaryIO]:
    """``replacing``, with an OutputError for what the system says inside."""
    try:
        with replacing(target) as file:
            yield file
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error}; check the folder") from error


def _record(storage: Storage, name: str) -> FileRecord:
    """Describe a file that is there now."""
    check_file_name(name)  # before anything is opened
    digest, size_bytes = hashlib.sha256(), 0
    with storage.open(name) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileRecord(name, digest.hexdigest(), size_bytes)


def _zip_entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _ZIP_DATE)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
