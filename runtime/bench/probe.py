"""A backend that runs another one and notes every call: which graph, on what shapes, for how long.

The codec is measured as it is: what goes on inside a stage is seen from its calls of engines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from percoedge.bitstream.schedules import pass_count, passes
from percoedge.engines.contract import Backend, Buffer, Engine, Graph, TensorSpec, check_tensors
from percoedge.engines.tensorrt.library import LIBRARIES
from percoedge.runtime.clock import named_range
from percoedge.runtime.tiles import grid_tiles

__all__ = ["Call", "Layout", "Probe", "stages_of"]


@dataclass(frozen=True)
class Call:
    """One run of a graph: the size of every symbol in its inputs, and how long the call took."""

    kind: str
    sizes: Mapping[str, int]
    time_ms: float


@dataclass
class Probe:
    """See the contract of Backend. ``calls``: of all engines, in order."""

    backend: Backend
    calls: list[Call] = field(default_factory=list)

    @property
    def name(self) -> str:
        """That of the backend measured."""
        return self.backend.name

    @property
    def variant(self) -> str:
        """That of the backend measured."""
        return self.backend.variant

    @property
    def returns_early(self) -> bool:
        """Whether a call may return before the device is done: its time is that of queueing."""
        return self.name in LIBRARIES

    def load(self, graph: Graph) -> Engine:
        """Load a graph whose every call is then timed."""
        return _ProbedEngine(graph.kind, self.backend.load(graph), self.calls)


class _ProbedEngine:
    """An engine whose runs are noted."""

    def __init__(self, kind: str, engine: Engine, calls: list[Call]) -> None:
        self._kind, self._engine, self._calls = kind, engine, calls

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        began = time.perf_counter()
        with named_range(self._kind):
            outputs = self._engine.run(feeds, on_device=on_device)
        time_ms = (time.perf_counter() - began) * 1000
        sizes = check_tensors(f"{self._kind}: input", self.inputs, feeds)
        self._calls.append(Call(self._kind, sizes, time_ms))
        return outputs

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> _ProbedEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


@dataclass(frozen=True)
class Layout:
    """How the calls of one decode follow one another: ``grid`` of tokens (h,w), and settings.

    ``parts``: into how many the batch is cut, each of which is a sequence of calls.
    """

    grid: tuple[int, int]
    entropy_tile: int
    schedule: str
    steps: int
    returns_early: bool = False
    parts: int = 1

    def pass_numbers(self) -> list[int]:
        """Number (from 1) of the pass that each call of the entropy graph belongs to."""
        if self.schedule == "uniform":
            return []
        tiles = grid_tiles(*self.grid, self.entropy_tile)
        cells = {tile.shape: passes(self.schedule, *tile.shape) for tile in tiles}
        return [
            number + 1
            for number in range(pass_count(self.schedule))
            for tile in tiles
            if len(cells[tile.shape][number])
        ] * self.parts


def stages_of(
    timings_ms: Mapping[str, float], calls: Sequence[Call], layout: Layout, latency_ms: float
) -> dict[str, float]:
    """Milliseconds of each stage of one decode, in the order in which they run; they sum up to it.

    Passes and steps are timed by their calls. What else the codec does in that stage is "range
    coder" (with the arithmetic around it) and "flow, between steps"; "other" is what no stage
    covers. Where calls return early, steps are those of queueing, and "flow, waiting" is the rest.
    """
    rest = dict(timings_ms)
    stages: dict[str, float] = {
        name: rest.pop(name) for name in ("load", "container") if name in rest
    }
    if (coding := rest.pop("entropy decoding", None)) is not None:
        times = [call.time_ms for call in calls if call.kind == "entropy"]
        for number, time_ms in zip(layout.pass_numbers(), times, strict=True):
            name = f"MIM pass {number}"
            stages[name] = stages.get(name, 0.0) + time_ms
        stages["range coder"] = coding - sum(times)
    for name in ("text", "noise"):
        if name in rest:
            stages[name] = rest.pop(name)
    if (flow := rest.pop("flow", None)) is not None:
        times = [call.time_ms for call in calls if call.kind in ("flow", "flow_guided")]
        by_step = np.reshape(times, (layout.parts, layout.steps, -1)).sum(axis=(0, 2))
        verb = "flow, queueing step" if layout.returns_early else "flow step"
        for step, time_ms in enumerate(by_step.tolist(), 1):
            stages[f"{verb} {step}"] = time_ms
        name = "flow, waiting" if layout.returns_early else "flow, between steps"
        stages[name] = flow - sum(times)
    stages |= rest  # decoder, image
    stages["other"] = latency_ms - sum(stages.values())
    return stages
