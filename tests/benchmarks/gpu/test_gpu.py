"""The benchmark of a GPU, where there is none: parts that fail take nothing with them."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.gpu.__main__ import main, pack, run_part
from benchmarks.gpu.backends import differences, feeds_for, percoedge
from benchmarks.gpu.programs import read_junit
from benchmarks.gpu.record import Record, Skipped
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import check_tensors
from percoedge.errors import BackendError


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def test_parts_without_a_gpu_are_skipped_and_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results"
    assert main(["cuda", "tests", "build", "--out", str(out), "--commit", "abc"]) == 1
    *lines, summary, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cuda", "tests", "build"]
    counted, _, archive = summary.partition("; all results: ")
    assert counted == "0 done, 0 failed, 3 skipped of 3 parts"
    assert last == "nothing was measured: see above what is missing"
    assert all("skipped: needs a GPU" in line for line in lines)
    with tarfile.open(archive) as tar:
        names = tar.getnames()
        document = json.load(tar.extractfile("results/cuda.json"))  # type: ignore[arg-type]
    assert {"results/cuda.log", "results/tests.json", "results/tests.log"} < set(names)
    assert document["environment"]["commit"] == "abc"
    assert document["environment"]["command"] == "python -m benchmarks.gpu cuda --bundle tiny"
    assert {"gpu", "cuda_of_the_driver", "versions"} < document["environment"].keys()


def test_a_part_that_hangs_is_ended(tmp_path: Path) -> None:
    status = run_part("cuda", tmp_path, "tiny", None, 0.01)
    assert status.startswith("failed: was not done within 0 s")
    assert json.loads((tmp_path / "cuda.json").read_text())["status"].startswith("failed")


def test_a_program_that_ends_without_a_result_is_an_error() -> None:
    with pytest.raises(BackendError, match=r"percoedge bench ended with 2: .*unrecognized"):
        percoedge(["bench", "--no-such-thing"], 60)


def test_a_package_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise ImportError('No module named msgspec')")
    monkeypatch.syspath_prepend(tmp_path)
    status = run_part("cuda", tmp_path, "tiny", None, 30)
    assert status == "skipped: needs a package: No module named msgspec"


def test_a_part_that_crashes_is_said_to_have_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_part("cuda", tmp_path, "tiny", None, 30) == "failed: ended with code 1"
    assert json.loads((tmp_path / "cuda.json").read_text())["results"] == {}


def test_what_was_found_before_an_error_stays(tmp_path: Path) -> None:
    path = tmp_path / "part.json"
    record = Record(path, {"part": "x"})
    record.put("a/b", {"rate": 1 / 3, "none": float("nan")})

    def fail() -> None:
        raise ValueError("broken")

    def skip() -> None:
        raise Skipped("needs luck")

    assert record.attempt("a/c", fail) is None
    assert record.attempt("d", skip) is None
    document = json.loads(path.read_text())
    assert document["status"] == "running"
    assert document["results"]["a"]["c"].pop("where").startswith("test_gpu.py:")
    assert document["results"] == {
        "a": {"b": {"rate": 0.3333, "none": "nan"}, "c": {"error": "ValueError: broken"}},
        "d": {"skipped": "needs luck"},
    }
    record.end("done", 1.0)
    assert json.loads(path.read_text())["status"] == "done"


def test_engine_files_stay_out_of_the_archive(tmp_path: Path) -> None:
    out = tmp_path / "results"
    (out / "plans").mkdir(parents=True)
    (out / "plans" / "large.plan").write_text("x")
    (out / "cuda.json").write_text("{}")
    with tarfile.open(pack(out)) as tar:
        assert tar.getnames() == ["results/cuda.json"]


@pytest.mark.parametrize("kind", ["encoder", "entropy", "flow", "decoder"])
def test_feeds_are_what_a_graph_takes(kind: str) -> None:
    bundle = Bundle.open("tiny")
    graph = bundle.graph(kind, "fp16")
    sizes = {"n": 2, "h": 4, "w": 6, "p": 5}
    feeds = feeds_for(bundle, graph, sizes)
    found = check_tensors(kind, graph.inputs, feeds)
    assert found.items() <= sizes.items()
    for name, again in feeds_for(bundle, graph, sizes).items():
        np.testing.assert_array_equal(feeds[name], again)


def test_differences_tell_integers_from_floats() -> None:
    ones = np.ones(4, np.float32)
    table = differences(
        {"i": np.array([1, 2, 3, 4]), "f": ones * 2}, {"i": np.array([1, 2, 3, 8]), "f": ones}
    )
    assert table["i"] == {"equal": False, "largest": 4, "share_that_differs": 0.25, "mean": 1}
    assert table["f"] == {"equal": False, "largest": 1, "relative": 1, "finite": True}


def test_results_of_pytest_are_read(tmp_path: Path) -> None:
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase classname="a" name="fine"/>'
        '<testcase classname="a" name="bad"><failure message="off by one"/></testcase>'
        '<testcase classname="a" name="not"><skipped message="no luck"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert read_junit(path) == {
        **{"passed": 1, "failed": 1, "error": 0, "skipped": 1},
        "not_passed": {"a::bad": "failure: off by one", "a::not": "skipped: no luck"},
    }
