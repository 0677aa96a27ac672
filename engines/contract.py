"""What every backend promises: typed tensors in, typed tensors out.

This module knows neither a file format nor a library that runs graphs. It holds the records and
protocols that cross the border between the loops of the codec and whatever runs a graph, and the
one check of tensors that all backends share.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from percoedge.errors import BackendError, UsageError

__all__ = [
    "Backend",
    "Buffer",
    "DeviceBuffer",
    "Engine",
    "Graph",
    "GraphSource",
    "TensorSpec",
    "check_tensors",
    "digest_of_hashes",
    "split_axis",
]

_AXIS = re.compile(r"(?:([1-9][0-9]{0,5})\*)?([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of one input or output of a graph.

    An axis is a fixed size (int), a symbol (``"h"``: the same size wherever it occurs in the
    inputs and outputs of the graph), or a multiple of one (``"2*h"``).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        """Dtype and shape as messages show them."""
        return f"{self.dtype} {_shape_text(self.shape)}"

    def shape_at(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape for these sizes of symbols; raises KeyError where one is missing."""
        return tuple(_size(axis, sizes) for axis in self.shape)


class DeviceBuffer(Protocol):
    """A tensor that stays where its backend put it; ``np.asarray`` brings it to the host."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        ...

    def begin_fetch(self) -> None:
        """Bring it to the host behind what is queued now, so that ``np.asarray`` waits for no more.

        What only spares time: nothing happens where a device has no queue.
        """
        ...

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """The contents on the host, as numpy asks for them; waits until they are computed."""
        ...


Buffer: TypeAlias = NDArray[Any] | DeviceBuffer


class Engine(Protocol):
    """Runs one graph; a context manager that frees the graph at its end."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of all inputs, in the order of the graph."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of all outputs, in the order of the graph."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Largest first axis ("n") of what one run takes; None where only memory limits it."""
        ...

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        """Run the graph once: one buffer for every input, by name; returns every output.

        ``on_device=False`` returns numpy arrays. ``on_device=True`` leaves the outputs where they
        are: they may be fed to any engine of the same backend, or fetched with ``np.asarray``.
        Feeds must not change while the call runs; outputs never share memory with them.
        Raises BackendError when a feed breaks the specs or the graph fails.
        """
        ...

    def close(self) -> None:
        """Free the graph; running it later raises BackendError. Closing twice is harmless."""
        ...

    def __enter__(self) -> Engine:
        """The engine itself."""
        ...

    def __exit__(self, *details: object) -> None:
        """Close the engine; what was raised goes on."""
        ...


class Graph(Protocol):
    """One graph of a bundle, whose files may not have been read yet.

    ``sha256``: ``digest_of_hashes`` of its files; the bundle's manifest states their hashes, so
    that it tells graphs apart before any is read.
    """

    @property
    def kind(self) -> str:
        """What the graph is in its bundle: "encoder", "entropy", "flow" and so on."""
        ...

    @property
    def variant(self) -> str:
        """Which of the graph's variants this is: "fp32", "fp16", "int8"."""
        ...

    @property
    def sha256(self) -> str:
        """Hexadecimal digest, see above."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Specs of all inputs, as the manifest states them."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Specs of all outputs, as the manifest states them."""
        ...

    def read(self) -> GraphSource:
        """The graph with its bytes, which have the hashes that were stated.

        Raises BundleError when a file is missing or altered, BackendError when memory is short.
        """
        ...


@dataclass(frozen=True)
class GraphSource:
    """One graph, read from a bundle and proved unaltered: everything needed to build an engine.

    ``model`` is a serialised ONNX ModelProto; ``data`` maps each external-data location that the
    model names to the bytes of that file. Engines keep no reference to a source: drop it after
    ``load`` and its memory is free.
    """

    kind: str
    variant: str
    model: bytes
    data: Mapping[str, bytes]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the model and its data together."""
        return len(self.model) + sum(len(data) for data in self.data.values())

    @property
    def sha256(self) -> str:
        """See the contract of Graph; the bytes are hashed anew."""
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.data.items()}
        return digest_of_hashes(hashlib.sha256(self.model).hexdigest(), hashes)

    def read(self) -> GraphSource:
        """Itself: it is read already."""
        return self


class Backend(Protocol):
    """A way to run graphs on this machine."""

    @property
    def name(self) -> str:
        """How callers name the backend, and messages call it."""
        ...

    @property
    def variant(self) -> str:
        """Which variant of a graph to read from a bundle for this backend, by its name there."""
        ...

    def load(self, graph: Graph) -> Engine:
        """Build an engine, reading the graph only where it must be built from that.

        Raises BackendError when the graph cannot run here, and what reading it raises.
        """
        ...


def digest_of_hashes(model: str, data: Mapping[str, str]) -> str:
    """SHA-256 (hex) over that of the model, then location and SHA-256 of each file of its data."""
    lines = [model, *(f"{location} {digest}" for location, digest in sorted(data.items()))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_axis(axis: str) -> tuple[int, str]:
    """Split a symbolic axis into factor and symbol: ``"h"`` is (1, "h"), ``"2*h"`` is (2, "h").

    Raises UsageError, which is a ValueError, for any other form.
    """
    match = _AXIS.fullmatch(axis)
    if match is None:
        raise UsageError(
            f"expected a symbolic axis like 'h' or '2*h', got {axis!r}; "
            "write a factor first, then '*', then a name"
        )
    return int(match[1] or 1), match[2]


def _size(axis: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    factor, symbol = split_axis(axis)
    return factor * sizes[symbol]


def check_tensors(
    where: str,
    specs: Sequence[TensorSpec],
    tensors: Mapping[str, Buffer],
    bound: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Check that ``tensors`` are exactly those in ``specs``; return the size of every symbol.

    ``where`` starts the message ("entropy: input"). ``bound`` holds sizes of symbols that are
    known already; a symbol must have one size throughout. Raises BackendError for a missing or
    unknown name, a wrong dtype, rank or fixed size, or a symbol with two sizes.
    """
    if tensors.keys() != {spec.name for spec in specs}:
        expected = ", ".join(repr(spec.name) for spec in specs)
        got = ", ".join(repr(name) for name in tensors) or "none"
        raise BackendError(f"{where}: expected {expected}; got {got}; pass exactly these names")
    sizes = dict(bound or {})
    for spec in specs:
        tensor: object = tensors[spec.name]
        shape, dtype = getattr(tensor, "shape", None), getattr(tensor, "dtype", None)
        if not isinstance(shape, tuple) or not isinstance(dtype, np.dtype):
            raise BackendError(
                f"{where} {spec.name!r}: expected {spec}, got {type(tensor).__name__}; "
                "pass a numpy array or a buffer of the same backend"
            )
        if dtype != np.dtype(spec.dtype):
            raise BackendError(
                f"{where} {spec.name!r}: expected {spec}, got {dtype.str} {_shape_text(shape)}; "
                f"convert it with astype({spec.dtype!r})"
            )
        if len(shape) != len(spec.shape):
            raise BackendError(
                f"{where} {spec.name!r}: expected {spec}, got {_shape_text(shape)}; "
                f"reshape it to {len(spec.shape)} axes"
            )
        for number, (size, axis) in enumerate(zip(shape, spec.shape, strict=True)):
            _bind_axis(f"{where} {spec.name!r}: axis {number} of {spec}", axis, size, sizes)
    return sizes


def _bind_axis(where: str, axis: int | str, size: int, sizes: dict[str, int]) -> None:
    """Check one axis against its spec, and note the size of its symbol in ``sizes``."""
    if isinstance(axis, int):
        if size != axis:
            raise BackendError(f"{where}: expected {axis}, got {size}; pass that size")
        return
    factor, symbol = split_axis(axis)
    if size % factor:
        raise BackendError(
            f"{where}: expected a multiple of {factor}, got {size}; pad it to such a size"
        )
    known = sizes.setdefault(symbol, size // factor)
    if known * factor != size:
        raise BackendError(
            f"{where}: expected {known * factor} because {symbol} = {known} elsewhere in this "
            f"call, got {size}; make the tensors of one call agree"
        )


def _shape_text(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
