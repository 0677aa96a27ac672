"""From a PyTorch graph to ONNX files: typed FP16 and FP32 topologies over one file of weights.

Weights are stored once, in FP16. The FP16 topology computes in FP16 (strongly typed, for TensorRT
and CUDA); the FP32 topology casts the same weights when it is loaded and computes in FP32, which is
faster on a CPU. Weights go from the module to the file one by one, so that the export of a graph
needs no more memory than the module itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from percoedge.engines.contract import TensorSpec, split_axis

# From 23 on attention becomes an operator that TensorRT-RTX refuses and ONNX Runtime runs slower.
OPSET = 20
_INLINE_BYTES = 1024  # smaller tensors stay inside the model file
_ALIGNMENT = 64


class WeightFile:
    """An external-data file that is written as tensors come, each distinct content once.

    A context manager; closing it completes the file, or removes it when nothing is in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._offsets: dict[bytes, int] = {}

    def place(self, array: NDArray[Any]) -> int:
        """Write the bytes of an array unless they are there; returns their offset in the file."""
        raw = np.ascontiguousarray(array).data.cast("B") if array.size else b""
        key = hashlib.sha256(raw).digest()
        if key not in self._offsets:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGNMENT))
            self._offsets[key] = self._file.tell()
            self._file.write(raw)
        return self._offsets[key]

    def tensor(self, name: str, array: NDArray[Any]) -> TensorProto:
        """An array as a constant of this name; all but small ones lie in the file."""
        if array.nbytes < _INLINE_BYTES:
            return numpy_helper.from_array(array, name)
        tensor = TensorProto(
            name=name,
            dims=array.shape,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            data_location=TensorProto.EXTERNAL,
        )
        place = {"location": self.path.name, "offset": self.place(array), "length": array.nbytes}
        for key, value in place.items():
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def __enter__(self) -> WeightFile:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()
        if not self._offsets:
            self.path.unlink()


def trace(
    module: nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    feeds: Mapping[str, NDArray[Any]],
    bounds: dict[str, int],
    *,
    guarded: bool = True,
) -> torch.onnx.ONNXProgram:
    """Export a module with symbolic axes; ``bounds`` caps them (inclusive).

    ``feeds``: inputs to trace it with, of any size. ``guarded``: insist on a proof that the graph
    holds for every size. Where sizes are divided there is none, and what was assumed of them is
    left to checks of the graph.

    The program refers to the tensors of the module: write it before they change.
    """
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
    tensors = {name: torch.from_numpy(feed) for name, feed in feeds.items()}
    model: nn.Module | torch.export.ExportedProgram = module.eval()
    if not guarded:
        # As torch.onnx.export itself does it: sizes of 1 are sizes as any other.
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):
            model = torch.export.export(
                module,
                (),
                kwargs=tensors,
                dynamic_shapes=dynamic_shapes,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    return torch.onnx.export(
        model,
        (),
        kwargs=tensors,
        dynamic_shapes=dynamic_shapes if guarded else None,
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
        output_names=[spec.name for spec in outputs],
    )


def write_program(
    program: torch.onnx.ONNXProgram, path: Path, weights: WeightFile
) -> tuple[str, ...]:
    """Write a program's topology to ``path`` and its larger tensors to ``weights``.

    Float32 tensors that FP16 can hold are stored as FP16 and cast when the graph is loaded.
    Returns the names of the files that make up the graph, the model first.
    """
    halved, files = [], [path.name]
    for name, value in program.model.graph.initializers.items():
        array = value.const_value.numpy()
        if array.nbytes < _INLINE_BYTES:
            continue
        dtype = value.const_value.dtype
        if dtype == ir.DataType.FLOAT:
            with np.errstate(over="ignore"):
                half = array.astype(np.float16)
            if np.array_equal(half, array):
                array, dtype = half, ir.DataType.FLOAT16
                halved.append(name)
        files = [path.name, weights.path.name]
        value.const_value = ir.ExternalTensor(
            weights.path.name,
            weights.place(array),
            array.nbytes,
            dtype,
            shape=ir.Shape(array.shape),
            name=name,
        )
    proto = ir.to_proto(program.model)
    _cast_to_float(proto, halved)
    _strip_notes(proto)
    path.write_bytes(proto.SerializeToString())
    return tuple(files)


def _cast_to_float(proto: onnx.ModelProto, names: list[str]) -> None:
    """Rename the initializers of these names, and make the names the outputs of casts."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name in reversed(names):
        stored[name].name = f"{name}.half"
        cast = helper.make_node("Cast", [stored[name].name], [name], to=TensorProto.FLOAT)
        proto.graph.node.insert(0, cast)


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
