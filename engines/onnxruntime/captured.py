"""Runs of one session as CUDA graphs: launched as one, with every tensor at an address of its own.

ONNX Runtime records what it does at the first run of each graph number and repeats it from then on,
whatever is bound later. So each shape has its number, its binding and its memory on the GPU; feeds
are copied in and results are copied out. Copies between two places on the GPU are queued on another
stream than runs are, so that a copy from the host follows them, which waits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from percoedge.engines.contract import TensorSpec

__all__ = ["CapturedRuns"]

_MAX_SHAPES = 32  # what was recorded stays until the session is closed


class CapturedRuns:
    """``session`` was made with ``enable_cuda_graph``; ``ort`` is the library.

    ``place``: its names of the GPU, ("cuda", 0).
    """

    def __init__(
        self,
        ort: Any,
        session: Any,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        place: tuple[str, int],
    ) -> None:
        self._ort, self._session, self._place = ort, session, place
        self._inputs, self._outputs = inputs, outputs
        self._shapes: dict[object, _Shape] = {}
        self._last: Any = None  # what is copied when nothing but a wait is wanted
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, Any], sizes: Mapping[str, int], on_device: bool
    ) -> dict[str, Any] | None:
        """Outputs for feeds whose symbols have these sizes; None for one shape too many.

        Feeds are arrays, or OrtValues on the GPU; so are outputs with ``on_device``. Raises what
        the library raises.
        """
        key = tuple(sorted(sizes.items()))
        with self._lock:
            if key not in self._shapes:
                if len(self._shapes) == _MAX_SHAPES:
                    return None
                self._shapes[key] = self._made(sizes)
            shape = self._shapes[key]
            here = [name for name, feed in feeds.items() if not isinstance(feed, np.ndarray)]
            for name in here:
                shape.inputs[name].update_inplace(feeds[name])
            for name in feeds.keys() - here:
                shape.inputs[name].update_inplace(np.ascontiguousarray(feeds[name]))
            if len(here) == len(feeds):
                self._wait()
            self._session.run_with_iobinding(shape.binding, shape.options)
            if on_device:
                copies = {spec.name: self._value(spec, sizes) for spec in self._outputs}
                for name, copy in copies.items():
                    copy.update_inplace(shape.outputs[name])
                self._wait()
                return copies
            found = {name: value.numpy() for name, value in shape.outputs.items()}
            # From a GPU that is a copy already.
            return {n: a if a.flags.owndata else a.copy() for n, a in found.items()}

    def _wait(self) -> None:
        """Wait for copies on the GPU."""
        one = np.zeros(1, np.float32)
        if self._last is None:
            self._last = self._value(TensorSpec("", "float32", (1,)), {})
        self._last.update_inplace(one)

    def _value(self, spec: TensorSpec, sizes: Mapping[str, int]) -> Any:
        """Memory on the GPU for a tensor."""
        return self._ort.OrtValue.ortvalue_from_shape_and_type(
            list(spec.shape_at(sizes)), np.dtype(spec.dtype).type, *self._place
        )

    def _made(self, sizes: Mapping[str, int]) -> _Shape:
        shape = _Shape(self._session.io_binding(), self._ort.RunOptions())
        shape.options.add_run_config_entry("gpu_graph_id", str(len(self._shapes) + 1))
        for specs, values, bind in (
            (self._inputs, shape.inputs, shape.binding.bind_ortvalue_input),
            (self._outputs, shape.outputs, shape.binding.bind_ortvalue_output),
        ):
            for spec in specs:
                values[spec.name] = self._value(spec, sizes)
                bind(spec.name, values[spec.name])
        return shape


class _Shape:
    """The binding of one shape, how to run it, and its tensors on the GPU by name."""

    def __init__(self, binding: Any, options: Any) -> None:
        self.binding, self.options = binding, options
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
