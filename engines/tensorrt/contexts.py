"""Execution contexts of an engine: all that differs between the libraries when plans are run.

The memory of activations is given to the contexts, in every library. TensorRT-RTX compiles kernels
for the GPU at hand when a plan is run, and captures CUDA graphs by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from percoedge.engines.plans.cache import PlanCache, kernels_name
from percoedge.engines.plans.record import PlanRecord
from percoedge.engines.tensorrt.layers import describe_layers

__all__ = ["Contexts"]


class Contexts:
    """Makes contexts of ``engine``, the library's; ``trt`` is its module.

    ``captures``: whether CUDA graphs are ours to capture. Compiled kernels are kept in ``cache``
    beside the plan, so that the next process need not compile them. All contexts share them, and
    must be gone before this is.
    """

    def __init__(self, trt: Any, engine: Any, cache: PlanCache, record: PlanRecord) -> None:
        self.captures = True
        self._engine, self._cache, self._record = engine, cache, record
        self._trt = trt
        self._options = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._plain: Any = None
        self._kernels: Any = None
        self._kept: bytes | None = None
        if hasattr(engine, "create_runtime_config"):
            self._options = self._configuration()
            self.captures = self._set_up(self._options)

    def make(self, sizes: Mapping[str, int], stream: int) -> Any:
        """One more context for these sizes of symbols, or None when the library refuses.

        ``stream``: where it is to be used.
        """
        return self._tuned(self._engine.create_execution_context(self._options), sizes, stream)

    def make_plain(self, sizes: Mapping[str, int], stream: int) -> Any:
        """The same, but it never captures by itself, so that its layers can be timed."""
        if not hasattr(self._options, "cuda_graph_strategy"):
            return self.make(sizes, stream)
        if self._plain is None:
            self._plain = self._configuration()
            self._set_up(self._plain)
            self._plain.cuda_graph_strategy = self._trt.CudaGraphStrategy.DISABLED
        return self._tuned(self._engine.create_execution_context(self._plain), sizes, stream)

    def _tuned(self, context: Any, sizes: Mapping[str, int], stream: int) -> Any:
        """The context with the first of the plan's profiles that covers the sizes."""
        if context is None:
            return None
        # Plans hold all details, for ``describe``; telling them to profilers slows every run down.
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        profiles = self._record.profile.tuned(self._record.request.each_batch)
        if len(profiles) == 1:
            return context
        fitting = (number for number, one in enumerate(profiles) if one.covers(sizes))
        number = next(fitting, 0)  # shapes that none covers are refused later
        return context if context.set_optimization_profile_async(number, stream) else None

    def describe(self, context: Any) -> Any:
        """What the library tells of the engine's layers; see ``describe_layers``."""
        return describe_layers(self._trt, self._engine, context)

    def keep_kernels(self) -> None:
        """Keep the kernels that were compiled since they were last kept."""
        if self._kernels is None:
            return
        kernels = self._kernels.serialize()
        if kernels is not None and bytes(kernels) != self._kept:
            self._kept = bytes(kernels)
            self._cache.keep(kernels_name(self._record.plan_name), self._kept)

    def _configuration(self) -> Any:
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(
            self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        return config

    def _set_up(self, config: Any) -> bool:
        """What only TensorRT-RTX has; returns whether CUDA graphs are still ours to capture."""
        captures = not hasattr(config, "cuda_graph_strategy")
        if not captures:
            config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if hasattr(config, "dynamic_shapes_kernel_specialization_strategy"):
            # Not lazily, while the engine is used: kernels that change in between would give two
            # decodes of one file different last bits.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
        if hasattr(config, "create_runtime_cache"):
            if self._kernels is None:
                self._kernels = config.create_runtime_cache()
                kept = self._cache.kept(kernels_name(self._record.plan_name))
                # The library takes what it compiled for this GPU, driver and version, nothing else.
                if kept is not None and self._kernels.deserialize(kept):
                    self._kept = kept
            config.set_runtime_cache(self._kernels)
        return captures
