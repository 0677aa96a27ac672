"""An engine of ONNX Runtime: one session, and the tensors that it leaves where they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from percoedge.engines.contract import Buffer, GraphSource, TensorSpec, check_tensors
from percoedge.errors import BackendError

__all__ = ["OnnxRuntimeEngine", "OrtBuffer"]

_DTYPE_FROM_ORT = {
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int16)": "int16",
    "tensor(uint16)": "uint16",
    "tensor(int32)": "int32",
    "tensor(uint32)": "uint32",
    "tensor(int64)": "int64",
    "tensor(uint64)": "uint64",
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
}

_GPU_BATCH = 16  # grids at a time that keep a GPU busy; more would only take more memory


class OrtBuffer:
    """An OrtValue that stays where ONNX Runtime put it; on a CPU ``np.asarray`` makes no copy."""

    def __init__(self, value: Any) -> None:
        self.value = value
        self._shape = tuple(value.shape())
        self._dtype = np.dtype(_DTYPE_FROM_ORT[value.data_type()])

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of an element."""
        return self._dtype

    def begin_fetch(self) -> None:
        """Do nothing: ONNX Runtime has no queue to put it into."""

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        array: NDArray[Any] = self.value.numpy()
        if dtype is not None and np.dtype(dtype) != array.dtype:
            return array.astype(dtype)
        return array.copy() if copy else array


class OnnxRuntimeEngine:
    """One session of ONNX Runtime; see the contract of Engine. Threads may share it.

    ``where`` starts messages. ``place``: ONNX Runtime's name for where outputs are left, "cpu" or
    "cuda", and the number of that device. Raises BackendError when the session has other tensors
    than the graph's specs say.
    """

    def __init__(
        self, session: Any, source: GraphSource, where: str, place: tuple[str, int]
    ) -> None:
        self.inputs = source.inputs
        self.outputs = source.outputs
        self.max_batch = None if place[0] == "cpu" else _GPU_BATCH
        self._where = where
        self._place = place
        self._session = session
        _check_interface(self._where + ": input", self.inputs, session.get_inputs())
        _check_interface(self._where + ": output", self.outputs, session.get_outputs())

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        """Run the session; see the contract of Engine."""
        session = self._session
        if session is None:
            raise BackendError(f"{self._where} is closed; load it again")
        sizes = check_tensors(self._where + ": input", self.inputs, feeds)
        hosts = []  # ONNX Runtime borrows these arrays until the run is over
        binding = session.io_binding()
        try:
            for spec in self.inputs:
                feed = feeds[spec.name]
                if isinstance(feed, OrtBuffer):
                    binding.bind_ortvalue_input(spec.name, feed.value)
                else:
                    hosts.append(np.asarray(feed, order="C"))
                    binding.bind_cpu_input(spec.name, hosts[-1])
            for spec in self.outputs:
                binding.bind_output(spec.name, *(self._place if on_device else ("cpu", 0)))
            session.run_with_iobinding(binding)
            values = [OrtBuffer(value) for value in binding.get_outputs()]
        except Exception as error:  # the library's errors have no common base
            shapes = ", ".join(f"{s.name} {tuple(feeds[s.name].shape)}" for s in self.inputs)
            raise BackendError(f"{self._where} failed: {error}; feeds were {shapes}") from error
        outputs: dict[str, Buffer] = {
            spec.name: value if on_device else np.asarray(value)
            for spec, value in zip(self.outputs, values, strict=True)
        }
        check_tensors(self._where + ": output", self.outputs, outputs, sizes)
        return outputs

    def end_profiling(self) -> str:
        """Path of the profile of a session that writes one; no more is written to it."""
        return str(self._session.end_profiling())

    def close(self) -> None:
        """Free the session; see the contract of Engine."""
        self._session = None

    def __enter__(self) -> OnnxRuntimeEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def _check_interface(where: str, specs: tuple[TensorSpec, ...], nodes: list[Any]) -> None:
    """Check the tensors of a loaded graph against the specs; sizes only where both are fixed."""
    found = {node.name: node for node in nodes}
    if found.keys() != {spec.name for spec in specs}:
        raise BackendError(
            f"{where}: expected {[spec.name for spec in specs]} as in the manifest, got "
            f"{list(found)}; export the bundle again"
        )
    for spec in specs:
        node = found[spec.name]
        dtype = _DTYPE_FROM_ORT.get(node.type, node.type)
        same_rank = len(node.shape) == len(spec.shape)
        if (
            dtype != spec.dtype
            or not same_rank
            or any(
                isinstance(size, int) and size != axis
                for size, axis in zip(node.shape, spec.shape, strict=True)
            )
        ):
            raise BackendError(
                f"{where} {spec.name!r}: expected {spec} as in the manifest, got {dtype} "
                f"{tuple(node.shape)}; export the bundle again"
            )
