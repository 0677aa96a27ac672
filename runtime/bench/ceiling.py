"""What the device reaches at best: matrix products and memory traffic.

Measured where that can be done, in the same run and through the backend that is measured, with its
threads and its kernels: one product of two square matrices, and one pass over an array that no
cache holds. TensorRT runs only what was built before: there it is what the GPU's data sheet says,
by its clocks. The graphs of a bundle are compared with these.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.contract import Backend, Buffer, GraphSource, TensorSpec
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.errors import PercoedgeError

__all__ = ["Ceiling", "ceiling_of", "measure_ceiling"]

Shape = tuple[int, int]

_SIDES = {"float32": (512, 1024, 2048), "float16": (2048, 4096, 8192)}
_ARRAY_BYTES = 1 << 27  # several times the last cache of most processors and GPUs
_MIN_RUNS = 3
_MIN_PASSES = 6  # ONNX Runtime takes new memory in up to five; pages that are new are slow
# Of one multiprocessor, by compute capability: dense products in FP16 with sums in FP16, two
# operations for each multiply-accumulate, as NVIDIA's papers on these architectures have them.
_FP16_OPS_A_CLOCK = {80: 2048, 86: 1024, 87: 2048, 89: 1024, 90: 4096, 100: 8192, 120: 1024}
_ONNX_DTYPE = {"float32": 1, "uint8": 2, "int8": 3, "int32": 6, "float16": 10}


@dataclass(frozen=True)
class Ceiling:
    """``float_ops_per_s`` of matrix products in ``dtype``, ``int8_ops_per_s`` of uint8 by int8.

    ``bytes_per_s`` read and written. None where it was not asked for or the backend cannot tell.
    ``source``: "measured", or what it was computed from.
    """

    dtype: str
    float_ops_per_s: float | None
    int8_ops_per_s: float | None
    bytes_per_s: float | None
    source: str = "measured"

    def record(self) -> dict[str, Any]:
        """Its values as JSON can hold them, in whole operations and bytes."""
        values = dataclasses.asdict(self)
        return {n: round(v) if isinstance(v, float) else v for n, v in values.items()}


def ceiling_of(backend: Backend, int8: bool = False) -> Ceiling:
    """Measured, or for TensorRT computed. ``int8``: products of bytes too, where measured."""
    if isinstance(backend, TensorRtBackend):
        return _computed(backend.gpu)
    return measure_ceiling(backend, int8)


def _computed(gpu: Gpu) -> Ceiling:
    """By the highest clocks; that of products is unknown for architectures not listed here."""
    each = _FP16_OPS_A_CLOCK.get(gpu.sm)
    products = gpu.multiprocessors * gpu.clock_hz * each if each else None
    source = (
        f"computed: {gpu.multiprocessors} multiprocessors at {gpu.clock_hz // 10**6} MHz, "
        f"{each or 'unknown'} operations a clock each"
    )
    return Ceiling("float16", products or None, None, gpu.memory_rate or None, source)


def measure_ceiling(backend: Backend, int8: bool = False, seconds: float = 0.6) -> Ceiling:
    """Measure for about so many seconds; the best run counts. ``int8``: those products too."""
    dtype = "float16" if backend.variant == "fp16" else "float32"
    share = seconds / (len(_SIDES[dtype]) + 1)
    sides = _SIDES[dtype]
    floats = [_product_rate(backend, dtype, side, share) for side in sides]
    integers = [_product_rate(backend, "uint8", side, share) for side in sides if int8]
    return Ceiling(dtype, _best(floats), _best(integers), _traffic_rate(backend, dtype, share))


def _best(rates: Sequence[float | None]) -> float | None:
    return max((rate for rate in rates if rate is not None), default=None)


def _product_rate(backend: Backend, dtype: str, side: int, seconds: float) -> float | None:
    """Operations per second of x @ w, ``side`` x ``side`` each; w is a weight, as in models."""
    random, shape = np.random.default_rng(0), (side, side)
    if dtype == "uint8":
        weight = random.integers(-64, 64, shape, np.int8)
        model = _model(b"MatMulInteger", (dtype, "int32"), shape, weight)
        best = _best_seconds(backend, model, (dtype, "int32"), shape, seconds)
    else:
        # products of products stay finite
        weight = (random.standard_normal(shape) / np.sqrt(side)).astype(dtype)
        model = _model(b"MatMul", (dtype, dtype), shape, weight)
        best = _best_seconds(backend, model, (dtype, dtype), shape, seconds)
    return None if best is None else 2 * side**3 / best


def _traffic_rate(backend: Backend, dtype: str, seconds: float) -> float | None:
    """Bytes per second of y = -x: each element is read and written once."""
    shape = (1 << 10, _ARRAY_BYTES // np.dtype(dtype).itemsize >> 10)
    model = _model(b"Neg", (dtype, dtype), shape)
    best = _best_seconds(backend, model, (dtype, dtype), shape, seconds, _MIN_PASSES)
    return None if best is None else 2 * _ARRAY_BYTES / best


def _best_seconds(
    backend: Backend,
    model: bytes,
    dtypes: tuple[str, str],
    shape: Shape,
    seconds: float,
    least: int = _MIN_RUNS,
) -> float | None:
    """Time of the fastest run of a graph, of ``least`` or more.

    An output of the input's type is fed to it again, so that on a GPU nothing is copied from and to
    the host in between.
    """
    inputs = (TensorSpec("x", dtypes[0], shape),)
    outputs = (TensorSpec("y", dtypes[1], shape),)
    source = GraphSource("ceiling", backend.variant, model, {}, inputs, outputs)
    times: list[float] = []
    with contextlib.suppress(PercoedgeError), backend.load(source) as engine:
        x: Buffer = np.ones(shape, dtypes[0])
        ends = None
        while ends is None or len(times) < least or time.perf_counter() < ends:
            began = time.perf_counter()
            y = engine.run({"x": x}, on_device=True)["y"]
            if ends is None:  # the first run allocates
                ends = time.perf_counter() + seconds
            else:
                times.append(time.perf_counter() - began)
            x = y if dtypes[0] == dtypes[1] else x
    return min(times, default=None)


def _model(
    op: bytes, dtypes: tuple[str, str], shape: Shape, weight: NDArray[Any] | None = None
) -> bytes:
    """A serialised ModelProto, IR 8, opset 13: y = op(x) or y = op(x, weight).

    Field numbers are those of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
    """
    names = [b"x"] if weight is None else [b"x", b"w"]
    node = b"".join(_field(1, name) for name in names) + _field(2, b"y") + _field(4, op)
    graph = _field(1, node) + _field(2, b"g")
    if weight is not None:
        sizes = b"".join(_number(1, size) for size in weight.shape)
        content = weight.astype(weight.dtype.newbyteorder("<")).tobytes()
        kind = _number(2, _ONNX_DTYPE[weight.dtype.name])
        graph += _field(5, sizes + kind + _field(8, b"w") + _field(9, content))
    for number, name, dtype in ((11, b"x", dtypes[0]), (12, b"y", dtypes[1])):
        sizes = b"".join(_field(1, _number(1, size)) for size in shape)
        tensor = _field(1, _number(1, _ONNX_DTYPE[dtype]) + _field(2, sizes))
        graph += _field(number, _field(1, name) + _field(2, tensor))
    return _number(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 13))


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes(group | 0x80 for group in groups[:-1]) + bytes(groups[-1:])
