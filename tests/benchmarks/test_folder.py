"""The comparison of a folder with its files one by one, on two small pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import folder as benchmark


@pytest.mark.slow
def test_every_way_is_told_beside_one_by_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size", "64", "--steps", "1", "--rounds", "2", "--jobs", "1"]
    monkeypatch.setattr(sys, "argv", ["folder.py", str(folder), *options])
    benchmark.main()
    found = json.loads(capsys.readouterr().out)
    assert (found["photos"], found["rounds"]) == (2, 2)
    ways = ["one by one", "folder", "folder, 1 jobs"]
    assert list(found["per_image"]) == list(found["times_as_fast_as_one_by_one"]) == ways
    assert found["times_as_fast_as_one_by_one"]["one by one"] == 1
