"""Decoding a folder replaces only what it has written itself, whatever happened in between."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from percoedge.errors import OutputError
from percoedge.runtime.cli.folder import work as folder
from percoedge.runtime.cli.folder.record import RECORD_NAME, FolderRecord, State
from percoedge.runtime.cli.main import main
from percoedge.runtime.codec import Codec

ROOT = Path(__file__).parents[4]
Run = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    random = np.random.default_rng(1)
    with Codec.load("tiny") as codec:
        return [codec.encode(random.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(3)]


@pytest.fixture
def run(tmp_path: Path, streams: list[bytes], capsys: pytest.CaptureFixture[str]) -> Run:
    """Decode the folder "in" into the folder "out" of the working directory."""
    os.chdir(tmp_path)
    Path("in").mkdir()
    Path("out").mkdir()
    for name, data in zip("abc", streams, strict=True):
        Path("in", f"{name}.pco").write_bytes(data)

    def call(*arguments: str, out: str = "out") -> tuple[int, dict[str, Any]]:
        command = ["decode", "in", out, "--json", "--quiet", "--steps", "1", *arguments]
        code = main(command)
        text = capsys.readouterr().out
        return code, json.loads(text) if text else {}

    return call


@pytest.fixture(autouse=True)
def working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # and back, after a test


def counts(record: dict[str, Any]) -> tuple[int, int, int]:
    return record["decoded"], record["kept"], record["bad"]


def reasons(record: dict[str, Any]) -> dict[str, str]:
    """Message of each bad stream by its name."""
    lines = Path(record["report"]).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {Path(entry["file"]).name: entry["message"] for entry in entries}


@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_photos_beside_their_streams_are_not_replaced(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suffix = {"png": ".png", "jpeg": ".jpg"}[form]
    photo = tmp_path / "p" / f"s{suffix}"
    photo.parent.mkdir()
    Image.new("RGB", (24, 24), (200, 30, 60)).save(photo)
    before = photo.read_bytes()
    assert main(["encode", str(photo), "-q"]) == 0
    os.utime(photo, (1, 1))
    command = ["decode", str(photo.parent), "--out", str(photo.parent), "--format", form, "--json"]
    for modified in (1, 2_000_000_000):  # older than the stream, and newer
        os.utime(photo, (modified, modified))
        capsys.readouterr()
        assert main(command) == 3
        record = json.loads(capsys.readouterr().out)
        assert counts(record) == (0, 0, 1)
        assert f"cannot write {photo}: expected no file, or" in reasons(record)["s.pco"]
        assert photo.read_bytes() == before
    assert main([*command, "--force"]) == 0
    assert photo.read_bytes() != before
    capsys.readouterr()
    assert main(command) == 0
    assert counts(json.loads(capsys.readouterr().out)) == (0, 1, 0)


def test_an_image_that_was_altered_is_kept_and_reported(run: Run) -> None:
    assert run()[0] == 0
    Image.new("RGB", (24, 24)).save("out/a.png")
    altered = Path("out/a.png").read_bytes()
    code, record = run()
    assert (code, counts(record), list(reasons(record))) == (3, (0, 2, 1), ["a.pco"])
    assert Path("out/a.png").read_bytes() == altered
    assert counts(run("--force")[1]) == (3, 0, 0)
    assert Path("out/a.png").read_bytes() != altered


@pytest.mark.parametrize(
    "options", [("--steps", "2"), ("--seed", "7"), ("--bundle", "again"), ("--cut",)]
)
def test_other_settings_decode_again(run: Run, options: tuple[str, ...]) -> None:
    shutil.copytree(Path(folder.__file__).parents[3] / "bundles" / "tiny", "again")
    if "again" in options:
        manifest = Path("again/manifest.json")
        data = json.loads(manifest.read_text())
        data["provenance"] = {"decoder": "retrained"}  # of the same fingerprint
        manifest.write_text(json.dumps(data))
    assert counts(run()[1]) == (3, 0, 0)
    assert counts(run(*options)[1]) == (3, 0, 0)
    assert counts(run(*options)[1]) == (0, 3, 0)
    assert counts(run()[1]) == (3, 0, 0)


def test_images_moved_with_their_record_are_known(run: Run) -> None:
    run()
    shutil.copytree("out", "copy", copy_function=shutil.copyfile)  # without their times
    assert counts(run(out="copy")[1]) == (0, 3, 0)


@pytest.mark.parametrize(
    "contents",
    [
        *(b"", b"\0\xff" * 5000, b"[" * 100_000, b"null\n3\n[]\n{}\n", b"x" * 100_000 + b"\n"),
        b'{"output": "a.png", "sha256": [], "source_sha256": {}}\n',
        b'{"output": "../in/a.pco", "sha256": "", "source_sha256": ""}\n',
    ],
)
def test_a_damaged_record_is_as_good_as_none(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / RECORD_NAME).write_bytes(contents)
    (tmp_path / "a.png").write_bytes(b"image")
    for _ in range(2):
        with FolderRecord(tmp_path, ["a.png"]) as record:
            assert record.state("a.png", "source") is State.FOREIGN
    with FolderRecord(tmp_path, ["a.png"]) as record:
        record.add("a.png", b"image", "source")
        assert record.state("a.png", "source") is State.CURRENT
    with FolderRecord(tmp_path, ["a.png"]) as record:  # it is read behind the damage
        assert record.state("a.png", "source") is State.CURRENT


def test_without_a_record_nothing_is_replaced(run: Run) -> None:
    run()
    Path("out", RECORD_NAME).unlink()
    code, record = run()
    assert (code, counts(record)) == (3, (0, 0, 3))
    assert counts(run("--force")[1]) == (3, 0, 0)
    assert counts(run()[1]) == (0, 3, 0)


def test_a_line_that_was_cut_costs_its_image_only(run: Run) -> None:
    run("--jobs", "1")
    record = Path("out", RECORD_NAME)
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"".join(lines)[:-20])
    lost = Path("out") / json.loads(lines[-1])["output"]
    lost.unlink()
    assert counts(run()[1]) == (1, 2, 0)
    assert counts(run()[1]) == (0, 3, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs links and pipes")
class TestWhatIsNoPlainFile:
    def test_links(self, run: Run) -> None:
        run()
        Path("precious.png").write_bytes(Path("out/a.png").read_bytes())
        Path("out/a.png").unlink()
        Path("out/a.png").symlink_to("../precious.png")  # an image of ours, by its contents
        Path("out/b.png").unlink()
        Path("out/b.png").symlink_to("nowhere.png")
        before = Path("precious.png").stat()
        code, record = run("--steps", "2")
        assert (code, counts(record), sorted(reasons(record))) == (3, (1, 0, 2), ["a.pco", "b.pco"])
        assert Path("precious.png").stat() == before
        assert not Path("out/nowhere.png").exists()
        assert counts(run("--force")[1]) == (1, 0, 2)  # they may lead to what is to be kept
        assert Path("precious.png").stat() == before
        assert Path("out/a.png").is_symlink() and not Path("out/nowhere.png").exists()

    @pytest.mark.parametrize("options", [(), ("--force",)])
    def test_folders_and_pipes(self, run: Run, options: tuple[str, ...]) -> None:
        Path("out/a.png").mkdir()
        os.mkfifo("out/b.png")
        code, record = run(*options)
        assert (code, counts(record), sorted(reasons(record))) == (3, (1, 0, 2), ["a.pco", "b.pco"])

    def test_a_record_behind_a_link_is_not_written(self, run: Run) -> None:
        Path("precious.txt").write_text("mine")
        Path("out", RECORD_NAME).symlink_to("../precious.txt")
        assert run()[0] == 5
        assert Path("precious.txt").read_text() == "mine"
        assert [path.name for path in Path("out").iterdir()] == [RECORD_NAME]

    def test_a_record_that_is_a_pipe(self, run: Run) -> None:
        os.mkfifo(Path("out", RECORD_NAME))
        assert run()[0] == 5

    def test_a_folder_that_cannot_be_written_to_stops_before_the_work(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def decode(*_: object, **__: object) -> Image.Image:
            raise AssertionError("nothing is decoded")

        monkeypatch.setattr(Codec, "decode", decode)
        if not Path("/proc/self/task").is_dir():
            pytest.skip("needs a folder that not even root can write to")
        assert run(out="/proc/self/task")[0] == 5


def test_a_file_that_appears_meanwhile_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = Codec.decode

    def slow(codec: Codec, data: bytes, **options: Any) -> Image.Image:
        Path("out/a.png").write_bytes(b"mine")
        return decode(codec, data, **options)

    monkeypatch.setattr(Codec, "decode", slow)
    code, record = run("--jobs", "1")
    assert (code, counts(record), list(reasons(record))) == (3, (2, 0, 1), ["a.pco"])
    assert Path("out/a.png").read_bytes() == b"mine"


def test_an_image_too_large_for_its_format_stops_no_other(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode = Codec.decode

    def wide(codec: Codec, data: bytes, **options: Any) -> Image.Image:
        image = decode(codec, data, **options)
        return image.resize((16384, 1)) if data == Path("in/a.pco").read_bytes() else image

    monkeypatch.setattr(Codec, "decode", wide)
    code, record = run("--format", "webp")
    assert (code, counts(record), list(reasons(record))) == (3, (2, 0, 1), ["a.pco"])


KILLED_AT = """
import os, signal, sys
from percoedge.runtime.cli.main import main
def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
{patch}
main(sys.argv[1:])
"""
PATCHES = {
    "before the record is written": "os.write = kill",
    "in the middle of a line": """
write = os.write
def half(descriptor, data):
    write(descriptor, data[: len(data) // 2])
    kill()
os.write = half""",
    "behind the record": """
from percoedge.errors import OutputError
from percoedge.runtime.cli.folder import work as folder
folder.atomic_write = kill""",
    "before the image has its name": "os.replace = kill",
    "when the image has its name": """
replace = os.replace
def last(*names):
    replace(*names)
    kill()
os.replace = last""",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize(
    ("moment", "older"), [(moment, True) for moment in PATCHES] + [("behind the record", False)]
)
def test_a_run_that_was_killed_is_resumed(run: Run, moment: str, older: bool) -> None:
    if older:
        assert run()[0] == 0
    code = KILLED_AT.format(patch=PATCHES[moment])
    command = [sys.executable, "-c", code, "decode", "in", "out", "--steps", "2", "--jobs", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    process = subprocess.run(command, env=environment, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    code_, record = run("--steps", "2")
    assert (code_, record["bad"], record["decoded"] + record["kept"]) == (0, 0, 3)
    assert record["kept"] == (moment == "when the image has its name")
    assert counts(run("--steps", "2")[1]) == (0, 3, 0)


def test_two_runs_at_once(run: Run) -> None:
    for index in range(6):
        shutil.copy("in/a.pco", f"in/{index}.pco")
    command = [sys.executable, "-m", "percoedge", "decode", "in", "out", "--steps", "1", "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    runs = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(120) for process in runs] == [0, 0]
    assert counts(run()[1]) == (0, 9, 0)
    images = {Path(f"out/{index}.png").read_bytes() for index in range(6)}
    assert images == {Path("out/a.png").read_bytes()}


def test_a_record_continued_by_another_process_is_read_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"image")
    with FolderRecord(tmp_path, ["a.png"]) as ours, FolderRecord(tmp_path, ["a.png"]) as theirs:
        assert ours.state("a.png", "source") is State.FOREIGN
        theirs.add("a.png", b"image", "source")
        assert ours.state("a.png", "source") is State.CURRENT
        assert ours.state("a.png", "another") is State.OURS
        (tmp_path / "a.png").unlink()
        assert ours.state("a.png", "source") is State.ABSENT


def test_a_full_disk_under_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FolderRecord(tmp_path, ["a.png"]) as record:
        record.open()
        monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) // 2)
        with pytest.raises(OutputError, match="No space left"):
            record.add("a.png", b"image", "source")
