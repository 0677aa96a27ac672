"""percoedge bench: a matrix on the real bundle, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from percoedge.runtime.bench.tables import UNKNOWN
from percoedge.runtime.cli.main import main


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        quick = ("--warmup", "0", "--seconds", "0", "--iterations", "2", "--size", "48x32")
        code = main(["bench", *quick, *arguments])
        return code, *capsys.readouterr()

    return call


@pytest.mark.slow
def test_a_matrix_on_the_real_bundle(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run(
        *("--json", "--steps", "1", "--backend", "onnxruntime-cpu,tensorrt"),
        *("--export-times", "times.json"),
    )
    assert code == 4  # no engine files of TensorRT
    record = json.loads(out)
    good, bad = record["cases"]
    assert good["iterations"] == 2
    assert good["case"]["threads"] == "auto"
    assert 0 < good["latency_ms"]["p50"] <= good["latency_ms"]["p99"]
    assert {graph["graph"] for graph in good["graphs"]} == {"entropy", "flow", "decoder"}
    assert all(graph["fraction_of_matrix_rate"] > 0 for graph in good["graphs"])
    assert good["joules_per_image"] == UNKNOWN or good["joules_per_image"] > 0
    assert good["peak_device_bytes"] == UNKNOWN
    assert "tensorrt" in bad["error"]
    times = json.loads(Path("times.json").read_text())["cases"]
    assert [len(case["times"]) for case in times] == [2]
    assert times[0]["case"] == good["case"]


@pytest.mark.slow
def test_graphs_and_layers_by_themselves(run: Callable[..., tuple[int, str, str]]) -> None:
    options = ("--steps", "1", "--backend", "onnxruntime-cpu", "--layers")
    code, out, _ = run("--json", *options)
    assert code == 0
    alone = {graph["graph"]: graph for graph in json.loads(out)["cases"][0]["alone"]}
    assert alone.keys() == {"encoder", "entropy", "flow", "decoder"}
    for graph in alone.values():
        assert 0 < graph["latency_ms"]["p50"] <= graph["latency_ms"]["p99"]
        assert graph["runs_per_s"] > 0
        assert graph["compute_ms"] == UNKNOWN
        assert len(graph["layers"]) > 10 and min(graph["layers"].values()) >= 0
    assert any("MatMul" in name for name in alone["flow"]["layers"])
    assert alone["decoder"]["sizes"] == {"n": 1, "h": 2, "w": 3}
    code, out, _ = run(*options)
    assert "layer " in out and "compute p50" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "begins", "between"), [("table", "case  bundle  ", 1), ("markdown", "| case | bun", 2)]
)
def test_tables(
    run: Callable[..., tuple[int, str, str]], form: str, begins: str, between: int
) -> None:
    code, out, _ = run("--steps", "1", "--format", form)
    lines = out.splitlines()
    (at,) = (number for number, line in enumerate(lines) if line.startswith(begins))
    assert code == 0
    assert "images/s" in lines[at]
    assert " 48x32 " in lines[at + between]


def test_when_nothing_is_measured(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("--backend", "tensorrt", "--export-times", "times.json")
    assert (code, out) == (4, "")
    assert "percoedge: error: tiny tensorrt 48x32, batch 1, 2 steps: " in err
    assert not Path("times.json").exists()


def test_mistakes_cost_no_time(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--bundle", "nowhere")[0] == 4
    assert run("--seconds", "-1")[0] == 2
    code, _, err = run("--layers", "--format", "csv")
    assert (code, "no place for layers" in err) == (2, True)
    assert run("--export-times", "missing/times.json")[0] == 5


def test_charts_are_drawn_elsewhere(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("--report", "out.html")
    assert (code, out) == (2, "")
    assert "python -m benchmarks.report bench.json -o out.html" in err
