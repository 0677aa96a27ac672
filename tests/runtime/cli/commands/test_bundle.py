"""percoedge bundle verify and zip."""

from __future__ import annotations

from pathlib import Path

from percoedge.engines.bundle import Bundle
from tests.runtime.cli.command_line import (
    Run,
    assert_refused,
    spoil,
    weights_of,
)


def test_verify(run: Run, bundle_copy: Path) -> None:
    assert run("bundle", "verify", "tiny").code == 0
    record = run("bundle", "verify", bundle_copy, "--json").record
    assert (record["sound"], record["bundle"]) == (True, "tiny")
    spoil(weights_of(bundle_copy, "flow"))
    assert_refused(run("bundle", "verify", bundle_copy), 4, "expected SHA-256")


def test_zip(run: Run) -> None:
    result = run("bundle", "zip", "tiny", "--json")
    assert (result.code, result.record["output"]) == (0, "tiny.zip")
    assert Bundle.open("tiny.zip").fingerprint == Bundle.open("tiny").fingerprint
    assert_refused(run("bundle", "zip", "tiny"), 2, "is there already")
    assert_refused(run("bundle", "zip", "tiny.zip", "-o", "tiny.zip"), 2, "other than the")
    assert_refused(run("bundle", "zip", "tiny", "-o", "-"), 2, "to a file only")
