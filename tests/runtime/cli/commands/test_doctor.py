"""percoedge doctor: it finds what is broken, and goes on."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from percoedge import bundles
from percoedge.engines.bundle import Bundle
from tests.runtime.cli.command_line import (
    Run,
    fresh,
    spoil,
    weights_of,
)


def test_all_is_well(run: Run) -> None:
    result = run("doctor", "--json")
    record = result.record
    assert (result.code, record["problems"]) == (0, [])
    assert record["auto"] in [b["name"] for b in record["backends"] if b["available"]]
    assert all(b["reason"] for b in record["backends"] if not b["available"])
    assert record["versions"]["numpy"] == np.__version__
    assert set(record["image_formats"]) == {"JPEG", "PNG", "WebP", "AVIF", "ICC"}
    assert record["range_coder"]
    (tiny,) = (b for b in record["bundles"] if b["name"] == "tiny")
    assert tiny["sound"]
    assert tiny["fingerprint"] == Bundle.open("tiny").fingerprint.hex()
    text = run("doctor").out.decode()
    assert re.search(rf"^auto takes +{record['auto']}$", text, re.MULTILINE)
    works = [b["name"] for b in record["backends"] if b["available"]]
    assert [row["backend"] for row in record["golden"]] == works
    on_cpu = {"backend": "onnxruntime-cpu", "ok": True, "reason": "", "cuda_graphs": None}
    assert on_cpu in record["golden"]
    assert "golden stream  onnxruntime-cpu: ok\n" in text
    assert text.endswith("all is well\n")
    assert run("doctor", "-q") == (0, b"", "")


def test_tells_problems(run: Run, monkeypatch: pytest.MonkeyPatch, bundle_copy: Path) -> None:
    spoil(weights_of(bundle_copy, "decoder"))
    monkeypatch.setattr(bundles, "shipped_bundles", lambda: {"mine": bundle_copy})
    result = run("doctor")
    assert result.code == 4
    assert "mine (?): BROKEN" in result.out.decode()
    assert "bundle mine: " in result.out.decode()
    monkeypatch.setattr(bundles, "shipped_bundles", dict)
    assert "found none" in run("doctor", "--json").record["problems"][0]


def test_wrong_tokens_are_a_problem(
    run: Run, monkeypatch: pytest.MonkeyPatch, stream: bytes
) -> None:
    golden = bundles.golden_stream()
    wrong = dataclasses.replace(golden, data=stream)  # a sound one, but of other tokens
    monkeypatch.setattr(bundles, "golden_stream", lambda: wrong)
    result = run("doctor")
    assert result.code == 4
    text = result.out.decode()
    assert "golden stream  onnxruntime-cpu: FAILED\n" in text
    digest = golden.tokens_sha256[:16]
    assert f"golden stream on onnxruntime-cpu: expected tokens {digest}, got" in text
    assert [row["ok"] for row in run("doctor", "--json").record["golden"]] == [False]


def test_goes_on_without_golden_stream_or_its_bundle(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = dataclasses.replace(bundles.golden_stream(), bundle="lost")
    with monkeypatch.context() as patch:
        patch.setattr(bundles, "golden_stream", lambda: lost)
        record = run("doctor", "--json").record
    assert record["golden"] == []
    assert record["problems"][0].startswith("golden stream: expected a bundle directory")
    monkeypatch.setattr(bundles, "__file__", str(tmp_path / "__init__.py"))
    for contents in (None, "[]", "{", '{"data": 1}'):
        if contents is not None:
            (tmp_path / "golden.json").write_text(contents)
        result = run("doctor", "--json")
        assert result.code == 4
        assert any("expected a golden stream" in line for line in result.record["problems"])


def test_goes_on_without_onnxruntime() -> None:
    code = (
        "import sys; sys.modules['onnxruntime'] = None; "
        "from percoedge.runtime.cli.main import main; sys.exit(main(['doctor', '--json']))"
    )
    result = fresh("-c", code)
    assert (result.returncode, result.stderr) == (4, b"")
    record = json.loads(result.stdout)
    assert (record["auto"], record["golden"]) == (None, [])
    assert record["bundles"][0]["sound"]
    assert any(line.startswith("auto: ") for line in record["problems"])


def test_survives_a_missing_library() -> None:
    code = (
        "import sys; sys.modules['numpy'] = None; from percoedge.runtime.cli.main import main; "
        "sys.exit(main(['doctor']))"
    )
    result = fresh("-c", code)
    assert (result.returncode, result.stderr) == (4, b"")
    assert b"problem" in result.stdout
    lost = fresh("-c", code.replace("doctor", "info', 'a.pco"))
    assert lost.returncode == 4
    assert re.fullmatch(rb"percoedge: error: a library cannot be [^\n]+\n", lost.stderr)
