"""From a PyTorch graph to ONNX files: typed FP16 and FP32 topologies over one file of weights.

Weights are stored once, in FP16. The FP16 topology computes in FP16 (strongly typed, for TensorRT
and CUDA); the FP32 topology casts the same weights when it is loaded and computes in FP32, which is
faster on a CPU.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from percoedge.engines.contract import TensorSpec, split_axis

# From 23 on attention becomes an operator that TensorRT-RTX refuses and ONNX Runtime runs slower.
OPSET = 20
_INLINE_BYTES = 1024  # smaller tensors stay inside the model file
_ALIGNMENT = 64


class WeightFile:
    """Collects tensors for one external-data file, each distinct content once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._blob = bytearray()
        self._offsets: dict[bytes, int] = {}

    def place(self, tensor: onnx.TensorProto) -> None:
        """Move a tensor's bytes into the file and leave a reference in the tensor."""
        raw = numpy_helper.to_array(tensor).tobytes()
        key = hashlib.sha256(raw).digest()
        if key not in self._offsets:
            self._blob.extend(b"\0" * (-len(self._blob) % _ALIGNMENT))
            self._offsets[key] = len(self._blob)
            self._blob.extend(raw)
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data"):
            tensor.ClearField(field)
        del tensor.external_data[:]
        tensor.data_location = TensorProto.EXTERNAL
        fields = (("location", self.name), ("offset", self._offsets[key]), ("length", len(raw)))
        for name, value in fields:
            entry = tensor.external_data.add()
            entry.key, entry.value = name, str(value)

    def write(self, folder: Path) -> None:
        """Write the collected bytes."""
        (folder / self.name).write_bytes(self._blob)


def example_feeds(
    inputs: tuple[TensorSpec, ...], sizes: dict[str, int], ranges: dict[str, int], seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random inputs at the given sizes; integer inputs stay below their entry in ``ranges``."""
    generator = torch.Generator().manual_seed(seed)
    feeds = {}
    for spec in inputs:
        shape = tuple(_size(axis, sizes) for axis in spec.shape)
        if spec.dtype == "float32":
            uniform = spec.shape == (1,)  # a scalar knob within 0..1
            draw = torch.rand if uniform else torch.randn
            feeds[spec.name] = draw(shape, generator=generator)
        else:
            dtype = getattr(torch, spec.dtype)
            high = ranges[spec.name]
            feeds[spec.name] = torch.randint(0, high, shape, generator=generator).to(dtype)
    return feeds


def _size(axis: int | str, sizes: dict[str, int]) -> int:
    if isinstance(axis, int):
        return axis
    factor, symbol = split_axis(axis)
    return factor * sizes[symbol]


def trace(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    feeds: dict[str, torch.Tensor],
    bounds: dict[str, int],
) -> onnx.ModelProto:
    """Export a module with symbolic axes; ``bounds`` caps them (inclusive)."""
    dims: dict[str, object] = {}

    def dim(axis: str) -> object:
        factor, symbol = split_axis(axis)
        if symbol not in dims:
            dims[symbol] = torch.export.Dim(symbol, min=1, max=bounds.get(symbol, 1 << 16))
        return dims[symbol] if factor == 1 else factor * dims[symbol]  # type: ignore[operator]

    dynamic_shapes = {
        spec.name: {i: dim(axis) for i, axis in enumerate(spec.shape) if isinstance(axis, str)}
        or None
        for spec in inputs
    }
    program = torch.onnx.export(
        module.eval(),
        (),
        kwargs=feeds,
        dynamic_shapes=dynamic_shapes,
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        output_names=[spec.name for spec in outputs],
    )
    proto: onnx.ModelProto = program.model_proto
    _strip_notes(proto)
    return proto


def _strip_notes(proto: onnx.ModelProto) -> None:
    """Drop stack traces and exporter metadata: they hold paths and outweigh the topology."""
    del proto.metadata_props[:]
    del proto.graph.metadata_props[:]
    proto.graph.doc_string = proto.doc_string = ""
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""


def round_weights(module: nn.Module) -> None:
    """Make all float parameters and buffers representable in FP16, in place."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.half().float())


def store_in_half(proto: onnx.ModelProto) -> None:
    """Store float32 weights that FP16 can hold as FP16, each followed by a cast."""
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        value = numpy_helper.to_array(tensor)
        half = value.astype(np.float16)
        if value.nbytes < _INLINE_BYTES or not np.array_equal(half.astype(np.float32), value):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], to=TensorProto.FLOAT))
    for cast in reversed(casts):
        proto.graph.node.insert(0, cast)


def save(proto: onnx.ModelProto, path: Path, weights: WeightFile | None) -> None:
    """Write the model; tensors of some size go to ``weights``, which is written later."""
    if weights is not None:
        for tensor in proto.graph.initializer:
            if len(numpy_helper.to_array(tensor).tobytes()) >= _INLINE_BYTES:
                weights.place(tensor)
    path.write_bytes(proto.SerializeToString())
