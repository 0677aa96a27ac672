"""What ``percoedge bench --json`` printed, as the records that it was made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from percoedge.errors import InputError
from percoedge.runtime.bench.case import Case, Limits
from percoedge.runtime.bench.tables import UNKNOWN, Outcome

__all__ = ["Measurement", "read_measurement"]


@dataclass(frozen=True)
class Measurement:
    """One run of the command: what it ran on, when it had enough, and every case."""

    machine: dict[str, Any]
    limits: Limits
    outcomes: list[Outcome]

    @property
    def measured(self) -> list[tuple[int, Case, dict[str, Any]]]:
        """Number (from 1), case and result of the cases that have one."""
        return [
            (number, outcome.case, outcome.result)
            for number, outcome in enumerate(self.outcomes, 1)
            if outcome.result is not None
        ]


def read_measurement(path: Path) -> Measurement:
    """Read the file. Raises InputError when it is missing or not of this version's command."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.get("command") != "bench":
            raise ValueError(f"command {record.get('command')!r}")
        cases = [_known(case) for case in record["cases"]]
        measurement = Measurement(
            _known(record["machine"]),
            Limits(**record["limits"]),
            [_outcome(case) for case in cases],
        )
        for _, _, result in measurement.measured:
            result["latencies_ms"][0], result["stages_ms"]["decoder"]
            result["encode_ms"], result["alone"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: expected what percoedge bench --json prints, got {error!r}; measure again "
            "with this version"
        ) from error
    if not measurement.measured:
        raise InputError(f"{path}: expected a case that was measured, got failures only")
    return measurement


def _outcome(case: dict[str, Any]) -> Outcome:
    described = dict(case.pop("case"))
    if described["threads"] == "auto":
        described["threads"] = None
    error = case.pop("error", "")
    return Outcome(Case(**described), case or None, error)


def _known(value: Any) -> Any:
    """The same with None for "unknown"."""
    if isinstance(value, dict):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_known(part) for part in value]
    return None if value == UNKNOWN else value
