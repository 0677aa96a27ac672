"""percoedge build: plans of the shipped bundle, made as a user makes them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from percoedge.engines import memory
from percoedge.engines.bundle import Bundle
from percoedge.engines.plans.cache import CACHE_VARIABLE, PlanCache
from percoedge.engines.plans.record import BuildRequest
from percoedge.engines.tensorrt.library import Library, find_library, supported_targets
from percoedge.errors import BackendError, UsageError
from percoedge.runtime.cli.commands import build as build_command
from percoedge.runtime.cli.console import Console, ProgressLine
from percoedge.runtime.cli.main import main

RTX = ("build", "tiny", "--backend", "tensorrt-rtx", "--sm", "120,86,89")
DECODER = (*RTX, "--graph", "decoder")

Run = Callable[..., SimpleNamespace]


@pytest.fixture(scope="module")
def library() -> Library:
    try:
        return find_library("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where plans go unless a test says otherwise."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "plans"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "plans"


@pytest.fixture
def run(root: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> SimpleNamespace:
        code = main(arguments)
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return call


def test_a_plan_is_built_and_found(run: Run, root: Path, library: Library) -> None:
    result = run(*DECODER, "--sizes", "512x512,768x512", "--batch", "1,4", "--json")
    assert result.code == 0, result.err
    assert result.err == "percoedge: building decoder (1 of 1)\n"
    record = json.loads(result.out)
    assert record["command"] == "build" and record["bundle"] == "tiny"
    assert (record["backend"], record["version"]) == ("tensorrt-rtx", library.version)
    assert record["targets"] == [86, 89, 120] and record["cache"] == str(root)
    (row,) = record["graphs"]
    assert row["graph"] == "decoder" and row["precision"] == "fp16" and row["seconds"] > 0
    assert row["profile"] == {"n": [1, 1, 4], "h": [1, 32, 32], "w": [1, 32, 48]}
    assert row["activation_bytes"] > 1 << 20 and row["weight_bytes"] > 1 << 20
    assert Path(row["plan"]).stat().st_size == row["bytes"]
    log = Path(row["log"])
    assert log.parent == root and log.with_suffix(".json").exists()
    head = log.read_text().splitlines()
    assert head[1] == (
        "percoedge build tiny --backend tensorrt-rtx --sm 86,89,120 --sizes 512x512,768x512 "
        "--batch 1,4 --graph decoder"
    )
    assert any("Total Activation Memory" in line for line in head)
    cache = PlanCache()
    digest = Bundle.open("tiny").graph("decoder", "fp16").sha256
    plan = cache.find("decoder", digest, library, 89)
    assert len(cache.map(plan)) == row["bytes"] and plan.driver == record["driver"]
    assert not list(root.glob("partial-*"))


def test_what_a_person_reads(run: Run, root: Path, library: Library, tmp_path: Path) -> None:
    result = run(*DECODER, "--cache", "elsewhere")
    row, total, advice = result.out.splitlines()
    assert row.startswith("decoder  ") and "MiB to work in" in row
    assert "n 1..8, h 1..48, w 1..48" in row
    assert (
        f"1 engine file of bundle tiny for tensorrt-rtx {library.version}, SM 86, 89, 120, "
        in total
    )
    assert total.endswith(f"in {tmp_path / 'elsewhere'}")
    assert advice == f"to decode with them, set {CACHE_VARIABLE} to that folder"
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3 and not root.exists()
    result = run(*DECODER, "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_each_batch_makes_one_engine_file_for_both(run: Run, root: Path, library: Library) -> None:
    plain = json.loads(run(*DECODER, "--sizes", "512x512", "--json").out)["graphs"][0]
    both = json.loads(run(*DECODER, "--sizes", "512x512", "--each-batch", "--json").out)
    (row,) = both["graphs"]
    assert row["profile"] == plain["profile"]
    assert row["bytes"] > plain["bytes"] > 1 << 20
    assert "--sizes 512x512 --each-batch --graph decoder" in Path(row["log"]).read_text()
    assert PlanCache().records("tensorrt-rtx")[0].request.each_batch


def test_a_refusal_names_the_command_that_mends_it(run: Run, root: Path, library: Library) -> None:
    """What the cache tells to run is taken by the command line, and helps."""
    run(*DECODER)
    record = PlanCache().records("tensorrt-rtx")[0]
    plan = root / record.plan_name
    plan.write_bytes(b"x" + plan.read_bytes()[1:])
    with pytest.raises(BackendError) as caught:
        PlanCache().map(record)
    command = str(caught.value).partition("build it again: percoedge ")[2]
    assert run(*command.split()).code == 0
    assert PlanCache().map(PlanCache().records("tensorrt-rtx")[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("build", "tiny"), "required: --backend"),
        (("build", "tiny", "--backend", "trt"), "invalid choice: 'trt'"),
        ((*RTX, "--sizes", "512"), "--sizes like 512x512,1920x1088"),
        ((*RTX, "--sizes", "512x512,"), "got ''"),
        ((*RTX, "--sizes", "512x99999"), "1 to 16384 pixels"),
        ((*RTX, "--batch", "0"), "batches of 1 to 1024, got 0"),
        ((*RTX, "--batch", "a"), "--batch to be numbers with commas"),
        ((*RTX, "--batch", "1024"), "elements in 'image', got 1024 x 2240 x 2240 x 3"),
        ((*RTX, "--graph", "flow", "--graph", "pour"), "graphs of encoder, flow"),
        ((*RTX, "--workspace", "0"), "at least 1, got 0"),
        ((*RTX, "--workspace", "9999999"), "--workspace of 1 to 1048576 MiB"),
        (("build", "tiny", "--backend", "tensorrt-rtx", "--sm", "8.9"), "--sm to be numbers"),
    ],
)
def test_wrong_arguments(run: Run, root: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.code == 2 and message in result.err and len(result.err.splitlines()) == 1
    assert not root.exists()


def test_a_gpu_that_cannot_be_built_for(run: Run, root: Path, library: Library) -> None:
    result = run("build", "tiny", "--backend", "tensorrt-rtx", "--sm", "90")
    assert result.code == 2 and "expected SM of 80, 86, 89, 120" in result.err
    assert not root.exists()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_library(run: Run, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)
    result = run("build", "tiny", "--backend", name)
    assert result.code == 4 and "pip install 'percoedge[" in result.err


def test_a_missing_bundle(run: Run) -> None:
    result = run("build", "nowhere", "--backend", "tensorrt-rtx")
    assert result.code == 4 and "expected a bundle directory" in result.err


def test_without_memory_nothing_is_begun(
    run: Run, root: Path, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 100 << 20)
    result = run(*DECODER)
    assert result.code == 4 and "building graph 'decoder': expected 5" in result.err
    assert not root.exists()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[int | None], None]:
    """Pretend that the full TensorRT is here, on a machine with a GPU of that SM or with none."""

    def pretend(sm: int | None) -> None:
        def gpu() -> Any:
            if sm is None:
                raise BackendError("expected an NVIDIA GPU with its driver")
            return SimpleNamespace(sm=sm, cuda_version="12.6", integrated=False)

        monkeypatch.setattr(
            build_command, "find_library", lambda name: Library(name, "10.3.0", None)
        )
        monkeypatch.setattr(build_command, "Gpu", gpu)

    return pretend


def test_the_full_library_needs_the_gpu_it_builds_for(
    run: Run, full: Callable[[int | None], None]
) -> None:
    full(None)
    result = run("build", "tiny", "--backend", "tensorrt")
    assert result.code == 4 and "builds on that machine only: expected an NVIDIA GPU" in result.err
    assert "--backend tensorrt-rtx builds anywhere" in result.err
    full(87)
    result = run("build", "tiny", "--backend", "tensorrt", "--sm", "89")
    assert result.code == 2 and "expected --sm 87" in result.err


def test_the_full_library_builds_for_the_gpu_at_hand(full: Callable[[int | None], None]) -> None:
    full(87)
    library = build_command.find_library("tensorrt")
    for named in ((), (87,)):
        targets, gpu = build_command._targets(library, named)
        assert targets == (87,) and gpu is not None and gpu.sm == 87


def test_a_gpu_at_hand_that_the_library_does_not_know(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An H100 builds for others; what is built for it would be refused there."""
    gpu: Any = SimpleNamespace(sm=90, cuda_version="13.0", integrated=False)
    monkeypatch.setattr(build_command, "Gpu", lambda: gpu)
    assert build_command._targets(library, (86, 89)) == ((86, 89), gpu)
    assert build_command._targets(library, ()) == (supported_targets(library), gpu)
    with pytest.raises(UsageError, match="got 90"):
        build_command._targets(library, (90,))


@pytest.mark.parametrize(("free_mib", "workspace"), [(4000, 1000), (30000, 2048)])
def test_shared_memory_is_not_taken_whole(free_mib: int, workspace: int) -> None:
    """TensorRT would let one layer take all of it; and a board takes one image at a time."""
    gpu: Any = SimpleNamespace(memory_bytes=lambda: (free_mib << 20, 1 << 36))
    left = SimpleNamespace(batch=None, workspace=None)
    request = build_command._on_shared_memory(BuildRequest(), left, gpu)  # type: ignore[arg-type]
    assert (request.batches, request.workspace_mib) == ((1,), workspace)
    asked = BuildRequest(batches=(1, 4), workspace_mib=77)
    chosen: Any = SimpleNamespace(batch="1,4", workspace=77)
    assert build_command._on_shared_memory(asked, chosen, gpu) == asked


# ---- the line that shows progress ---------------------------------------------------------------


class Stream:
    """Standard error, a terminal or not."""

    def __init__(self, terminal: bool) -> None:
        self.text = ""
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_terminal_is_drawn_on_and_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    with Console().progress() as line:
        line.show("building flow (1 of 2)", 0.5, "Timing\x1b[2J tactics")
        line.show("building flow (1 of 2)", 0.6, "too soon to be drawn")
        line.show("building decoder (2 of 2)", 0.25)
    assert "building flow (1 of 2):  50% Timing\\x1b[2J tactics" in stream.text
    assert "too soon" not in stream.text and "building decoder (2 of 2):  25%" in stream.text
    *_, drawn, cleared, rest = stream.text.split("\r")
    assert "\n" not in stream.text and rest == "" and cleared == " " * len(drawn.rstrip())


def test_elsewhere_there_is_a_line_for_each_task(monkeypatch: pytest.MonkeyPatch) -> None:
    stream: Any = Stream(False)
    line = ProgressLine(stream)
    line.show("building flow (1 of 2)")
    line.show("building flow (1 of 2)", 0.5, "tactics")
    line.show("building decoder (2 of 2)")
    line.clear()
    assert stream.text == (
        "percoedge: building flow (1 of 2)\npercoedge: building decoder (2 of 2)\n"
    )
    with Console(quiet=True).progress() as silent:
        silent.show("building flow (1 of 2)")
