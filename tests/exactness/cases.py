"""The cases of the exactness trials, and how a target's answers are compared with the right ones.

A case is a batch of token grids of one size, and positions. Tokens come from the raw integers of
Philox, so they are the same on every machine. The right answers are digests of the weights that
numpy's int64 reference gives (reference.py); this module needs numpy only and runs on any target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = Callable[[NDArray[np.int32], NDArray[np.int32]], NDArray[Any]]
"""Runs the graph: tokens int32 (n,h,w), positions int32 (p,) -> weights int32 (n,p,K)."""

# Name: rows, columns, slots. The last sizes are whole tiles of large photos.
_SIZES = {
    "1x1": (1, 1, 8),
    "7x5": (7, 5, 8),
    "3x64": (3, 64, 2),
    "16x16": (16, 16, 4),
    "32x32": (32, 32, 2),
    "64x48": (64, 48, 1),
    "64x64": (64, 64, 1),
}
_MASKED_SIXTEENTHS = (8, 16, 0, 15, 1, 12, 4, 10)  # slot by slot: how much of a grid is masked
_FEW = 7  # kinds of tokens in every other grid, like the even parts of a photo


Report = Callable[["Tally"], None]
"""The fixture that adds a tally to the table at the end and fails the test if it holds an error."""

Target = Callable[[Sequence["str | Path"], int], "Tally"]
"""The fixture that starts a target's program, with a limit in seconds, for the tally it prints."""


@dataclass(frozen=True)
class Case:
    """Grids (n,h,w) and positions (p,), int32; ``digests``: of each slot's right weights (p,K)."""

    name: str
    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    digests: tuple[str, ...] = ()

    @property
    def cells(self) -> int:
        """Tokens of one grid."""
        return int(self.tokens[0].size)


@dataclass
class Tally:
    """What was compared on one target; ``wrong`` names what differed and is empty for a pass."""

    target: str
    configurations: int = 0
    runs: int = 0
    grids: int = 0
    integers: int = 0
    streams: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def json_line(self) -> str:
        """How a target reports to the machine that started it."""
        return json.dumps(asdict(self))


def make_cases(classes: int) -> list[Case]:
    """All cases, without answers; ``classes`` is K, also the id of a masked token."""
    cases = []
    for number, (name, (height, width, slots)) in enumerate(_SIZES.items()):
        grids = np.empty((slots, height, width), np.int32)
        for slot in range(slots):
            draws = np.random.Philox(key=[number, slot]).random_raw(height * width)
            kinds = classes if slot % 2 == 0 else _FEW
            tokens = (draws >> np.uint64(32)) % np.uint64(kinds)
            masked = draws % np.uint64(16) < np.uint64(_MASKED_SIXTEENTHS[slot])
            grids[slot] = np.where(masked, classes, tokens).reshape(height, width)
        draws = np.random.Philox(key=[number, 1000]).random_raw(height * width)
        chosen = draws % np.uint64(max(1, height * width // 128)) == 0  # about 128 cells or all
        chosen[[0, -1]] = True  # two corners
        cases.append(Case(name, grids, np.flatnonzero(chosen).astype(np.int32)))
    return cases


def digest(values: NDArray[Any]) -> str:
    """SHA-256 (hex) of integers as little-endian int32, in C order."""
    return hashlib.sha256(np.ascontiguousarray(values, "<i4").tobytes()).hexdigest()


def batches(slots: int) -> list[list[int]]:
    """Slots to run together: every size up to ``slots``, and every slot in every place."""
    return [
        [(first + place) % slots for place in range(size)]
        for size in range(1, slots + 1)
        for first in range(slots)
    ]


def compare(
    run: Run, case: Case, compositions: Iterable[Sequence[int]], where: str, tally: Tally
) -> None:
    """Run batches of a case's slots and count, in ``tally``, what was right and what was not."""
    for slots in compositions:
        weights = np.asarray(run(case.tokens[list(slots)], case.positions))
        tally.runs += 1
        if weights.dtype != np.int32 or weights.shape[:2] != (len(slots), len(case.positions)):
            tally.wrong.append(f"{where} {case.name}: got {weights.dtype} {weights.shape}")
            continue
        for place, slot in enumerate(slots):
            tally.grids += 1
            tally.integers += weights[place].size
            if digest(weights[place]) != case.digests[slot]:
                tally.wrong.append(f"{where} {case.name}: slot {slot} in place {place} of {slots}")


def write_cases(cases: Sequence[Case], folder: Path) -> None:
    """Write ``cases.json`` and ``cases.bin`` (int32, little endian) for targets to read."""
    blob = bytearray()
    table = []
    for case in cases:
        entry: dict[str, Any] = {"name": case.name, "digests": case.digests}
        for key, value in (("tokens", case.tokens), ("positions", case.positions)):
            entry[key] = {"offset": len(blob), "shape": value.shape}
            blob += value.astype("<i4").tobytes()
        table.append(entry)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cases.bin").write_bytes(blob)
    (folder / "cases.json").write_text(json.dumps(table, indent=1) + "\n")


def read_cases(folder: Path) -> list[Case]:
    """Read what ``write_cases`` wrote."""
    blob = (folder / "cases.bin").read_bytes()

    def array(entry: dict[str, Any]) -> NDArray[np.int32]:
        shape = entry["shape"]
        count = int(np.prod(shape))
        return np.frombuffer(blob, "<i4", count, entry["offset"]).astype(np.int32).reshape(shape)

    return [
        Case(
            name=entry["name"],
            tokens=array(entry["tokens"]),
            positions=array(entry["positions"]),
            digests=tuple(entry["digests"]),
        )
        for entry in json.loads((folder / "cases.json").read_text())
    ]
