"""Decoding a folder: all that can be decoded is, once, and nothing is left half done."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from percoedge.engines import processors
from percoedge.engines.contract import Graph
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.runtime.cli.folder import work as folder
from percoedge.runtime.cli.folder.record import RECORD_NAME
from percoedge.runtime.cli.main import main
from percoedge.runtime.codec import Codec

SIZES = [(50, 40), (50, 40), (32, 48), (17, 33)]
Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    random = np.random.default_rng(0)
    with Codec.load("tiny") as codec:
        return [codec.encode(random.integers(0, 256, (h, w, 3), np.uint8)) for w, h in SIZES]


@pytest.fixture
def source(tmp_path: Path, streams: list[bytes]) -> Path:
    """A folder of four streams, and other things that are none of ours."""
    path = tmp_path / "in"
    path.mkdir()
    for index, data in enumerate(streams):
        (path / f"{index}.pco").write_bytes(data)
    (path / "notes.txt").write_text("not a stream")
    (path / "._0.pco").write_text("what macOS keeps of another file system's file")
    (path / "inner").mkdir()
    old = time.time() - 100
    for file in path.glob("*.pco"):
        os.utime(file, (old, old))
    return path


@pytest.fixture
def run(source: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(source.parent)

    def call(*arguments: str) -> tuple[int, Any, str]:
        code = main(["decode", "in", "--json", "--steps", "1", *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return call


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir())


IMAGES = [f"{index}.png" for index in range(4)]


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_images_are_those_of_one_by_one(
    run: Run, source: Path, streams: list[bytes], jobs: str
) -> None:
    code, record, err = run("--out", "out", "--jobs", jobs, "--threads", "1")
    assert code == 0
    assert err == "percoedge: decoding\n"  # no bar where nobody watches
    expected = {"streams": 4, "decoded": 4, "kept": 0, "bad": 0, "report": None}
    assert {key: record[key] for key in expected} == expected
    out = source.parent / "out"
    assert names(out) == [*IMAGES, RECORD_NAME]
    with Codec.load("tiny", threads=1) as codec:
        for index, data in enumerate(streams):
            with Image.open(out / f"{index}.png") as image:
                assert image.size == SIZES[index]
                same = np.asarray(image) == np.asarray(codec.decode(data, steps=1))
            assert same.all()


class Device:
    """A GPU whose engines take three images at a time."""

    name, variant = "some-gpu", "fp32"

    def __init__(self) -> None:
        self.runs: list[int] = []  # images in each run of the flow

    def load(self, graph: Graph) -> Any:
        engine = OnnxRuntimeBackend(precision="fp32", threads=1).load(graph)
        run = engine.run

        def counted(feeds: Any, **options: Any) -> Any:
            if graph.kind == "flow":
                self.runs.append(len(feeds["tokens"]))
            return run(feeds, **options)

        engine.max_batch, engine.run = 3, counted  # type: ignore[method-assign]
        return engine


@pytest.mark.parametrize("broken", [False, True])
def test_a_gpu_takes_images_of_one_size_together(
    run: Run,
    source: Path,
    streams: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    broken: bool,
) -> None:
    """A bad one among them stops none of the others."""
    for index in range(4, 8):
        (source / f"{index}.pco").write_bytes(streams[0])
    if broken:
        (source / "5.pco").write_bytes(streams[0][:-1])
    device = Device()
    monkeypatch.setattr(folder, "select", lambda *args, **options: device)
    code, record, _ = run("--out", "out", "--jobs", "1")
    assert (code, record["decoded"], record["bad"]) == ((3, 7, 1) if broken else (0, 8, 0))
    with Codec.load("tiny", "onnxruntime-cpu:fp32") as codec:
        for name in ("0", "3", "7"):
            want = np.asarray(codec.decode(source / f"{name}.pco", steps=1)).astype(int)
            with Image.open(source.parent / "out" / f"{name}.png") as image:
                assert abs(np.asarray(image) - want).max() <= 1
    assert sorted(device.runs) == ([1, 1, 2, 3] if broken else [1, 1, 3, 3])  # 6 are of 50x40
    code, record, _ = run("--out", "out")
    assert (record["decoded"], record["kept"]) == (0, 7 if broken else 8)


@pytest.mark.parametrize(
    ("usable", "asked", "jobs", "threads"),
    [(2, "", 2, 1), (6, "", 4, 3), (4, "--jobs 1", 1, 4), (2, "--jobs 3", 3, 1)],
)
def test_images_at_a_time_and_the_threads_they_share_make_up_the_processors(
    run: Run, monkeypatch: pytest.MonkeyPatch, usable: int, asked: str, jobs: int, threads: int
) -> None:
    for module in (folder, processors):
        monkeypatch.setattr(module, "usable_processors", lambda: usable)
    record = run("--out", "out", *asked.split())[1]
    assert (record["jobs"], record["threads"]) == (jobs, threads)


def test_a_second_run_decodes_what_is_new(run: Run, source: Path) -> None:
    out = source.parent / "out"
    assert run("--out", "out")[1]["decoded"] == 4
    (out / "1.png").unlink()
    shutil.copy(source / "3.pco", source / "2.pco")
    (source / "0.pco").touch()
    code, record, _ = run("--out", "out")
    assert (code, record["decoded"], record["kept"]) == (0, 2, 2)
    assert (out / "2.png").read_bytes() == (out / "3.png").read_bytes()
    before = (out / "0.png").stat().st_mtime_ns
    assert run("--out", "out")[1]["decoded"] == 0
    assert (out / "0.png").stat().st_mtime_ns == before
    code, record, _ = run("--out", "out", "--force")
    assert (record["decoded"], record["kept"]) == (4, 0)
    assert (out / "0.png").stat().st_mtime_ns > before


def test_bad_streams_are_reported_and_stop_nothing(run: Run, source: Path) -> None:
    damaged = bytearray((source / "0.pco").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (source / "damaged.pco").write_bytes(damaged)
    (source / "empty.pco").write_bytes(b"")
    (source / "huge.pco").write_bytes(b"x" * 100_000)
    (source / "folder.pco").mkdir()
    bad = ["damaged.pco", "empty.pco", "folder.pco", "huge.pco"]
    for _ in range(2):  # tried again, told again
        code, record, _ = run("--out", "out")
        assert (code, record["bad"], record["streams"]) == (3, 4, 8)
        report = (source.parent / record["report"]).read_text().splitlines()
        entries = sorted((json.loads(line) for line in report), key=lambda entry: entry["file"])
        assert [Path(entry["file"]).name for entry in entries] == bad
        assert "checksum" in entries[0]["message"]
        assert entries[0]["error"] == "StreamError"
    assert names(source.parent / "out") == [*IMAGES, folder.REPORT_NAME, RECORD_NAME]
    for name in bad:
        path = source / name
        path.rmdir() if path.is_dir() else path.unlink()
    assert run("--out", "out")[0] == 0
    assert names(source.parent / "out") == [*IMAGES, RECORD_NAME]


def test_what_breaks_in_a_new_way_is_reported_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Codec.decode

    def fails(codec: Codec, data: bytes, **options: Any) -> Image.Image:
        if len(data) == len((Path("in") / "3.pco").read_bytes()):
            raise RuntimeError("out of the blue")
        return decode(codec, data, **options)

    monkeypatch.setattr(Codec, "decode", fails)
    code, record, _ = run("--out", "out")
    assert (code, record["decoded"], record["bad"]) == (3, 3, 1)
    entry = json.loads(Path(record["report"]).read_text())
    assert (entry["error"], entry["message"]) == ("RuntimeError", "out of the blue")


def test_formats(run: Run, source: Path) -> None:
    assert run("--out", "out", "--format", "webp", "--low-memory")[0] == 0
    images = [f"{index}.webp" for index in range(4)]
    assert names(source.parent / "out") == [*images, RECORD_NAME]


def test_results_may_lie_beside_the_streams(run: Run, source: Path) -> None:
    assert run("--out", "in")[0] == 0
    assert set(IMAGES) < set(names(source))
    assert run("--out", "in")[1]["kept"] == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "expected a folder for the images of 'in', got none; name it with --out"),
        (("--out", "-"), 2, "name it with --out"),
        (("--out", "in/notes.txt"), 5, "cannot write in/notes.txt"),
        (("--out", "out/o.png"), 2, "leave the suffix out"),
        (("--out", "out", "--format", "bmp"), 2, "bmp"),
        (("--out", "out", "--guidance", "99"), 2, "guidance"),
        (("--out", "out", "--bundle", "nowhere"), 4, "nowhere"),
        (("--out", "out", "--jobs", "0"), 2, "--jobs"),
        (("--out", "out", "--jobs", "100000"), 2, "expected jobs to be at most"),
        (("--out", "out", "--threads", "100000"), 2, "expected threads to be at most"),
    ],
)
def test_mistakes_are_told_before_the_work(
    run: Run, source: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, _, err = run(*arguments)
    assert found == code
    assert words in err
    assert not list(source.parent.glob("out/*"))


def test_streams_of_one_name_are_set_aside(run: Run, source: Path) -> None:
    shutil.copy(source / "0.pco", source / "0.PCO")
    if (source / "0.PCO").samefile(source / "0.pco"):
        pytest.skip("names differ by more than case here")
    code, record, _ = run("--out", "out")
    assert (code, record["streams"], record["decoded"], record["bad"]) == (3, 5, 3, 2)
    assert not Path("out/0.png").exists()
    entries = [json.loads(line) for line in Path(record["report"]).read_text().splitlines()]
    assert [Path(entry["file"]).name for entry in entries] == ["0.PCO", "0.pco"]
    assert "'0.PCO' and '0.pco'" in entries[0]["message"]


def test_folders_that_make_no_sense(run: Run, source: Path) -> None:
    for file in source.glob("*.[pP]*"):
        file.unlink()
    code, _, err = run("--out", "out")
    assert code == 3
    assert "expected files that end in .pco in in, found none" in err


def test_a_full_disk_ends_the_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, record, err = run("--out", "out")
    assert (code, record) == (5, None)
    assert "No space left" in err
    assert [name for name in names(Path("out")) if name != RECORD_NAME] == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends an interrupt as terminals do")
def test_an_interrupt_leaves_no_partial_file_and_can_be_resumed(
    source: Path, streams: list[bytes]
) -> None:
    with Codec.load("tiny") as codec:
        large = codec.encode(np.zeros((256, 256, 3), np.uint8))
    for index in range(200):
        (source / f"large-{index:03}.pco").write_bytes(large)
    out = source.parent / "out"
    command = [sys.executable, "-m", "percoedge", "decode", str(source), "--out", str(out)]
    process = subprocess.Popen([*command, "--jobs", "2", "--json"], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not list(out.glob("large-*.png")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    done = names(out)
    assert 0 < len(done) < 204
    done.remove(RECORD_NAME)
    assert not [name for name in done if not name.endswith(".png")]
    for name in done:
        with Image.open(out / name) as image:
            image.load()
