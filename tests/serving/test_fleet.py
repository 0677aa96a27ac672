"""Jobs of a fleet on this machine: one output for each input, whatever happens on the way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow", reason="without fleets: pip install '.[fleet]'")
ray = pytest.importorskip("ray", reason="without fleets: pip install '.[fleet]'")
pytest.importorskip("ray.data", reason="without fleets: pip install '.[fleet]'")

from pyarrow import fs  # noqa: E402

from percoedge import Codec, InputError, OutputError, UsageError  # noqa: E402
from percoedge.runtime.cli.folder.record import RECORD_NAME  # noqa: E402
from percoedge.runtime.cli.folder.work import REPORT_NAME  # noqa: E402
from percoedge.runtime.cli.main import main  # noqa: E402
from percoedge.serving.fleet import jobs  # noqa: E402
from percoedge.serving.fleet.places import NO_PLAIN_FILE, Place  # noqa: E402
from percoedge.serving.fleet.workers import RECORD_FOLDER, Worker  # noqa: E402

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
COUNT = 12


@pytest.fixture(scope="module", autouse=True)
def running() -> Iterator[None]:
    """One Ray for all jobs here, which each would start for itself."""
    os.environ["PYTHONPATH"] = str(ROOT / "src")
    with jobs.cluster(None):
        yield


@pytest.fixture(autouse=True)
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", lambda **options: None)
    monkeypatch.setattr(ray, "shutdown", lambda: None)


@pytest.fixture(scope="module")
def streams() -> list[bytes]:
    random = np.random.default_rng(2)
    with Codec.load("tiny") as codec:
        return [codec.encode(random.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(COUNT)]


@pytest.fixture
def source(tmp_path: Path, streams: list[bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Streams, half of them in a folder inside, and a text."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    (folder / "inner").mkdir(parents=True)
    (folder / "notes.txt").write_text("no stream")
    for number, data in enumerate(streams):
        (folder / ("inner" if number % 2 else "") / f"{number}.pco").write_bytes(data)
    return folder


@pytest.fixture
def run(source: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, Any]]:
    def call(*arguments: str, out: str = "out") -> tuple[int, Any]:
        options = ["--out", out, "--json", "-q", "--batch", "4", "--workers", "2", *arguments]
        code = main(["fleet", "decode", "in", "--steps", "1", *options])
        said = capsys.readouterr()
        print(said.err, file=sys.stderr)  # which pytest shows when the test fails
        return code, record_of(said.out)

    return call


def record_of(text: str) -> Any:
    """The report; the Ray of this module may have said something besides."""
    lines = [line for line in text.splitlines() if line.startswith("{")]
    return json.loads(lines[0]) if lines else None


def counts(record: Any) -> tuple[int, int, int]:
    return record["done"], record["kept"], record["bad"]


def reasons(folder: Path) -> dict[str, str]:
    lines = (folder / REPORT_NAME).read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    return {Path(entry["file"]).name: entry["message"] for entry in entries}


def images(folder: Path) -> dict[str, bytes]:
    paths = folder.rglob("*.png")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_images_are_those_of_the_codec(
    run: Callable[..., tuple[int, Any]], tmp_path: Path, streams: list[bytes]
) -> None:
    (tmp_path / "in" / "0.PCO").write_bytes(b"")  # whose image would be that of 0.pco
    (tmp_path / "in" / "bad.pco").write_bytes(streams[0][:-3])
    (tmp_path / "in" / ".trash").mkdir()
    for hidden in ("._1.pco", ".trash/1.pco"):
        (tmp_path / "in" / hidden).write_bytes(b"")
    code, record = run()
    assert (code, counts(record)) == (3, (COUNT - 1, 0, 3))
    assert (record["files"], record["workers"]) == (COUNT + 2, 2)
    assert sum(record["nodes"].values()) == COUNT - 1
    bad = reasons(tmp_path / "out")
    assert set(bad) == {"0.PCO", "0.pco", "bad.pco"}
    assert "different names" in bad["0.pco"] and "checksum" in bad["bad.pco"]
    made = images(tmp_path / "out")
    assert set(made) == {
        f"{'inner/' if number % 2 else ''}{number}.png" for number in range(1, COUNT)
    }
    with Codec.load("tiny", threads=1) as codec:
        for number in (1, 2):
            path = tmp_path / "out" / ("inner" if number % 2 else "") / f"{number}.png"
            with Image.open(path) as image:
                assert image.convert("RGB") == codec.decode(streams[number], steps=1)


def test_a_second_run_goes_on_and_replaces_nothing_of_others(
    run: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert counts(run()[1]) == (COUNT, 0, 0)
    before = images(out)
    (out / "0.png").unlink()
    (out / "2.png").write_bytes(b"somebody's")
    (out / "4.png").unlink()
    (out / "4.png").symlink_to(tmp_path / "in" / "notes.txt")
    code, record = run()
    assert (code, counts(record)) == (3, (1, COUNT - 3, 2))
    assert set(reasons(out)) == {"2.pco", "4.pco"}
    assert all("--force" in reason for reason in reasons(out).values())
    assert (out / "2.png").read_bytes() == b"somebody's"
    (out / "4.png").unlink()
    assert counts(run("--force")[1]) == (COUNT, 0, 0)
    assert images(out) == before
    assert not (out / REPORT_NAME).exists()
    assert counts(run("--seed", "5")[1]) == (COUNT, 0, 0)  # ours, of other settings
    assert images(out).keys() == before.keys() and images(out) != before


def test_it_goes_on_where_decode_stopped(
    run: Callable[..., tuple[int, Any]], tmp_path: Path
) -> None:
    assert main(["decode", "in", "--out", "out", "--steps", "1", "--threads", "1", "-q"]) == 0
    assert (tmp_path / "out" / RECORD_NAME).exists()
    assert counts(run()[1]) == (COUNT // 2, COUNT // 2, 0)


def test_images_are_encoded_and_addresses_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    random = np.random.default_rng(3)
    pixels = [random.integers(0, 256, (24, 32, 3), np.uint8) for _ in range(3)]
    for number, each in enumerate(pixels):
        Image.fromarray(each).save(photos / f"{number}.png")
    (photos / "torn.jpg").write_bytes(b"\xff\xd8\xff\xe0 torn")
    out = tmp_path / "out"
    command = ["fleet", "encode", photos.as_uri(), "--out", out.as_uri(), "--passes", "3"]
    assert main([*command, "--json", "-q"]) == 3
    assert counts(record_of(capsys.readouterr().out)) == (3, 0, 1)
    assert set(reasons(out)) == {"torn.jpg"}
    with Codec.load("tiny", threads=1) as codec:
        for number, each in enumerate(pixels):
            assert (out / f"{number}.pco").read_bytes() == codec.encode(each, passes=3)
    assert main([*command, "--json", "-q"]) == 3
    assert counts(record_of(capsys.readouterr().out)) == (0, 3, 1)


def test_a_process_that_is_killed_loses_no_file_and_a_poisoned_one_is_set_aside(
    run: Callable[..., tuple[int, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "killed"

    class Mortal(Worker):
        """Dies once at one file, having written a part of the batch, and always at another."""

        def _write(self, part: str, items: Any) -> None:
            super()._write(part, items)
            if any(item.name == "4.pco" for item in items) and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        def _made(self, item: Any, image: Any) -> bytes:
            if item.name == "8.pco":
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._made(item, image)

    monkeypatch.setattr(jobs, "Worker", Mortal)
    code, record = run()
    assert flag.exists()
    assert (code, counts(record)) == (3, (COUNT - 1, 0, 1))
    assert "end of their process" in reasons(tmp_path / "out")["8.pco"]
    monkeypatch.undo()
    os.chdir(tmp_path)
    assert len(images(tmp_path / "out")) == COUNT - 1


def test_a_full_disk_ends_the_job_and_leaves_nothing_half_written(
    run: Callable[..., tuple[int, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    class Small(Worker):
        """Whose files end after some bytes, as on a full disk: the record fits, no image does."""

        def _write(self, part: str, items: Any) -> None:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400, limit[1]))
            try:
                super()._write(part, items)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    monkeypatch.setattr(jobs, "Worker", Small)
    code, record = run("--batch", "1")
    assert (code, record) == (OutputError.exit_code, None)
    assert images(tmp_path / "out") == {}
    assert list((tmp_path / "out" / RECORD_FOLDER).iterdir())
    assert not list((tmp_path / "out").rglob(".percoedge-*"))
    monkeypatch.setattr(jobs, "Worker", Worker)
    assert counts(run()[1]) == (COUNT, 0, 0)


def test_what_concerns_all_is_told_in_a_line(
    run: Callable[..., tuple[int, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*command: str) -> tuple[int, str]:
        code = main(["fleet", "decode", *command, "-q"])
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1, err
        return code, err

    assert refused("in", "--out", "out", "--steps", "999")[0] == 2
    code, line = refused("nowhere://in", "--out", "out")
    assert code == 2 and "nowhere" in line
    code, line = refused("empty", "--out", "out")
    assert code == 3 and "found none" in line
    assert refused("in", "--out", "out", "--backend", "tensorrt")[0] in (2, 4)
    assert refused("in", "--out", "out", "--threads", "1000")[0] == 2
    assert not (tmp_path / "out" / RECORD_FOLDER).exists()


@pytest.mark.parametrize("local", [True, False])
def test_a_place_holds_whole_files(tmp_path: Path, local: bool) -> None:
    """Of this machine, and as pyarrow does it elsewhere."""
    files = fs.LocalFileSystem()
    place = Place("shown", files, str(tmp_path))
    if not local:
        place = Place("shown", fs.SubTreeFileSystem(str(tmp_path.parent), files), tmp_path.name)
    assert place.is_local is local
    (tmp_path / "a").mkdir()
    place.write("a/b.pco", b"first")
    place.write("a/b.pco", b"second")
    assert (place.names(), place.names("none")) == (["a/b.pco"], [])
    assert place.read("a/b.pco", 6) == b"second"
    assert (place.sha256("none"), place.sha256("a")) == (None, NO_PLAIN_FILE)
    place.remove("a/b.pco")
    place.remove("a/b.pco")
    assert place.names() == []


def test_names_are_found_once_and_in_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.pco").touch()
    (tmp_path / "back").symlink_to(tmp_path)
    place = Place.named(str(tmp_path))
    assert place.names() == ["a.pco"]
    with open(os.fsencode(tmp_path) + b"/\xff.pco", "wb"):
        pass
    with pytest.raises(InputError, match="UTF-8"):
        place.names()


def test_an_unknown_address_is_refused() -> None:
    with pytest.raises(UsageError, match="pyarrow"):
        Place.named("nowhere://x")


def test_an_unknown_setting_of_the_application_is_named() -> None:
    from percoedge.serving.fleet import app

    for arguments in ({"lanez": 1}, {"threads": "many"}, {"in_process": "perhaps"}):
        with pytest.raises(UsageError, match=next(iter(arguments))):
            app(arguments)
