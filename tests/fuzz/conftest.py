"""Puts this folder on the path: its modules are scripts as well, and import one another."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fuzz_checks import Target
from fuzz_inputs import Seed, seeds


@pytest.fixture(scope="session")
def target() -> Target:
    return Target()


@pytest.fixture(scope="session")
def golden(target: Target) -> list[Seed]:
    return seeds(target)
