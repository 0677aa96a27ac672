"""percoedge bench: what is measured, what is said of it, and what is said when it is not known."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from percoedge.engines.bundle import Bundle
from percoedge.errors import BackendError, UsageError
from percoedge.runtime import ranges
from percoedge.runtime.bench import machine, meters, worker
from percoedge.runtime.bench.case import Case, Limits, cases_from_options
from percoedge.runtime.bench.ceiling import measure_ceiling
from percoedge.runtime.bench.measure import measure_on
from percoedge.runtime.bench.probe import Layout, Probe, stages_of
from percoedge.runtime.bench.report import html_report
from percoedge.runtime.bench.tables import (
    MISSING,
    Outcome,
    csv_text,
    device_table,
    labels,
    markdown_lines,
    stage_table,
    summary_table,
    text_lines,
)
from percoedge.runtime.cli.main import main
from percoedge.runtime.codec import Codec

CASE = Case("fake", "auto", 70, 50, 1, 3, None)
QUICK = Limits(warmup_seconds=0, seconds=0, iterations=4)


def measured(bundle: Bundle, fakes: Any, case: Case = CASE) -> dict[str, Any]:
    backend = fakes.backend()
    stream = Codec(bundle, backend).encode(fakes.photo(case.height, case.width))
    return measure_on(bundle, backend, case, QUICK, stream)


@pytest.fixture(scope="module")
def outcomes(fake_bundle: Bundle, fakes: Any) -> list[Outcome]:
    batched = Case("fake", "auto", 70, 50, 2, 3, None)
    found = [Outcome(case, measured(fake_bundle, fakes, case)) for case in (CASE, batched)]
    for outcome in found:
        (outcome.result or {})["joules_per_image"] = None  # some machines tell
    broken = Case("fake", "tensorrt", 70, 50, 2, 3, None)
    return [*found, Outcome(broken, error="expected <plans>, found none")]


class TestMeasuring:
    def test_stages_are_all_of_the_latency(self, fake_bundle: Bundle, fakes: Any) -> None:
        result = measured(fake_bundle, fakes)
        assert result["iterations"] == len(result["times"]) == 4
        for one in result["times"]:
            inside = [t for name, t in one["stages_ms"].items() if name != "write png"]
            assert sum(inside) == pytest.approx(one["latency_ms"], abs=0.02)
        assert list(result["stages_ms"]) == [
            "container",
            *(f"MIM pass {number}" for number in range(1, 5)),
            *("range coder", "noise", "flow step 1", "flow step 2", "flow step 3"),
            *("flow, between steps", "decoder", "image", "other", "write png"),
        ]
        assert 0 < result["outside_engines"] < 1

    def test_summary_is_that_of_the_times(self, fake_bundle: Bundle, fakes: Any) -> None:
        result = measured(fake_bundle, fakes)
        latency, times = result["latency_ms"], [one["latency_ms"] for one in result["times"]]
        assert latency["p50"] == pytest.approx(np.median(times), abs=0.002)
        assert latency["sd"] == pytest.approx(np.std(times, ddof=1), abs=0.002)
        ordered = [latency[n] for n in ("min", "p50", "p90", "p95", "p99", "max")]
        assert ordered == sorted(ordered)
        assert result["images_per_s"] == pytest.approx(4000 / sum(times), rel=0.01)

    def test_a_batch_counts_its_images(self, fake_bundle: Bundle, fakes: Any) -> None:
        result = measured(fake_bundle, fakes, Case("fake", "auto", 30, 20, 3, 1, None))
        times = [one["latency_ms"] for one in result["times"]]
        assert result["images_per_s"] == pytest.approx(12000 / sum(times), rel=0.01)
        assert [graph["calls"] for graph in result["graphs"]] == [4, 1, 1]

    def test_a_batch_in_parts_has_the_stages_of_one(
        self, fake_bundle: Bundle, fakes: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("percoedge.runtime.rendering.BATCH_PIXELS", 1)
        whole, parts = (
            measured(fake_bundle, fakes, Case("fake", "auto", 30, 20, batch, 3, None))
            for batch in (1, 3)
        )
        assert list(parts["stages_ms"]) == list(whole["stages_ms"])
        assert [graph["calls"] for graph in parts["graphs"]] == [12, 9, 3]

    def test_what_cannot_be_known_is_none(self, fake_bundle: Bundle, fakes: Any) -> None:
        result = measured(fake_bundle, fakes)
        assert result["ceiling"]["float_ops_per_s"] is None
        assert [graph["ops_per_s"] for graph in result["graphs"]] == [None] * 3

    def test_low_memory_shows_loading(self, fake_bundle: Bundle, fakes: Any) -> None:
        case = Case("fake", "auto", 30, 20, 1, 1, None, low_memory=True)
        assert "load" in measured(fake_bundle, fakes, case)["stages_ms"]

    @pytest.mark.parametrize("size", [(8, 8), (70, 33), (100, 64)])
    @pytest.mark.parametrize("schedule", ["uniform", "checkerboard", "qlds-12", "var"])
    def test_passes_are_told_apart_whatever_the_tiles(
        self, fake_bundle: Bundle, fakes: Any, size: tuple[int, int], schedule: str
    ) -> None:
        probe = Probe(fakes.backend())
        codec = Codec(fake_bundle, probe)
        stream = codec.encode(fakes.photo(*size), schedule=schedule)
        probe.calls.clear()
        codec.decode(stream, steps=2)
        grid = (-(-size[0] // 8), -(-size[1] // 8))
        layout = Layout(grid, fake_bundle.codec.entropy_tile, schedule, steps=2)
        runs = sum(call.kind == "entropy" for call in probe.calls)
        assert len(layout.pass_numbers()) == runs
        stages = stages_of(codec.timings_ms, probe.calls, layout, 1000.0)
        named = {name for name in stages if name.startswith("MIM pass")}
        assert len(named) == len(set(layout.pass_numbers()))
        assert sum(stages.values()) == pytest.approx(1000)

    def test_calls_that_return_early_are_told_to_be_queueing(self) -> None:
        layout = Layout((1, 1), 4, "uniform", 1, returns_early=True)
        stages = stages_of({"flow": 5.0, "decoder": 2.0}, [], layout, 8.0)
        assert stages == {
            "flow, queueing step 1": 0,
            "flow, waiting": 5,
            "decoder": 2,
            "other": 1,
        }

    def test_the_ceiling_of_a_real_backend(self) -> None:
        from percoedge.engines.selection import select

        ceiling = measure_ceiling(select("onnxruntime-cpu", threads=1), int8=True, seconds=0)
        assert ceiling.dtype == "float32"
        assert ceiling.float_ops_per_s is not None
        assert ceiling.int8_ops_per_s is not None
        assert ceiling.bytes_per_s is not None
        assert min(ceiling.float_ops_per_s, ceiling.int8_ops_per_s) > 1e8
        assert ceiling.bytes_per_s > 1e7


class TestMatrix:
    def options(self, **changes: Any) -> Namespace:
        defaults = {
            **{"bundle": "tiny", "backend": "auto", "size": "64x32", "batch": "1"},
            **{"steps": None, "threads": None, "low_memory": False},
        }
        return Namespace(**{**defaults, **changes})

    def test_every_combination_is_a_case(self) -> None:
        options = self.options(size="64x32,32x64", batch="1,4", steps="1,2", threads="1,2,1")
        cases = cases_from_options(options)
        assert len(set(cases)) == len(cases) == 16
        assert cases[0] == Case("tiny", "auto", 64, 32, 1, 1, 1)

    def test_steps_are_those_of_the_bundle(self) -> None:
        assert [case.steps for case in cases_from_options(self.options())] == [4]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"size": "512"}, "--size"),
            ({"size": "0x5"}, "--size"),
            ({"size": "99999x1"}, "--size"),
            ({"batch": "1,,2"}, "--batch"),
            ({"batch": "0"}, "--batch"),
            ({"steps": "256"}, "1 to 255"),
            ({"threads": "two"}, "--threads"),
            ({"backend": "auto,abacus"}, "abacus"),
        ],
    )
    def test_mistakes_are_told(self, change: dict[str, str], words: str) -> None:
        with pytest.raises(UsageError, match=words):
            cases_from_options(self.options(**change))

    def test_labels_say_what_differs(self) -> None:
        second = Case("fake", "auto", 70, 50, 8, 3, 2)
        assert labels([CASE, second]) == ["batch 1, threads auto", "batch 8, threads 2"]
        assert labels([CASE]) == ["fake, auto, 70x50, batch 1, 3 steps, threads auto"]


class TestMeters:
    def zone(self, root: Path, name: str, microjoules: int) -> Path:
        folder = root / "sys/class/powercap" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        (folder / "max_energy_range_uj").write_text("1000000\n")
        return folder

    def test_rapl_adds_packages_and_wraps_around(self, tmp_path: Path) -> None:
        for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
            self.zone(tmp_path, name, 900_000)
        meter = meters.find_meter(on_gpu=False, root=tmp_path)
        assert meter is not None
        assert meter.source.startswith("RAPL")
        meter.start()
        self.zone(tmp_path, "intel-rapl:0", 1_000_000)
        self.zone(tmp_path, "intel-rapl:1", 100_000)
        assert meter.stop() == pytest.approx(0.3)

    def test_nothing_to_read_is_missing(self, tmp_path: Path) -> None:
        assert meters.find_meter(on_gpu=False, root=tmp_path) is None
        (self.zone(tmp_path, "intel-rapl:0", 5) / "energy_uj").unlink()
        assert meters.find_meter(on_gpu=False, root=tmp_path) is None

    def test_counters_that_stand_still_are_missing(self, tmp_path: Path) -> None:
        self.zone(tmp_path, "intel-rapl:0", 5)
        meter = meters.find_meter(on_gpu=False, root=tmp_path)
        assert meter is not None
        meter.start()
        assert meter.stop() is None

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("RAM 2448/7620MB (lfb 4x2MB) CPU [2%@729] VDD_IN 4830mW/4712mW", ("VDD_IN", 4.83)),
            ("RAM 1/2MB EMC_FREQ 0% POM_5V_IN 2532/2600 POM_5V_GPU 40/40", ("POM_5V_IN", 2.532)),
            (
                "GR3D_FREQ 0% VDD_GPU_SOC 2401mW/2401mW VDD_CPU_CV 800mW/700mW",
                ("VDD_GPU_SOC+VDD_CPU_CV", 3.201),
            ),
            ("RAM 2448/7620MB SWAP 0/3810MB cpu@45C", None),
        ],
    )
    def test_lines_of_tegrastats(self, line: str, expected: tuple[str, float] | None) -> None:
        found = meters._watts(line)
        assert found == (expected and (expected[0], pytest.approx(expected[1])))

    @pytest.mark.skipif(sys.platform == "win32", reason="the stand-in is a shell script")
    def test_tegrastats_is_asked_where_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "tegrastats"
        program.write_text("#!/bin/sh\necho 'VDD_IN 5000mW/5000mW'\nexec sleep 30\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        meter = meters.find_meter(on_gpu=True)
        assert meter is not None
        meter.start()
        deadline = time.monotonic() + 30
        while not meter._lines and time.monotonic() < deadline:  # type: ignore[attr-defined]
            time.sleep(0.01)
        joules = meter.stop()
        assert joules is not None
        assert joules > 0
        assert meter.source == "tegrastats, VDD_IN"

    def test_memory_of_this_process(self) -> None:
        peak = meters.peak_host_bytes()
        assert peak is not None
        assert 1 << 24 < peak < 1 << 40


class TestMachine:
    def test_a_board(self, tmp_path: Path) -> None:
        files = {
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano\0",
            "proc/cpuinfo": "processor : 0\nmodel name : ARMv8 rev 1\ncpu MHz : 729.6\n",
            "proc/meminfo": "MemTotal:  7802444 kB\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1510400\n",
        }
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        found = machine.describe(tmp_path)
        expected = {"board": "NVIDIA Jetson Orin Nano", "processor": "ARMv8 rev 1"}
        expected |= {"cpu_mhz": 1510, "cpu_governor": "schedutil", "memory_bytes": 7802444 << 10}
        assert {key: found[key] for key in expected} == expected

    def test_nothing_names_the_host_or_its_folders(self) -> None:
        text = json.dumps(machine.describe())
        assert os.getcwd() not in text
        assert str(Path.home()) not in text


class TestTables:
    def test_one_row_for_each_measured_case(self, outcomes: list[Outcome]) -> None:
        table = summary_table(outcomes)
        assert [row[0] for row in table.rows] == ["1", "2"]
        assert dict(zip(table.header, table.rows[0], strict=True))["J/image"] == MISSING
        assert len(text_lines(table)) == 3
        assert markdown_lines(table)[1].startswith("| --- |")
        assert len({line.count("|") for line in markdown_lines(table)}) == 1

    def test_passes_and_steps_are_added_up(self, outcomes: list[Outcome]) -> None:
        table = stage_table(outcomes)
        row = dict(zip(table.header, table.rows[0], strict=True))
        stages = (outcomes[0].result or {})["stages_ms"]
        total = sum(time for name, time in stages.items() if name.startswith("MIM pass"))
        assert float(row["MIM passes"]) == pytest.approx(total, abs=0.01)
        assert "flow steps" in row

    def test_what_the_gpu_did_where_it_tells(self, outcomes: list[Outcome]) -> None:
        assert device_table(outcomes) is None
        times = {"host to device": 0.25, "compute": 3.0, "enqueue": 1.5, "idle": 0.5}
        told = [outcomes[0], Outcome(CASE, {**(outcomes[1].result or {}), "device_ms": times})]
        table = device_table(told)
        assert table is not None
        assert table.header == ("case", *times)
        assert table.rows == [("2", "0.25", "3.00", "1.50", "0.50")]
        first, second = csv.DictReader(io.StringIO(csv_text(told, machine.describe())))
        assert (first["device_ms"], second["device_ms: compute"]) == (MISSING, "3.0")
        assert "<h2>On the GPU</h2>" in html_report(told, machine.describe(), QUICK)
        assert "<h2>On the GPU</h2>" not in html_report(outcomes, machine.describe(), QUICK)

    def test_csv_holds_every_figure_and_failures(self, outcomes: list[Outcome]) -> None:
        rows = list(csv.DictReader(io.StringIO(csv_text(outcomes, machine.describe()))))
        assert [row["batch"] for row in rows] == ["1", "2", "2"]
        assert rows[0]["joules_per_image"] == MISSING
        assert float(rows[0]["latency_ms: p99"]) > 0
        assert rows[2]["error"] == "expected <plans>, found none"
        assert rows[2]["latency_ms: p50"] == ""


class _Page(HTMLParser):
    """Collects tags, and what they refer to."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        wanted = ("href", "src", "xlink:href", "srcset", "data")
        self.references += [value or "" for name, value in attributes if name in wanted]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


class TestReport:
    def page(self, outcomes: list[Outcome]) -> str:
        return html_report(outcomes, machine.describe(), QUICK)

    def test_it_needs_nothing_else(self, outcomes: list[Outcome]) -> None:
        text = self.page(outcomes)
        page = _Page()
        page.feed(text)
        page.close()
        assert page.open == []
        assert page.references == []
        assert "script" not in page.seen
        assert "url(" not in text
        assert "@import" not in text
        assert "nan" not in text.lower().replace("nvidia", "")

    def test_every_case_has_its_plots(self, outcomes: list[Outcome]) -> None:
        text = self.page(outcomes)
        assert text.count("<details") == 2
        for label in ("stages of a decode", "distribution of latencies", "throughput against"):
            assert label in text
        assert "expected &lt;plans&gt;, found none" in text

    def test_the_roofline_is_drawn_where_the_ceilings_are_known(
        self, outcomes: list[Outcome]
    ) -> None:
        assert "roofline:" not in self.page(outcomes)
        result = dict(outcomes[0].result or {})
        result["ceiling"] = {
            **{"dtype": "float32", "float_ops_per_s": 10**11, "int8_ops_per_s": None},
            "bytes_per_s": 10**10,
        }
        graph = {
            **{"graph": "flow", "calls": 3, "time_ms": 2.0, "float_ops": 10**8, "int8_ops": 0},
            **{"weight_bytes": 10**6, "io_bytes": 10**4, "traffic_bytes": 10**8},
            **{"ops_per_s": 5 * 10**10, "bound_ms": 1.0, "fraction_of_bound": 0.5},
            "fraction_of_matrix_rate": 0.5,
        }
        text = self.page([Outcome(CASE, {**result, "graphs": [graph]})])
        assert "flow: 50 Gop/s, 50% of the matrix rate, 50% of what the ceilings allow" in text

    def test_a_single_time_makes_a_page(self, fake_bundle: Bundle, fakes: Any) -> None:
        stream = Codec(fake_bundle, fakes.backend()).encode(fakes.photo(8, 8))
        case = Case("fake", "auto", 8, 8, 1, 1, 1)
        result = measure_on(fake_bundle, fakes.backend(), case, Limits(0, 0, 1), stream)
        assert result["latency_ms"]["sd"] == 0
        assert "<svg" in self.page([Outcome(case, result)])


class TestCommand:
    @pytest.fixture
    def run(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> Callable[..., tuple[int, str, str]]:
        monkeypatch.chdir(tmp_path)

        def call(*arguments: str) -> tuple[int, str, str]:
            quick = ("--warmup", "0", "--seconds", "0", "--iterations", "2", "--size", "48x32")
            code = main(["bench", *quick, *arguments])
            return code, *capsys.readouterr()

        return call

    def test_a_matrix_on_the_real_bundle(self, run: Callable[..., tuple[int, str, str]]) -> None:
        code, out, _ = run(
            *("--json", "--steps", "1", "--backend", "onnxruntime-cpu,tensorrt"),
            *("--report", "out.html", "--export-times", "times.json"),
        )
        assert code == 4  # no plans of TensorRT
        record = json.loads(out)
        good, bad = record["cases"]
        assert good["iterations"] == 2
        assert good["case"]["threads"] == "auto"
        assert 0 < good["latency_ms"]["p50"] <= good["latency_ms"]["p99"]
        assert {graph["graph"] for graph in good["graphs"]} == {"entropy", "flow", "decoder"}
        assert all(graph["fraction_of_matrix_rate"] > 0 for graph in good["graphs"])
        assert good["joules_per_image"] == MISSING or good["joules_per_image"] > 0
        assert good["peak_device_bytes"] == MISSING
        assert "tensorrt" in bad["error"]
        times = json.loads(Path("times.json").read_text())["cases"]
        assert [len(case["times"]) for case in times] == [2]
        assert "roofline:" in Path("out.html").read_text()

    def test_when_nothing_is_measured(self, run: Callable[..., tuple[int, str, str]]) -> None:
        code, out, err = run("--backend", "tensorrt", "--report", "out.html")
        assert (code, out) == (4, "")
        assert "percoedge: error: tiny tensorrt 48x32, batch 1, 4 steps: " in err
        assert not Path("out.html").exists()

    def test_mistakes_cost_no_time(self, run: Callable[..., tuple[int, str, str]]) -> None:
        assert run("--bundle", "nowhere")[0] == 4
        assert run("--seconds", "-1")[0] == 2
        assert run("--report", "missing/out.html")[0] == 5


def test_a_killed_case_is_told_to_lack_memory() -> None:
    ended = subprocess.CompletedProcess([], -signal.SIGKILL, "", "")
    assert "memory ran short" in worker._end_of(ended)
    crashed = subprocess.CompletedProcess([], 1, "", "Traceback\nValueError: odd\n")
    assert "ValueError: odd" in worker._end_of(crashed)


def test_errors_come_back_as_what_they_were() -> None:
    with pytest.raises(BackendError, match="tensorrt"):
        worker.encode_in_process(Case("tiny", "tensorrt", 16, 16, 1, 1, None))


def test_profilers_see_the_stages(
    fake_bundle: Bundle, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Annotate:
        def __init__(self, message: str, domain: str) -> None:
            seen.append(f"{domain}: {message}")

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=Annotate))
    ranges._maker.cache_clear()
    try:
        measured(fake_bundle, fakes)
    finally:
        ranges._maker.cache_clear()
    stages = {"percoedge: container", "percoedge: flow", "percoedge: entropy"}
    assert stages <= set(seen)
