"""Which call of which graph belongs to which stage."""

from __future__ import annotations

from typing import Any

import pytest

from percoedge.engines.bundle import Bundle
from percoedge.runtime.bench.probe import Layout, Probe, stages_of
from percoedge.runtime.codec import Codec


@pytest.mark.parametrize("size", [(8, 8), (70, 33), (100, 64)])
@pytest.mark.parametrize("schedule", ["uniform", "checkerboard", "qlds-12", "var"])
def test_passes_are_told_apart_whatever_the_tiles(
    fake_bundle: Bundle, fakes: Any, size: tuple[int, int], schedule: str
) -> None:
    probe = Probe(fakes.backend())
    codec = Codec(fake_bundle, probe)
    stream = codec.encode(fakes.photo(*size), schedule=schedule)
    probe.calls.clear()
    codec.decode(stream, steps=2)
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    layout = Layout(grid, fake_bundle.codec.entropy_tile, schedule, steps=2)
    runs = sum(call.kind == "entropy" for call in probe.calls)
    assert len(layout.pass_numbers()) == runs
    stages = stages_of(codec.timings_ms, probe.calls, layout, 1000.0)
    named = {name for name in stages if name.startswith("MIM pass")}
    assert len(named) == len(set(layout.pass_numbers()))
    assert sum(stages.values()) == pytest.approx(1000)


def test_calls_that_return_early_are_told_to_be_queueing() -> None:
    layout = Layout((1, 1), 4, "uniform", 1, returns_early=True)
    stages = stages_of({"flow": 5.0, "decoder": 2.0}, [], layout, 8.0)
    assert stages == {
        "flow, queueing step 1": 0,
        "flow, waiting": 5,
        "decoder": 2,
        "other": 1,
    }
