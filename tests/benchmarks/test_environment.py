"""The note of how a figure was measured."""

from __future__ import annotations

import sys

import pytest

from benchmarks.environment import describe


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/home/me/benchmarks/speed.py", "python -m benchmarks.speed photo.png --rounds 3"),
        (
            "/home/me/benchmarks/quality/__main__.py",
            "python -m benchmarks.quality photo.png --rounds 3",
        ),
    ],
)
def test_the_command_can_be_typed_again(
    program: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "/home/me/photo.png", "--rounds", "3"])
    assert describe()["command"] == command
