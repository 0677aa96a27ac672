"""Execution contexts of an engine: all that differs between the libraries when plans are run.

The memory of activations is given to the contexts, in every library. TensorRT-RTX compiles kernels
for the GPU at hand when a plan is run, and captures CUDA graphs by itself.
"""

from __future__ import annotations

from typing import Any

from percoedge.engines.plans.cache import PlanCache
from percoedge.engines.plans.record import PlanRecord

__all__ = ["Contexts"]


class Contexts:
    """Makes contexts of ``engine``, the library's; ``trt`` is its module.

    ``captures``: whether CUDA graphs are ours to capture. Compiled kernels are kept in ``cache``
    beside the plan, so that the next process need not compile them.
    """

    def __init__(self, trt: Any, engine: Any, cache: PlanCache, record: PlanRecord) -> None:
        self.captures = True
        self._engine, self._cache, self._record = engine, cache, record
        self._options = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._kernels: Any = None
        self._kept: bytes | None = None
        if hasattr(engine, "create_runtime_config"):
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(self._options)
            self._options = config
            self._set_up(trt, config)

    def make(self) -> Any:
        """One more context, or None when the library refuses."""
        return self._engine.create_execution_context(self._options)

    def keep_kernels(self) -> None:
        """Keep the kernels that were compiled since they were last kept."""
        if self._kernels is None:
            return
        kernels = self._kernels.serialize()
        if kernels is not None and bytes(kernels) != self._kept:
            self._kept = bytes(kernels)
            self._cache.keep_kernels(self._record, self._kept)

    def _set_up(self, trt: Any, config: Any) -> None:
        """What only TensorRT-RTX has."""
        if hasattr(config, "cuda_graph_strategy"):
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            self.captures = False
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Not lazily, while the engine is used: kernels that change in between would give two
            # decodes of one file different last bits.
            config.dynamic_shapes_kernel_specialization_strategy = (
                trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        if hasattr(config, "create_runtime_cache"):
            self._kernels = config.create_runtime_cache()
            kept = self._cache.kernels(self._record)
            # The library takes what it compiled for this GPU, driver and version, nothing else.
            if kept is not None and self._kernels.deserialize(kept):
                self._kept = kept
            config.set_runtime_cache(self._kernels)
