"""Turns, medians and ratios."""

from __future__ import annotations

import sys

import pytest

from benchmarks.timing import interleaved, process_cost, race, summary, times_as_fast


def test_everything_takes_turns_after_a_round_that_does_not_count() -> None:
    calls: list[str] = []
    times = interleaved({name: lambda n=name: calls.append(n) for name in "ab"}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3}


def test_median_and_spread_of_quartiles() -> None:
    assert summary([4.0, 1.0, 3.0, 2.0, 5.0]) == {"median_ms": 3.0, "iqr_ms": 3.0}


def test_ratios_are_those_of_the_same_round() -> None:
    times = {"ours": [1.0, 2.0, 4.0], "eager": [3.0, 6.0, 12.0]}
    assert times_as_fast(times, ("eager", "compile")) == {
        "ours": {"over_eager": {"median": 3.0, "quartile_1": 3.0, "quartile_3": 3.0}}
    }


@pytest.mark.parametrize("rivals", [(), ("b",)])
def test_a_race_tells_the_first_call_apart(rivals: tuple[str, ...]) -> None:
    calls: list[str] = []
    found = race({name: lambda n=name: calls.append(n) for name in "ab"}, 2, rivals)
    assert calls == ["a", "b"] * 4  # loading, warming up, two rounds
    assert found["first_ms"].keys() == found["times"].keys() == {"a", "b"}
    assert list(found["times_as_fast"]) == (["a"] if rivals else [])


def test_a_process_is_told_by_its_time_and_memory() -> None:
    code = "block = bytearray(b'x') * (64 << 20); sum(range(10 ** 6))"
    ours = bytearray(b"x") * (256 << 20)  # memory of this process does not count
    cost = process_cost([sys.executable, "-S", "-c", code])
    assert 64 < cost.peak_mib < len(ours) >> 20
    assert cost.wall_s > 0 and cost.processor_s > 0
    with pytest.raises(SystemExit, match="failed with status"):
        process_cost([sys.executable, "-S", "-c", "raise SystemExit(3)"])
