"""The right answers: the integers of an entropy graph, read back from its file, run in int64.

No inference library takes part: the integers come out of the file's constants, and
percoedge.export.exact.integers computes with them in numpy. test_reference.py proves that nothing
of the graph is overlooked, by building the graph anew from what was read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np
from cases import Case, digest

from percoedge.export.exact.integers import IntegerMim, reference_weights


def answered(model: IntegerMim, cases: Iterable[Case]) -> list[Case]:
    """The cases with the digests of the right weights; each grid is computed by itself."""
    return [
        dataclasses.replace(
            case,
            digests=tuple(
                digest(
                    reference_weights(
                        model, grid[None].astype(np.int64), case.positions.astype(np.int64)
                    )[0]
                )
                for grid in case.tokens
            ),
        )
        for case in cases
    ]
