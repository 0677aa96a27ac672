"""How the cases to measure are written, and how they are called."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from percoedge.errors import UsageError
from percoedge.runtime.bench.case import Case, cases_from_options
from percoedge.runtime.bench.tables import labels


def options_of(**changes: Any) -> Namespace:
    defaults = {
        **{"bundle": "tiny", "backend": "auto", "size": "64x32", "batch": "1"},
        **{"steps": None, "threads": None, "lanes": "1", "low_memory": False},
    }
    return Namespace(**{**defaults, **changes})


def test_every_combination_is_a_case() -> None:
    options = options_of(size="64x32,32x64", batch="1,4", steps="1,2", threads="1,2,1")
    cases = cases_from_options(options)
    assert len(set(cases)) == len(cases) == 16
    assert cases[0] == Case("tiny", "auto", 64, 32, 1, 1, 1)


def test_streams_are_cases_too() -> None:
    one, four = cases_from_options(options_of(lanes="1,4"))
    assert (one.streams, four.streams) == (1, 4)
    assert str(four) == f"{one}, 4 streams"


def test_steps_are_those_of_the_bundle() -> None:
    assert [case.steps for case in cases_from_options(options_of())] == [2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": "512"}, "--size"),
        ({"size": "0x5"}, "--size"),
        ({"size": "99999x1"}, "--size"),
        ({"batch": "1,,2"}, "--batch"),
        ({"batch": "0"}, "--batch"),
        ({"steps": "256"}, "1 to 255"),
        ({"lanes": "0"}, "--streams"),
        ({"threads": "two"}, "--threads"),
        ({"threads": "100000"}, "--threads"),
        ({"lanes": "100000"}, "--streams"),
        ({"backend": "auto,abacus"}, "abacus"),
    ],
)
def test_mistakes_are_told(change: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        cases_from_options(options_of(**change))


def test_labels_say_what_differs(case: Case) -> None:
    second = Case("fake", "auto", 70, 50, 8, 3, 2)
    assert labels([case, second]) == ["batch 1, threads auto", "batch 8, threads 2"]
    assert labels([case]) == ["fake, auto, 70x50, batch 1, 3 steps, threads auto, 1 stream"]
