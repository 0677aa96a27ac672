"""Which call of which graph belongs to which stage."""

from __future__ import annotations

from typing import Any

import pytest

from percoedge.bitstream.schedules import passes
from percoedge.engines.bundle import Bundle
from percoedge.runtime.bench.probe import Call, Probe, stages_of
from percoedge.runtime.codec import Codec
from percoedge.runtime.tiling.tiles import grid_tiles


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
    stages = stages_of(codec.timings_ms, probe.calls, schedule, 1000.0)
    tiles = grid_tiles(-(-size[0] // 8), -(-size[1] // 8), fake_bundle.codec.entropy_tile)
    numbers = {
        number
        for tile in tiles
        for number, cells in enumerate(passes(schedule, *tile.shape), 1)
        if len(cells)
    }
    named = [name for name in stages if name.startswith("MIM pass")]
    wanted = [] if schedule == "uniform" else sorted(numbers)
    assert named == [f"MIM pass {number}" for number in wanted]
    assert [name for name in stages if name.startswith("flow")] == [
        *("flow step 1", "flow step 2", "flow, between steps")
    ]
    assert sum(stages.values()) == pytest.approx(1000)


def test_calls_that_return_early_are_told_to_be_queueing() -> None:
    calls = [Call("flow", {"n": 1}, 0.5, t, queued=True) for t in (1.0, 0.5, 1.0, 0.5)]
    stages = stages_of({"flow": 5.0, "decoder": 2.0}, calls, "uniform", 8.0)
    assert stages == {
        "flow, queueing step 1": 1,
        "flow, queueing step 2": 1,
        "flow, waiting": 3,
        "decoder": 2,
        "other": 1,
    }
