"""Encoding a folder, by the rules of decoding one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from percoedge.runtime.cli.folder.record import RECORD_NAME
from percoedge.runtime.cli.folder.work import REPORT_NAME
from percoedge.runtime.cli.main import main
from percoedge.runtime.codec import Codec

PHOTOS = ["a.png", "b.JPG", "c.webp"]
STREAMS = ["a.pco", "b.pco", "c.pco"]
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Encode the folder "in", three photos beside other things, into the folder "out"."""
    monkeypatch.chdir(tmp_path)
    Path("in", "inner").mkdir(parents=True)
    Path("in", "notes.txt").write_text("no photo")
    Path("in", "old.pco").write_bytes(b"no photo either")
    random = np.random.default_rng(0)
    for index, name in enumerate(PHOTOS):
        pixels = random.integers(0, 256, (20 + index, 40, 3), np.uint8)
        Image.fromarray(pixels).save(Path("in", name))

    def call(*arguments: str) -> tuple[int, dict[str, Any], str]:
        code = main(["encode", "in", "--json", "-q", *arguments])
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else {}, err

    return call


def counts(record: dict[str, Any]) -> tuple[int, int, int]:
    return record["encoded"], record["kept"], record["bad"]


def test_streams_are_those_of_one_by_one(run: Run) -> None:
    code, record, _ = run("--out", "out", "--caption", "grey", "--passes", "5")
    assert (code, record["images"], counts(record)) == (0, 3, (3, 0, 0))
    assert sorted(path.name for path in Path("out").iterdir()) == [*STREAMS, RECORD_NAME]
    with Codec.load("tiny", threads=1) as codec:
        for name, stream in zip(PHOTOS, STREAMS, strict=True):
            expected = codec.encode(Path("in", name), caption="grey", passes=5)
            assert Path("out", stream).read_bytes() == expected


def test_a_second_run_encodes_what_is_new(run: Run) -> None:
    assert counts(run("--out", "out")[1]) == (3, 0, 0)
    Path("out/a.pco").unlink()
    shutil.copy("in/c.webp", "in/b.JPG")  # what a file is called says nothing of what it is
    assert counts(run("--out", "out")[1]) == (2, 1, 0)
    assert Path("out/b.pco").read_bytes() == Path("out/c.pco").read_bytes()
    for options in (("--seed", "0"), ("--bare",), ("--caption", "x"), ("--bytes", "60"), ()):
        assert counts(run("--out", "out", *options)[1]) == (3, 0, 0), options
        assert counts(run("--out", "out", *options)[1]) == (0, 3, 0)


def test_bad_images_are_reported_and_other_files_stay(run: Run) -> None:
    Path("in/broken.png").write_bytes(Path("in/a.png").read_bytes()[:100])
    Path("in/a.jpeg").write_bytes(b"")
    Path("out").mkdir()
    Path("out/c.pco").write_bytes(b"mine")
    code, record, _ = run("--out", "out")
    assert (code, counts(record)) == (3, (1, 0, 4))
    lines = Path("out", REPORT_NAME).read_text().splitlines()
    errors = {Path(entry["file"]).name: entry["message"] for entry in map(json.loads, lines)}
    assert sorted(errors) == ["a.jpeg", "a.png", "broken.png", "c.webp"]
    assert "'a.jpeg' and 'a.png'" in errors["a.png"]
    assert "damaged or cut short" in errors["broken.png"]
    assert "expected no file, or one that was encoded here" in errors["c.webp"]
    assert Path("out/c.pco").read_bytes() == b"mine"
    assert counts(run("--out", "out", "--force")[1]) == (2, 0, 3)
    assert Path("out/c.pco").read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "expected a folder for the streams of 'in', got none; name it with --out"),
        (("--out", ""), 2, "got none; name it with --out"),
        (("--out", "out/o.pco"), 2, "leave the suffix out"),
        (("--out", "out", "--passes", "9"), 2, "passes"),
        (("--out", "out", "--schedule", "none"), 2, "schedule"),
        (("--out", "out", "--seed", "-1"), 2, "seed"),
        (("--out", "out", "--caption", "x" * 2000), 2, "caption"),
        (("--out", "out", "--bundle", "nowhere"), 4, "nowhere"),
    ],
)
def test_mistakes_are_told_before_the_work(
    run: Run, arguments: tuple[str, ...], code: int, words: str
) -> None:
    found, _, err = run(*arguments)
    assert found == code
    assert words in err
    assert not Path("out").exists()


def test_a_report_of_somebody_else_stays(run: Run) -> None:
    Path("out").mkdir()
    for contents in (b"my notes\n", b"[1]\n", b"\xff\n", b'{"file": 1}\n'):
        Path("out", REPORT_NAME).write_bytes(contents)
        code, _, err = run("--out", "out")
        assert (code, "the report of an earlier run" in err) == (5, True)
        assert Path("out", REPORT_NAME).read_bytes() == contents
    Path("in/a.jpeg").write_bytes(b"")
    Path("out", REPORT_NAME).unlink()
    assert run("--out", "out")[0] == 3
    Path("in/a.jpeg").unlink()
    assert run("--out", "out")[0] == 0  # that one was ours
    assert not Path("out", REPORT_NAME).exists()


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
def test_pipes_and_links_to_photos(run: Run) -> None:
    os.mkfifo("in/pipe.png")
    photo = Path("in/a.png").read_bytes()
    Path("out").mkdir()
    Path("out/a.pco").symlink_to("../in/a.png")
    code, record, err = run("--out", "out", "--force")
    assert (code, counts(record)) == (3, (2, 0, 2))
    assert "2 images were not encoded: see" in err  # in spite of -q
    assert Path("in/a.png").read_bytes() == photo
    assert "expected a plain file" in Path("out", REPORT_NAME).read_text()


def test_a_protected_stream_stops_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert counts(run("--out", "out")[1]) == (3, 0, 0)
    before = Path("out/b.pco").read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "b.pco")
    assert counts(run("--out", "out", "--passes", "5")[1]) == (2, 0, 1)
    assert Path("out/b.pco").read_bytes() == before
    assert "write-protected" in Path("out", REPORT_NAME).read_text()
