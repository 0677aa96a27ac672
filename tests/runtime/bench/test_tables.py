"""Results as tables and CSV."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from percoedge.engines.bundle import Bundle
from percoedge.runtime.bench import machine
from percoedge.runtime.bench.case import Case
from percoedge.runtime.bench.tables import (
    UNKNOWN,
    Outcome,
    csv_text,
    device_table,
    stage_table,
    summary_table,
)


@pytest.fixture(scope="module")
def outcomes(fake_bundle: Bundle, case: Case, measured: Any) -> list[Outcome]:
    batched = Case("fake", "auto", 70, 50, 2, 3, None)
    found = [Outcome(one, measured(fake_bundle, one)) for one in (case, batched)]
    for outcome in found:
        (outcome.result or {})["joules_per_image"] = None  # some machines tell
    broken = Case("fake", "tensorrt", 70, 50, 2, 3, None)
    return [*found, Outcome(broken, error="expected <plans>, found none")]


def test_one_row_for_each_measured_case(outcomes: list[Outcome]) -> None:
    table = summary_table(outcomes)
    assert [row[0] for row in table.rows] == ["1", "2"]
    assert dict(zip(table.header, table.rows[0], strict=True))["J/image"] == UNKNOWN
    assert table.lines == [table.header, *table.rows]
    assert {len(line) for line in table.lines} == {len(table.header)}


def test_passes_and_steps_are_added_up(outcomes: list[Outcome]) -> None:
    table = stage_table(outcomes)
    row = dict(zip(table.header, table.rows[0], strict=True))
    stages = (outcomes[0].result or {})["stages_ms"]
    total = sum(time for name, time in stages.items() if name.startswith("MIM pass"))
    assert float(row["MIM passes"]) == pytest.approx(total, abs=0.01)
    assert "flow steps" in row


def test_what_the_gpu_did_where_it_tells(outcomes: list[Outcome]) -> None:
    assert device_table(outcomes) is None
    times = {"host to device": 0.25, "compute flow": 3.0, "enqueue": 1.5, "idle": 0.5}
    known = [
        outcomes[0],
        Outcome(outcomes[0].case, {**(outcomes[1].result or {}), "device_ms": times}),
    ]
    table = device_table(known)
    assert table is not None
    assert table.header == ("case", *times)
    assert table.rows == [("2", "0.25", "3.00", "1.50", "0.50")]
    first, second = csv.DictReader(io.StringIO(csv_text(known, machine.describe())))
    assert (first["device_ms"], second["device_ms: compute flow"]) == (UNKNOWN, "3.0")


def test_csv_tells_the_gpu_from_its_state(outcomes: list[Outcome]) -> None:
    on_gpu = Outcome(outcomes[0].case, {**(outcomes[0].result or {}), "gpu": {"watts": 300.5}})
    described = {**machine.describe(), "gpu": {"name": "an NVIDIA GPU", "driver": "600.1"}}
    (row,) = csv.DictReader(io.StringIO(csv_text([on_gpu], described)))
    assert (row["gpu of the machine: name"], row["gpu of the machine: driver"]) == (
        "an NVIDIA GPU",
        "600.1",
    )
    assert row["gpu: watts"] == "300.5"
    (row,) = csv.DictReader(io.StringIO(csv_text(outcomes[:1], {**described, "gpu": None})))
    assert row["gpu of the machine: name"] == UNKNOWN


def test_csv_holds_every_figure_and_failures(outcomes: list[Outcome]) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(outcomes, machine.describe()))))
    assert [row["batch"] for row in rows] == ["1", "2", "2"]
    assert rows[0]["joules_per_image"] == UNKNOWN
    assert float(rows[0]["latency_ms: p99"]) > 0
    assert rows[2]["error"] == "expected <plans>, found none"
    assert rows[2]["latency_ms: p50"] == ""
