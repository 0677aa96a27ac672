"""percoedge compare: how far two backends differ, and when that is too far."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import check_tensors
from percoedge.engines.plans.profiles import profile_for
from percoedge.engines.selection import select
from percoedge.runtime.cli.commands import compare as compare_module
from percoedge.runtime.cli.commands.compare import compare_graph, feeds_in_plans
from percoedge.runtime.cli.main import main

Run = Callable[..., SimpleNamespace]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> SimpleNamespace:
        code = main(("compare", *arguments))
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


@pytest.fixture
def pair(fakes: Any, fake_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let "a" be the fake backend, and "b" one whose graphs are spoilt by the functions given."""

    def make(**spoilt: Callable[[Any], Any]) -> None:
        def spoil(kind: str) -> Any:
            def function(feeds: Any) -> Any:
                return {n: spoilt[kind](o) for n, o in clean.run(feeds).items()}

            clean = fakes.engine(kind)
            return function

        backends = {"a": fakes.backend(), "b": fakes.backend(**{k: spoil(k) for k in spoilt})}
        monkeypatch.setattr(compare_module, "select", lambda name, bundle: backends[name])

    return make


def fake(bundle: Bundle, *further: str) -> tuple[str, ...]:
    return (str(bundle.path), "--a", "a", "--b", "b", *further)


@pytest.mark.parametrize("kind", ["encoder", "flow", "decoder", "entropy"])
def test_feeds_fit_the_graphs_and_the_plans_of_tensorrt(kind: str) -> None:
    bundle = Bundle.open("tiny")
    graph = bundle.manifest.graphs[kind]
    specs = (graph.input_specs, graph.output_specs)
    profile = profile_for(kind, (*specs[0], *specs[1]), bundle.codec)
    feeds = feeds_in_plans(bundle, kind)
    sizes = [check_tensors(kind, specs[0], feed) for feed in feeds]
    side = bundle.codec.flow_tile if kind == "flow" else 32  # a tile of the flow, or 512x512
    assert [(size["n"], size["h"], size["w"]) for size in sizes] == [
        (1, 1, 1),
        (1, 5, 7),
        (1, side, side),
    ]
    assert all(profile.covers(size) for size in sizes)


def test_half_precision_is_close_on_the_cpu(run: Run) -> None:
    result = run(
        *("tiny", "--a", "onnxruntime-cpu:fp32", "--b", "onnxruntime-cpu:fp16", "--json"),
        *("--graph", "flow", "--graph", "entropy"),
    )
    assert result.code == 0, result.err
    record = json.loads(result.out)
    assert (record["command"], record["bundle"]) == ("compare", "tiny")
    assert record["a"] == record["b"] == "onnxruntime-cpu"
    assert record["graphs_sha256"].keys() == {"flow", "entropy"}
    flow, entropy = record["differences"]
    names = [flow[name] for name in ("graph", "output", "a", "b")]
    assert names == ["flow", "x_next", "onnxruntime-cpu fp32", "onnxruntime-cpu fp16"]
    assert 0 < flow["relative_l2"] < 0.005 == flow["bound"] and flow["ok"]
    assert flow["differing"] is flow["psnr_db"] is None and flow["largest"] > 0
    assert (entropy["differing"], entropy["bound"], entropy["ok"]) == (0, 0, True)


def test_a_backend_equals_itself() -> None:
    bundle, backend = Bundle.open("tiny"), select("onnxruntime-cpu:fp32")
    (row,) = compare_graph(bundle, "decoder", backend, backend)
    assert (row.psnr_db, row.differing, row.largest, row.ok) == (np.inf, 0, 0, True)


def test_what_a_person_reads(run: Run, pair: Callable[..., None], fake_bundle: Bundle) -> None:
    pair()
    result = run(*fake(fake_bundle))
    assert result.code == 0
    head, titles, *rows = result.out.splitlines()
    assert head == "fake fp32 beside fake fp32"
    assert titles.split()[:3] == ["graph", "output", "of"]
    assert [row.split()[0] for row in rows] == ["encoder", "entropy", "flow", "decoder"]
    assert "equal" in rows[3] and "FAILED" not in result.out
    assert run(*fake(fake_bundle, "-q")).out == ""


@pytest.mark.parametrize(
    ("kind", "spoil", "words"),
    [
        ("flow", lambda x: x * np.float32(1.01), "relative L2 error 0.01, above 1e-05"),
        ("flow", lambda x: np.where(x > 1, np.float32("nan"), x), "relative L2 error nan"),
        ("entropy", lambda w: w + (w == w.max()), "share that differs"),
        ("encoder", lambda t: (t + 1) % 64, "share that differs 1, above 0.001"),
        ("decoder", lambda image: image ^ 16, "PSNR in dB 24, below 70"),
    ],
)
def test_beyond_a_bound(
    run: Run,
    pair: Callable[..., None],
    fake_bundle: Bundle,
    kind: str,
    spoil: Callable[[Any], Any],
    words: str,
) -> None:
    pair(**{kind: lambda output: spoil(output).astype(output.dtype)})
    result = run(*fake(fake_bundle, "--json", "-q"))
    assert result.code == 4
    (line,) = result.err.splitlines()
    assert f"got graph '{kind}', " in line and words in line
    rows = json.loads(result.out)["differences"]
    assert [row["graph"] for row in rows if not row["ok"]] == [kind]
    assert "FAILED" in run(*fake(fake_bundle)).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("tiny", "--a", "onnxruntime-cpu"), "required: --b"),
        (("tiny", "--a", "onnxruntime-cpu", "--b", "cuda"), "expected a backend of auto"),
        (
            ("tiny", "--a", "onnxruntime-cpu", "--b", "onnxruntime-cpu:fp8"),
            "fp32, fp16, int8, got 'fp8'",
        ),
        (
            ("tiny", "--a", "onnxruntime-cpu", "--b", "onnxruntime-cpu", "--graph", "pour"),
            "expected graphs of encoder, flow",
        ),
    ],
)
def test_wrong_arguments(run: Run, arguments: tuple[str, ...], words: str) -> None:
    result = run(*arguments)
    assert result.code == 2 and words in result.err and result.out == ""
