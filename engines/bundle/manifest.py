"""The manifest of a bundle: its JSON form, its limits, and the fingerprint it must carry.

Everything is checked when the JSON is decoded: unknown fields, types, ranges, file names, and that
the fingerprint is that of the language stated. Whether the files are what the manifest says is
checked in percoedge.engines.bundle.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from math import prod
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from percoedge.engines.contract import TensorSpec, split_axis
from percoedge.errors import BundleError

__all__ = [
    "MANIFEST_NAME",
    "MAX_MANIFEST_BYTES",
    "MAX_STEPS",
    "VARIANTS",
    "CodecConstants",
    "Cost",
    "FileRecord",
    "Graph",
    "Manifest",
    "Variant",
    "check_file_name",
    "decode_manifest",
    "encode_manifest",
    "fingerprint_of",
]

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
VARIANTS = ("fp32", "fp16", "int8")
"""Names of the variants of a graph that backends ask for."""
_MAX_FILE_BYTES = 1 << 36
MAX_STEPS = 255
"""Most steps of the flow that a decode may take."""

_Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
_Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_-]*\Z", max_length=64)]
_Count = Annotated[int, Meta(ge=1, le=1 << 16)]
_DType = Literal[
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
_Angle = Annotated[float, Meta(ge=0.0, le=1.5708)]
_Number = Annotated[int, Meta(ge=0, le=1 << 62)]
_Term = Annotated[str, Meta(pattern=r"^[a-z]+(?:\*[a-z]+){0,7}\Z")]
_Terms = Annotated[dict[_Term, _Number], Meta(max_length=16)]
_FILE_NAME = re.compile(r"[A-Za-z0-9_.+-]+(?:/[A-Za-z0-9_.+-]+)*")


class FileRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the bundle: its name below the bundle's root, SHA-256 (hex) and size in bytes."""

    file: str
    sha256: _Digest
    size: Annotated[int, Meta(ge=0, le=_MAX_FILE_BYTES)]

    def __post_init__(self) -> None:
        check_file_name(self.file)


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One form of a graph: the ONNX file, and the external data beside or below it."""

    model: FileRecord
    data: tuple[FileRecord, ...] = ()

    def __post_init__(self) -> None:
        for record in self.data:
            self.location(record)

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """The model first, then its data."""
        return (self.model, *self.data)

    def location(self, record: FileRecord) -> str:
        """The name by which the model refers to a data file: relative to the model's folder."""
        folder = self.model.file.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        if not record.file.startswith(prefix):
            raise ValueError(
                f"expected data of {self.model.file!r} in its folder or below, "
                f"got {record.file!r}; ONNX cannot refer to it elsewhere"
            )
        return record.file[len(prefix) :]


class _Tensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A TensorSpec as JSON; a Struct of its own because unknown fields must be refused."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    dtype: _DType
    shape: Annotated[tuple[Annotated[int, Meta(ge=1)] | str, ...], Meta(max_length=8)]

    def __post_init__(self) -> None:
        for axis in self.shape:
            if isinstance(axis, str):
                split_axis(axis)


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one run of a graph takes, as the export counted it (percoedge.export.graphs.costs).

    ``macs``: multiply-accumulates of its matrix products and convolutions, by products of symbols:
    {"n*h*w": 100, "n": 3} stands for 100*n*h*w + 3*n. ``weights``: how many numbers its constants
    hold. ``int8_macs``, ``int8_weights``: those of them that are in 8 bits in the variant "int8".
    """

    macs: _Terms
    weights: _Number
    int8_macs: _Terms = {}
    int8_weights: _Number = 0

    def operations(self, variant: str, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Operations in floats and on bytes of one run, two for each multiply-accumulate.

        ``sizes``: of every symbol. Raises KeyError where one is missing.
        """
        total = _value(self.macs, sizes)
        on_bytes = _value(self.int8_macs, sizes) if variant == "int8" else 0
        return 2 * (total - on_bytes), 2 * on_bytes

    def weight_bytes(self, variant: str) -> int:
        """Bytes of the constants in the precision of a variant."""
        if variant == "int8":
            return 4 * (self.weights - self.int8_weights) + self.int8_weights
        return self.weights * (2 if variant == "fp16" else 4)


def _value(terms: Mapping[str, int], sizes: Mapping[str, int]) -> int:
    return sum(
        factor * prod(sizes[symbol] for symbol in term.split("*")) for term, factor in terms.items()
    )


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One graph of the bundle: what crosses its border, and its variants by name (VARIANTS).

    ``cost``: None where the export did not count it, as in bundles of older versions.
    ``pixel_bytes``: memory that a run takes in the variant "fp32", per pixel of the picture; for
    graphs that take whole pictures. None where it is not known.
    """

    inputs: tuple[_Tensor, ...]
    outputs: Annotated[tuple[_Tensor, ...], Meta(min_length=1)]
    variants: Annotated[dict[_Name, Variant], Meta(min_length=1)]
    cost: Cost | None = None
    pixel_bytes: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None

    def __post_init__(self) -> None:
        tensors = (*self.inputs, *self.outputs)
        names = [tensor.name for tensor in tensors]
        if len(set(names)) != len(names):
            raise ValueError(f"expected each tensor name once, got {names}; rename one")
        symbols = {split_axis(a)[1] for t in tensors for a in t.shape if isinstance(a, str)}
        terms = {**self.cost.macs, **self.cost.int8_macs} if self.cost is not None else {}
        unknown = {symbol for term in terms for symbol in term.split("*")} - symbols
        if unknown:
            raise ValueError(
                f"expected costs in {', '.join(sorted(symbols)) or 'no symbol'}, got "
                f"{', '.join(sorted(unknown))}; count them again"
            )

    def nearest(self, variant: str) -> str:
        """The name to read where ``variant`` is wanted: FP32 stands in where there is no INT8.

        Some graphs must not be rounded so, and bundles need not have any such variant.
        """
        return "fp32" if variant == "int8" and variant not in self.variants else variant

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """Inputs as the contract of engines has them, in the order of the graph."""
        return tuple(TensorSpec(t.name, t.dtype, t.shape) for t in self.inputs)

    @property
    def output_specs(self) -> tuple[TensorSpec, ...]:
        """Outputs as the contract of engines has them, in the order of the graph."""
        return tuple(TensorSpec(t.name, t.dtype, t.shape) for t in self.outputs)

    @classmethod
    def build(
        cls,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        variants: dict[str, Variant],
        pixel_bytes: int | None = None,
    ) -> Graph:
        """Make a graph from specs; the ranges are checked when the manifest is decoded again."""
        tensors = [
            tuple(_Tensor(t.name, t.dtype, t.shape) for t in specs)  # type: ignore[arg-type]
            for specs in (inputs, outputs)
        ]
        return cls(tensors[0], tensors[1], variants, pixel_bytes=pixel_bytes)


class CodecConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the codec must know of the models; grids, tiles and overlaps are in tokens.

    ``stride``: pixels a token covers, per side. ``latent_channels``: 0 where there is no latent, so
    no flow either: the decoder takes tokens. ``latent_stride``: pixels a latent cell covers.
    ``schedule``, ``steps``, ``guidance``: defaults where a stream or a caller gives none.
    ``angles``: of a diffusion model, whose steps turn a latent from noise towards the image: angle
    in radians, arctan(sigma / alpha), by step of its training, rising. Empty for a flow.
    ``flow_multiple``: sides of what the flow takes are multiples of so many tokens; other grids are
    filled up by repeating the last ones. Its own axes count these multiples. ``flow_batch``: tiles
    of one picture that go through the flow together, unless the engine says.
    ``encoder_margin``, ``decoder_margin``: how far around a token that graph looks, so that a tile
    with this much context gives what the whole picture would. None: it looks at all of the picture,
    which is never cut into tiles for it.
    """

    stride: Annotated[int, Meta(ge=1, le=256)]
    codebook_size: Annotated[int, Meta(ge=2, le=1 << 16)]
    latent_channels: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    latent_stride: Annotated[int, Meta(ge=1, le=256)] = 1
    schedule: _Name
    steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)] = 1
    guidance: Annotated[float, Meta(ge=0.0, le=16.0)] = 1.0
    angles: Annotated[tuple[_Angle, ...], Meta(max_length=1 << 12)] = ()
    entropy_tile: _Count
    flow_tile: _Count = 1
    flow_overlap: Annotated[int, Meta(ge=0, le=1 << 16)] = 0
    flow_multiple: _Count = 1
    flow_batch: _Count = 1
    decoder_tile: _Count = 1
    encoder_margin: Annotated[int, Meta(ge=0, le=1 << 16)] | None = None
    decoder_margin: Annotated[int, Meta(ge=0, le=1 << 16)] | None = None
    captions_condition: bool = False

    @property
    def encoder_tile(self) -> int:
        """Tokens a side of what the encoder codes at a time: their margins are half of its work."""
        return max(self.entropy_tile, 5 * (self.encoder_margin or 0))

    def __post_init__(self) -> None:
        if self.stride % self.latent_stride:
            raise ValueError(
                f"expected stride to be a multiple of latent_stride, got {self.stride} and "
                f"{self.latent_stride}; a token must cover whole latent cells"
            )
        if 2 * self.flow_overlap > self.flow_tile:
            raise ValueError(
                f"expected flow_overlap of at most half of flow_tile, got {self.flow_overlap} "
                f"and {self.flow_tile}; make the overlap smaller"
            )
        if self.flow_tile % self.flow_multiple:
            raise ValueError(
                f"expected flow_tile to be a multiple of flow_multiple, got {self.flow_tile} and "
                f"{self.flow_multiple}; the flow takes no other sizes"
            )
        rising = all(a < b for a, b in zip(self.angles, self.angles[1:], strict=False))
        if not rising or 0 < len(self.angles) <= MAX_STEPS:
            raise ValueError(
                f"expected no angles or more than {MAX_STEPS} that rise, got {len(self.angles)}; "
                "export the bundle again"
            )


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """All of ``manifest.json``; ``family`` and ``provenance`` are never interpreted.

    ``language``: SHA-256 (hex), computed by the export, of what gives token streams their meaning:
    the integers of the entropy model and the codebook. Bundles of one language read each other's
    streams, whatever their encoders and decoders look like and however their graphs are written.
    ``tokenizers``: by kind of the text graph that takes its ids, in the order in which they run.
    """

    format: Literal[1]
    name: _Name
    family: _Name
    fingerprint: _Digest
    language: _Digest
    codec: CodecConstants
    graphs: Annotated[dict[_Name, Graph], Meta(min_length=1)]
    licence: Annotated[str, Meta(min_length=1)]
    provenance: dict[str, Any] = {}
    tokenizers: dict[_Name, FileRecord] = {}

    def __post_init__(self) -> None:
        seen: dict[str, FileRecord] = {}
        for record in self.files:
            if seen.setdefault(record.file, record) != record:
                raise ValueError(
                    f"expected one hash and size for {record.file!r}, got two; "
                    "write the manifest again"
                )
        if "flow" in self.graphs and not self.codec.latent_channels:
            raise ValueError(
                "expected codec.latent_channels above 0 beside a graph 'flow', got 0; state the "
                "channels of its latents, or leave the graph out"
            )
        expected = fingerprint_of(self.language, self.codec)
        if self.fingerprint != expected:
            raise ValueError(
                f"expected fingerprint {expected} for the language stated, got "
                f"{self.fingerprint}; the manifest was edited: fetch or export the bundle again"
            )

    @property
    def files(self) -> tuple[FileRecord, ...]:
        """Every file reference, in the order of the manifest; shared files occur repeatedly."""
        of_graphs = (
            record
            for graph in self.graphs.values()
            for variant in graph.variants.values()
            for record in variant.files
        )
        return (*of_graphs, *self.tokenizers.values())


def check_file_name(name: str) -> None:
    """Raise ValueError unless ``name`` is safe below a directory on every system.

    Allowed: parts of ASCII letters, digits, ``_ . + -`` joined by ``/``. So no absolute paths, no
    drive letters, no backslashes, no empty parts; "." and ".." are refused as parts.
    """
    parts = name.split("/")
    if len(name) > 255 or not _FILE_NAME.fullmatch(name) or {".", ".."} & set(parts):
        raise ValueError(
            f"expected a relative path of letters, digits, '_', '.', '+', '-' and '/' without "
            f"'..', got {name[:255]!r}; rename the file"
        )


def fingerprint_of(language: str, codec: CodecConstants) -> str:
    """SHA-256 (hex) over everything that decides how a stream of tokens is read.

    That is the line ``<language> <stride> <codebook_size> <schedule> <entropy_tile>``.
    """
    reading = (language, codec.stride, codec.codebook_size, codec.schedule, codec.entropy_tile)
    return hashlib.sha256(" ".join(map(str, reading)).encode("ascii") + b"\n").hexdigest()


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Decode and check ``manifest.json``; ``where`` names it in a BundleError."""
    try:
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(
            f"{where}: expected a manifest of format 1; {error}; fetch or export the bundle again"
        ) from error


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode as indented JSON with a final newline, fields in declared order."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
