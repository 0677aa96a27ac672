"""The bundle under trial, and the cases with their answers.

``--bundle`` (when this folder is named on the command line) or PERCOEDGE_BUNDLE chooses a bundle;
the default is the one that is shipped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cases import Case, Report, Tally, Target, make_cases, write_cases
from reference import answered

from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.export.exact.integers import IntegerMim
from percoedge.export.exact.read import integers_of
from percoedge.runtime.entropy import EntropyCodec

_HERE = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bundle", help="bundle whose entropy graph is tried: a name or a path")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker("exactness")


@pytest.fixture(scope="session")
def bundle(request: pytest.FixtureRequest) -> Bundle:
    # The option does not exist when this file was loaded after the command line was read.
    chosen = request.config.getoption("--bundle", default=None)
    return Bundle.open(chosen or os.environ.get("PERCOEDGE_BUNDLE") or "tiny")


@pytest.fixture(scope="session")
def model(bundle: Bundle) -> IntegerMim:
    return integers_of(bundle)


@pytest.fixture(scope="session")
def small_cases(bundle: Bundle, model: IntegerMim) -> list[Case]:
    """Those of at most 256 cells, whose answers take no time."""
    made = make_cases(bundle.codec.codebook_size)
    return answered(model, [case for case in made if case.cells <= 256])


@pytest.fixture(scope="session")
def cases(bundle: Bundle, model: IntegerMim, small_cases: list[Case]) -> list[Case]:
    made = make_cases(bundle.codec.codebook_size)
    return small_cases + answered(model, [case for case in made if case.cells > 256])


@pytest.fixture(scope="session")
def coder(bundle: Bundle) -> EntropyCodec:
    engine = OnnxRuntimeBackend(threads=1).load(bundle.read("entropy", "fp32"))
    return EntropyCodec(engine, bundle.codec.codebook_size, bundle.codec.entropy_tile)


@pytest.fixture(scope="session")
def case_folder(tmp_path_factory: pytest.TempPathFactory, cases: list[Case]) -> Path:
    """What targets read, besides the bundle."""
    folder = tmp_path_factory.mktemp("cases")
    write_cases(cases, folder)
    return folder


@pytest.fixture(scope="session")
def cache() -> Path:
    """Where prepare.sh puts what it fetches."""
    chosen = os.environ.get("PERCOEDGE_EXACTNESS_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "percoedge-ci" / "exactness"


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Adds a tally to the table at the end (tests/conftest.py), and fails if anything is wrong."""

    def add(tally: Tally) -> None:
        request.node.user_properties.append(("tally", dataclasses.asdict(tally)))
        assert tally.runs + tally.streams > 0
        assert tally.wrong == []

    return add


@pytest.fixture
def target() -> Target:
    """Starts the program of a target and returns the tally it prints."""

    def start(command: Sequence[str | Path], limit_s: int) -> Tally:
        finished = subprocess.run(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        sys.stderr.write(finished.stderr)
        fields: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return Tally(**fields)

    return start
