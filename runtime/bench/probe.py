"""A backend that runs another one and notes every call: which graph, on what shapes, for how long.

The codec is measured as it is: what goes on inside a stage is seen from its calls of engines.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from percoedge.bitstream.schedules import pass_table
from percoedge.engines.contract import Backend, Buffer, Engine, Graph, TensorSpec, check_tensors
from percoedge.engines.tensorrt.library import LIBRARIES
from percoedge.runtime.clock import named_range

__all__ = ["Call", "Probe", "stages_of"]

_PLACES = {"entropy": "positions", "flow": "t", "flow_guided": "t"}


@dataclass(frozen=True)
class Call:
    """One run of a graph: the size of every symbol in its inputs, and how long the call took.

    ``place``: what tells runs apart, time t for the flow and the first position for the entropy
    graph. ``queued``: whether it returned before the device was done.
    """

    kind: str
    sizes: Mapping[str, int]
    time_ms: float
    place: float = 0.0
    queued: bool = False


@dataclass
class Probe:
    """See the contract of Backend. ``calls``: of all engines, in order.

    Only those of the thread that made it. ``feeds``: of the last call of each kind, where
    ``keeps_feeds``.
    """

    backend: Backend
    calls: list[Call] = field(default_factory=list)
    feeds: dict[str, Mapping[str, Buffer]] = field(default_factory=dict)
    keeps_feeds: bool = False
    thread: int = field(default_factory=threading.get_ident)

    @property
    def name(self) -> str:
        """That of the backend measured."""
        return self.backend.name

    @property
    def variant(self) -> str:
        """That of the backend measured."""
        return self.backend.variant

    def load(self, graph: Graph) -> Engine:
        """Load a graph whose every call is then timed."""
        return _ProbedEngine(graph.kind, self.backend.load(graph), self)


class _ProbedEngine:
    """An engine whose runs are noted."""

    def __init__(self, kind: str, engine: Engine, probe: Probe) -> None:
        self._kind, self._engine, self._probe = kind, engine, probe

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._engine.outputs

    @property
    def max_batch(self) -> int | None:
        return self._engine.max_batch

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        if threading.get_ident() != self._probe.thread:
            return self._engine.run(feeds, on_device=on_device)
        began = time.perf_counter()
        with named_range(self._kind):
            outputs = self._engine.run(feeds, on_device=on_device)
        time_ms = (time.perf_counter() - began) * 1000
        sizes = check_tensors(f"{self._kind}: input", self.inputs, feeds)
        place = feeds.get(_PLACES.get(self._kind, ""))
        first = 0.0 if place is None else float(np.asarray(place)[0])
        queued = on_device and self._probe.name in LIBRARIES
        self._probe.calls.append(Call(self._kind, sizes, time_ms, first, queued))
        if self._probe.keeps_feeds:
            self._probe.feeds[self._kind] = dict(feeds)
        return outputs

    def close(self) -> None:
        self._engine.close()

    def __enter__(self) -> _ProbedEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()


def stages_of(
    timings_ms: Mapping[str, float], calls: Sequence[Call], schedule: str, latency_ms: float
) -> dict[str, float]:
    """Milliseconds of each stage of one decode, in the order in which they run; they sum up to it.

    ``schedule``: that of its tokens. Passes and steps are timed by their calls. What else the codec
    does in that stage is "range coder" (with the arithmetic around it) and "flow, between steps";
    "other" is what no stage covers. Where calls of the flow were queued, their times are those of
    queueing, and "flow, waiting" is the rest.
    """
    rest = dict(timings_ms)
    stages: dict[str, float] = {
        name: rest.pop(name) for name in ("load", "container") if name in rest
    }
    if (coding := rest.pop("entropy decoding", None)) is not None:
        passes = [call for call in calls if call.kind == "entropy"]
        for call in passes:
            table = pass_table(schedule, call.sizes["h"], call.sizes["w"])
            name = f"MIM pass {table.flat[int(call.place)] + 1}"
            stages[name] = stages.get(name, 0.0) + call.time_ms
        stages["range coder"] = coding - sum(call.time_ms for call in passes)
    for name in ("text", "noise"):
        if name in rest:
            stages[name] = rest.pop(name)
    if (flow := rest.pop("flow", None)) is not None:
        steps = [call for call in calls if call.kind in ("flow", "flow_guided")]
        queued = any(call.queued for call in steps)
        times = sorted({call.place for call in steps}, reverse=True)
        for number, time in enumerate(times, 1):
            verb = "flow, queueing step" if queued else "flow step"
            of_step = [call.time_ms for call in steps if call.place == time]
            stages[f"{verb} {number}"] = sum(of_step)
        name = "flow, waiting" if queued else "flow, between steps"
        stages[name] = flow - sum(call.time_ms for call in steps)
    stages |= rest  # decoder, image
    stages["other"] = latency_ms - sum(stages.values())
    return stages
