"""The report of a real measurement: every chart is there, and nothing that is unknown is drawn."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from percoedge.errors import InputError
from percoedge.runtime.cli.main import main as percoedge

pytest.importorskip("matplotlib", reason="charts need the extra [bench]")

from benchmarks.report import charts
from benchmarks.report.__main__ import main, write_pictures
from benchmarks.report.page import _image, html_page
from benchmarks.report.read import read_measurement

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What ``percoedge bench --json`` prints of two batches, and of a backend that is not there."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    quick = ("--warmup", "0", "--seconds", "0", "--iterations", "2", "--size", "48x32")
    with pytest.MonkeyPatch.context() as patch, path.open("w+") as file:
        patch.setattr(sys, "stdout", file)
        matrix = ("--steps", "1", "--batch", "1,2", "--backend", "onnxruntime-cpu,tensorrt")
        percoedge(["bench", "--json", *quick, *matrix])
    return path.read_text()


@pytest.fixture
def write(printed: str, tmp_path: Path) -> Callable[..., Path]:
    """``write()`` writes it to a file, after ``change`` was called with the record."""

    def write(change: Callable[[Any], object] = lambda record: None) -> Path:
        record = json.loads(printed)
        change(record)
        (tmp_path / "bench.json").write_text(json.dumps(record))
        return tmp_path / "bench.json"

    return write


class _Page(HTMLParser):
    """Collects tags, and what they refer to."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.references: list[str] = []
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        for name, value in attributes:
            if name in ("href", "src", "srcset", "data"):
                self.references.append(value or "")
            elif name == "alt":
                self.labels.append(value or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(write: Callable[..., Path]) -> None:
    text = html_page(read_measurement(write()))
    page = _Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "script" not in page.seen
    assert page.references
    assert all(found.startswith("data:image/svg+xml;base64,") for found in page.references)
    words = re.sub('src="[^"]*"', "", text)
    assert "url(" not in words and "@import" not in words and "nan" not in words.lower()
    assert page.labels[0] == "Where the time goes"
    assert page.labels.count("Roofline") == page.labels.count("Distribution of latencies") == 2
    assert words.count("Failed: ") == 2  # TensorRT has no engine files here


def test_the_same_measurement_gives_the_same_drawing(write: Callable[..., Path]) -> None:
    measurement = read_measurement(write())
    first, second = (charts.overall_charts(measurement)["stages"] for _ in range(2))
    assert _image(first, "stages") == _image(second, "stages")


def test_every_chart_is_a_picture(write: Callable[..., Path], tmp_path: Path) -> None:
    written = write_pictures(read_measurement(write()), tmp_path / "charts")
    names = {path.name for path in written}
    assert {"stages.png", "throughput.png", "peak-host.png", "case-1-roofline.png"} <= names
    for path in written:
        with Image.open(path) as image:
            assert min(image.size) > 100


def test_bars_are_as_long_as_the_stages(write: Callable[..., Path]) -> None:
    measurement = read_measurement(write())
    figure = charts.overall_charts(measurement)["stages"]
    ends: dict[float, float] = {}
    for bar in figure.axes[0].patches:
        row = round(bar.get_y() + bar.get_height() / 2)
        ends[row] = max(ends.get(row, 0), bar.get_x() + bar.get_width())
    assert [ends[row] for row in sorted(ends)] == pytest.approx(
        [sum(r["stages_ms"].values()) / case.batch for _, case, r in measurement.measured]
    )


def test_labels_lie_within_the_picture_and_apart(write: Callable[..., Path]) -> None:
    """A case whose name is long, and stages that take no time."""

    def spoil(record: Any) -> None:
        record["cases"][0]["case"]["bundle"] = "b" * 64
        record["cases"][0]["stages_ms"]["decoder"] = 0.0

    figure = charts.overall_charts(read_measurement(write(spoil)))["stages"]
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    boxes += [words.get_window_extent() for words in figure.axes[0].texts]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_what_is_unknown_is_not_drawn(write: Callable[..., Path]) -> None:
    def forget(record: Any) -> None:
        for case in record["cases"]:
            if "error" not in case:
                case["peak_host_bytes"] = "unknown"
                case["ceiling"] = {**case["ceiling"], "bytes_per_s": "unknown"}
                for graph in case["graphs"]:
                    graph |= dict.fromkeys(set(graph) - {"graph", "calls", "time_ms"}, "unknown")

    measurement = read_measurement(write(forget))
    assert "peak-host" not in charts.overall_charts(measurement)
    assert "roofline" not in charts.case_charts(measurement.measured[0][2])
    assert "unknown" in html_page(measurement)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"command": "decode"}', '{"command": "bench", "cases": [{}]}']
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bench.json").write_text(text)
    with pytest.raises(InputError, match="expected what percoedge bench --json prints, got"):
        read_measurement(tmp_path / "bench.json")


def test_the_command(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "bench.html"
    monkeypatch.setattr(sys, "argv", ["report", str(write()), "-o", str(page)])
    assert main() == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    monkeypatch.setattr(sys, "argv", ["report", str(tmp_path / "none.json"), "-o", str(page)])
    assert main() == 3


def test_graphs_and_layers_where_they_were_measured(write: Callable[..., Path]) -> None:
    times = {"p50": 1.25, "p99": 1.5}
    graph = {
        **{"graph": "flow", "sizes": {"n": 4}, "runs_per_s": 800.0, "latency_ms": times},
        **dict.fromkeys(("enqueue_ms", "host_to_device_ms", "device_to_host_ms"), "unknown"),
        **{"compute_ms": times, "layers": {"small": 0.25, "<large>": 0.75}},
    }

    def add(record: Any) -> None:
        record["cases"][0]["alone"] = [graph]

    without, page = (html_page(read_measurement(write(change))) for change in (str, add))
    assert "Graphs by themselves" in page and "Graphs by themselves" not in without
    assert page.index("&lt;large&gt;") < page.index("small</td>")
    assert "75.0%" in page
