"""percoedge.runtime.cli.main: every command, every exit code, one line for every failure."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import percoedge
from percoedge import bundles
from percoedge.bitstream.container import Header, pack, unpack
from percoedge.bitstream.schedules import SCHEDULES
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.runtime.cli.commands import info
from percoedge.runtime.cli.console import printable, size_text
from percoedge.runtime.cli.main import main
from percoedge.runtime.codec import Codec

ROOT = Path(__file__).parents[3]
MISSING = ("no.png", "no/no.pco")
SIZE = (50, 40)  # width, height: no multiples of the stride


class Result(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def record(self) -> dict[str, Any]:
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


Run = Callable[..., Result]


@pytest.fixture
def run(
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Run the command line in an empty directory, `stdin` being the bytes of standard input."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return call


def picture() -> NDArray[np.uint8]:
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return np.stack([4 * columns, 5 * rows, 2 * (rows + columns)], -1).astype(np.uint8)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture(scope="module")
def stream() -> bytes:
    with Codec.load("tiny") as codec:
        return codec.encode(picture(), caption="a hill")


@pytest.fixture
def pco(tmp_path: Path, stream: bytes) -> Path:
    path = tmp_path / "given.pco"
    path.write_bytes(stream)
    return path


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    shutil.copytree(Bundle.open("tiny").path, target)
    return target


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def weights_of(bundle: Path, kind: str) -> Path:
    """The largest file of a graph."""
    record = max(
        Bundle.open(bundle).manifest.graphs[kind].variants["fp32"].files, key=lambda r: r.size
    )
    return bundle / record.file


def assert_refused(result: Result, code: int, words: str) -> None:
    """One line on stderr that says `words`, nothing on stdout."""
    assert (result.code, result.out) == (code, b""), result
    assert re.fullmatch(r"percoedge: error: [^\n]+\n", result.err), result.err
    assert words in result.err


class TestEncodeAndDecode:
    def test_names_are_made_from_the_input(self, run: Run, photo: Path) -> None:
        result = run("encode", photo, "--caption", "a hill")
        assert (result.code, result.err) == (0, "")
        data = (photo.parent / "photo.pco").read_bytes()
        assert result.out.decode().startswith(f"{photo.with_suffix('.pco')}: {len(data)} bytes, ")
        assert unpack(data).header == Header(*SIZE, caption="a hill")
        photo.unlink()
        assert run("decode", photo.with_suffix(".pco")).code == 0
        with Image.open(photo) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", SIZE)

    def test_standard_streams_carry_the_data_alone(
        self, run: Run, photo: Path, pco: Path, stream: bytes
    ) -> None:
        encoded = run("encode", "-", "--caption", "a hill", "--json", stdin=photo.read_bytes())
        assert (encoded.code, encoded.out) == (0, stream)
        record = json.loads(encoded.err)
        assert (record["output"], record["bytes"], record["width"]) == ("-", len(stream), 50)
        decoded = run("decode", "-", "-o", "-", "-q", stdin=stream)
        assert (decoded.code, decoded.err) == (0, "")
        assert run("decode", pco, "-o", "out.png").code == 0
        assert decoded.out == Path("out.png").read_bytes()

    def test_output_behind_the_input(self, run: Run, photo: Path, stream: bytes) -> None:
        assert run("encode", photo, "a.pco", "--caption", "a hill").code == 0
        assert run("encode", photo, "--caption", "a hill", "b.pco").code == 0
        assert Path("a.pco").read_bytes() == Path("b.pco").read_bytes() == stream
        assert run("decode", "--steps", 1, "a.pco", "a.png").code == 0
        assert run("decode", "a.pco", "--steps", 1, "b.png").code == 0
        assert run("decode", "a.pco", "--steps", 1, "-o", "c.png").code == 0
        piped = run("decode", "-", "--steps", 1, "-", stdin=stream)
        assert (piped.code, piped.err[:15]) == (0, "standard output")
        pictures = {Path(f"{name}.png").read_bytes() for name in "abc"}
        assert pictures == {piped.out}

    def test_options_reach_the_codec(self, run: Run, photo: Path) -> None:
        arguments = ("--schedule", "uniform", "--passes", 1, "--seed", 7, "--bare", "--threads", 1)
        assert run("encode", photo, "-o", "a.pco", *arguments, "--low-memory").code == 0
        header = unpack(Path("a.pco").read_bytes(), bare=True).header
        assert (header.schedule, header.seed) == ("uniform", 7)
        result = run(
            *("decode", "a.pco", "-o", "a.bin", "--bare", "--format", "jpg", "--steps", 1),
            *("--guidance", 1, "--seed", 9, "--backend", "onnxruntime-cpu", "--json"),
        )
        assert (result.code, result.record["format"]) == (0, "JPEG")
        assert result.record["backend"] == "onnxruntime-cpu"
        assert {"load", "flow", "decoder"} <= set(result.record["timings_ms"])
        with Image.open("a.bin") as image:
            assert (image.format, image.size) == ("JPEG", SIZE)

    def test_notes_go_to_stderr(self, run: Run, tmp_path: Path) -> None:
        Image.new("RGBA", SIZE, (1, 2, 3, 4)).save("glass.png")
        result = run("encode", "glass.png", "--json")
        note = "its transparent parts were laid on white"
        assert (result.code, result.err) == (0, f"percoedge: note: glass.png: {note}\n")
        assert result.record["notes"] == [note]
        quiet = run("encode", "glass.png", "-o", "b.pco", "-q")
        assert quiet == (0, b"", "")

    def test_a_cut_stream_is_decoded_on_demand(self, run: Run, stream: bytes) -> None:
        Path("cut.pco").write_bytes(stream[:-3])
        assert_refused(run("decode", "cut.pco"), 3, "cut.pco: expected the checksum")
        assert not Path("cut.png").exists()
        assert run("decode", "cut.pco", "--cut").code == 0
        assert Path("cut.png").exists()


class TestInfo:
    def test_tells_where_each_byte_goes(self, run: Run, pco: Path, stream: bytes) -> None:
        record = run("info", pco, "--json").record
        assert sum(record["bytes_by_part"].values()) == record["bytes"] == len(stream)
        assert (record["width"], record["height"], record["caption"]) == (*SIZE, "a hill")
        assert record["bundle"] == "tiny"
        text = run("info", "-", stdin=stream).out.decode()
        assert text.startswith(f"standard input: 50x40 px, {len(stream)} bytes, ")
        for part, size_bytes in record["bytes_by_part"].items():
            assert re.search(rf"^  {part} +{size_bytes} bytes", text, re.MULTILINE)

    def test_describes_a_stream_of_an_unknown_bundle(self, run: Run) -> None:
        Path("a.pco").write_bytes(pack(Header(*SIZE), b"\1", b"else"))
        record = run("info", "a.pco", "--json").record
        assert (record["bundle"], record["fingerprint"]) == ("another one", b"else".hex())
        assert (record["schedule"], record["steps"], record["guidance"]) == (None, None, None)
        assert b"steps: left to the bundle" in run("info", "a.pco").out

    def test_every_damaged_byte_is_noticed(self, run: Run, stream: bytes) -> None:
        for at in range(len(stream)):
            damaged = bytearray(stream)
            damaged[at] ^= 0x10
            assert_refused(run("info", "-", stdin=bytes(damaged)), 3, "standard input: expected")

    def test_captions_cannot_steer_the_terminal(self, run: Run) -> None:
        caption = "\x1b[2J\n\x9b1m\u202e"
        Path("a.pco").write_bytes(pack(Header(*SIZE, caption=caption), b"", b"else"))
        result = run("info", "a.pco")
        assert result.code == 0
        assert not {"\x1b", "\x9b", "\u202e"} & set(result.out.decode())
        assert run("info", "a.pco", "--json").record["caption"] == caption

    def test_needs_no_engine_and_no_pictures(self, pco: Path) -> None:
        code = (
            "import sys; from percoedge.runtime.cli.main import main; "
            f"assert main(['info', {str(pco)!r}, '-q']) == 0; print(*sys.modules)"
        )
        loaded = set(fresh("-c", code).stdout.decode().split())
        assert "percoedge.bitstream.container" in loaded
        assert not loaded & {"PIL", "onnxruntime", "percoedge.runtime.codec"}


class TestDemo:
    def test_measures_and_shows(self, run: Run, photo: Path) -> None:
        result = run("demo", photo, "-o", "both.png", "--steps", 2, "--json")
        assert (result.code, result.err) == (0, "")
        record = result.record
        assert record["bpp"] == pytest.approx(8 * record["bytes"] / (50 * 40))
        assert record["psnr_db"] > 0
        assert 0 <= record["ms_ssim"] <= 1
        assert {"read image", "load", "encoder", "entropy coding"} <= set(record["encode_ms"])
        assert {"load", "entropy decoding", "flow", "decoder"} <= set(record["decode_ms"])
        with Image.open("both.png") as image:
            assert image.size == (2 * 50 + 8, 40)
            np.testing.assert_array_equal(np.asarray(image)[:, :50], picture())

    def test_prints_for_people(self, run: Run, tmp_path: Path) -> None:
        Image.new("L", (5, 5), 90).save("dot.png")  # too small for MS-SSIM
        result = run("demo", "dot.png")
        assert result.code == 0
        for words in ("bpp", "PSNR", "MS-SSIM not defined", "load", "wrote    percoedge-demo.png"):
            assert words in result.out.decode()
        assert Path("percoedge-demo.png").exists()

    def test_shipped_photo(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
    ) -> None:
        monkeypatch.setattr(bundles, "__file__", str(tmp_path / "__init__.py"))
        assert_refused(run("demo"), 3, "demo.jpg, found nothing")
        shutil.copy(photo, tmp_path / "demo.jpg")
        assert shipped_photo() == tmp_path / "demo.jpg"

    def test_output_is_refused_first(self, run: Run, photo: Path) -> None:
        assert_refused(run("demo", photo, "-o", "both.gif"), 2, "image format of 'both.gif'")
        assert_refused(run("demo", photo, "-o", photo), 2, "other than the input")


class TestDoctor:
    def test_all_is_well(self, run: Run) -> None:
        result = run("doctor", "--json")
        record = result.record
        assert (result.code, record["problems"]) == (0, [])
        assert record["auto"] in [b["name"] for b in record["backends"] if b["available"]]
        assert all(b["reason"] for b in record["backends"] if not b["available"])
        assert record["versions"]["numpy"] == np.__version__
        assert set(record["image_formats"]) == {"JPEG", "PNG", "WebP", "AVIF", "ICC"}
        assert record["range_coder"]
        (tiny,) = (b for b in record["bundles"] if b["name"] == "tiny")
        assert tiny["sound"]
        assert tiny["fingerprint"] == Bundle.open("tiny").fingerprint.hex()
        text = run("doctor").out.decode()
        assert re.search(rf"^auto takes +{record['auto']}$", text, re.MULTILINE)
        works = [b["name"] for b in record["backends"] if b["available"]]
        assert record["golden"] == [{"backend": name, "ok": True, "reason": ""} for name in works]
        assert "golden stream  onnxruntime-cpu: ok\n" in text
        assert text.endswith("all is well\n")
        assert run("doctor", "-q") == (0, b"", "")

    def test_tells_problems(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, bundle_copy: Path
    ) -> None:
        spoil(weights_of(bundle_copy, "decoder"))
        monkeypatch.setattr(bundles, "shipped_bundles", lambda: {"mine": bundle_copy})
        result = run("doctor")
        assert result.code == 4
        assert "mine (?): BROKEN" in result.out.decode()
        assert "bundle mine: " in result.out.decode()
        monkeypatch.setattr(bundles, "shipped_bundles", dict)
        assert "found none" in run("doctor", "--json").record["problems"][0]

    def test_wrong_tokens_are_a_problem(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, stream: bytes
    ) -> None:
        golden = bundles.golden_stream()
        wrong = dataclasses.replace(golden, data=stream)  # a sound one, but of other tokens
        monkeypatch.setattr(bundles, "golden_stream", lambda: wrong)
        result = run("doctor")
        assert result.code == 4
        text = result.out.decode()
        assert "golden stream  onnxruntime-cpu: FAILED\n" in text
        digest = golden.tokens_sha256[:16]
        assert f"golden stream on onnxruntime-cpu: expected tokens {digest}, got" in text
        assert [row["ok"] for row in run("doctor", "--json").record["golden"]] == [False]

    def test_goes_on_without_golden_stream_or_its_bundle(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        lost = dataclasses.replace(bundles.golden_stream(), bundle="lost")
        with monkeypatch.context() as patch:
            patch.setattr(bundles, "golden_stream", lambda: lost)
            record = run("doctor", "--json").record
        assert record["golden"] == []
        assert record["problems"][0].startswith("golden stream: expected a bundle directory")
        monkeypatch.setattr(bundles, "__file__", str(tmp_path / "__init__.py"))
        for contents in (None, "[]", "{", '{"data": 1}'):
            if contents is not None:
                (tmp_path / "golden.json").write_text(contents)
            result = run("doctor", "--json")
            assert result.code == 4
            assert any("expected a golden stream" in line for line in result.record["problems"])

    def test_goes_on_without_onnxruntime(self) -> None:
        code = (
            "import sys; sys.modules['onnxruntime'] = None; "
            "from percoedge.runtime.cli.main import main; sys.exit(main(['doctor', '--json']))"
        )
        result = fresh("-c", code)
        assert (result.returncode, result.stderr) == (4, b"")
        record = json.loads(result.stdout)
        assert (record["auto"], record["golden"]) == (None, [])
        assert record["bundles"][0]["sound"]
        assert any(line.startswith("auto: ") for line in record["problems"])

    def test_survives_a_missing_library(self) -> None:
        code = (
            "import sys; sys.modules['numpy'] = None; from percoedge.runtime.cli.main import main; "
            "sys.exit(main(['doctor']))"
        )
        result = fresh("-c", code)
        assert (result.returncode, result.stderr) == (4, b"")
        assert b"problem" in result.stdout
        lost = fresh("-c", code.replace("doctor", "info', 'a.pco"))
        assert lost.returncode == 4
        assert re.fullmatch(rb"percoedge: error: a library cannot be [^\n]+\n", lost.stderr)


class TestBundle:
    def test_verify(self, run: Run, bundle_copy: Path) -> None:
        assert run("bundle", "verify", "tiny").code == 0
        record = run("bundle", "verify", bundle_copy, "--json").record
        assert (record["sound"], record["bundle"]) == (True, "tiny")
        spoil(weights_of(bundle_copy, "flow"))
        assert_refused(run("bundle", "verify", bundle_copy), 4, "expected SHA-256")

    def test_zip(self, run: Run) -> None:
        result = run("bundle", "zip", "tiny", "--json")
        assert (result.code, result.record["output"]) == (0, "tiny.zip")
        assert Bundle.open("tiny.zip").fingerprint == Bundle.open("tiny").fingerprint
        assert_refused(run("bundle", "zip", "tiny"), 2, "is there already")
        assert_refused(run("bundle", "zip", "tiny.zip", "-o", "tiny.zip"), 2, "other than the")
        assert_refused(run("bundle", "zip", "tiny", "-o", "-"), 2, "to a file only")


class TestBadInput:
    """Exit code 3, and no output file."""

    @pytest.fixture(autouse=True)
    def no_output(self, tmp_path: Path) -> Any:
        yield
        left = [
            path.name for path in tmp_path.rglob("*") if "out" in path.name or "tmp" in path.name
        ]
        assert left == []

    @pytest.mark.parametrize(
        ("contents", "words"),
        [
            (b"", "got nothing"),
            (b"GIF89a and so on", "is no image"),
            (b"\x89PNG\r\n\x1a\n\0\0", "photo.png"),
        ],
    )
    def test_no_image(self, run: Run, photo: Path, contents: bytes, words: str) -> None:
        photo.write_bytes(contents)
        assert_refused(run("encode", photo, "-o", "out.pco"), 3, words)

    def test_truncated_image(self, run: Run, photo: Path) -> None:
        photo.write_bytes(photo.read_bytes()[:-40])
        assert_refused(run("encode", photo, "-o", "out.pco"), 3, "cut short")

    @pytest.mark.parametrize(
        ("command", "name"),
        [
            *((command, name) for command in ("encode", "decode", "info") for name in MISSING),
            *(("encode", "."), ("info", ".")),  # decode takes folders
        ],
    )
    def test_missing_input(self, run: Run, command: str, name: str) -> None:
        assert_refused(run(command, name), 3, f"cannot read {name}")

    def test_truncated_stream(self, run: Run, stream: bytes) -> None:
        for size in (0, 2, 8, 12, len(stream) - 1):
            result = run("decode", "-", "-o", "out.png", stdin=stream[:size])
            assert_refused(result, 3, "standard input: expected")

    def test_corrupted_stream(self, run: Run, pco: Path) -> None:
        spoil(pco)
        assert_refused(run("decode", pco, "-o", "out.png"), 3, "corrupted")

    def test_stream_of_another_bundle(self, run: Run) -> None:
        Path("a.pco").write_bytes(pack(Header(*SIZE), b"\1", b"else"))
        assert_refused(run("decode", "a.pco", "-o", "out.png"), 3, "--bundle")

    def test_too_many_pixels(self, run: Run, pco: Path) -> None:
        assert_refused(run("decode", pco, "-o", "out.png", "--max-pixels", 1999), 3, "--max-pixels")


class TestBrokenEngine:
    """Exit code 4."""

    @pytest.mark.parametrize("name", ["nowhere", "photo.png"])
    def test_no_bundle(self, run: Run, photo: Path, name: str) -> None:
        result = run("encode", photo, "-o", "out.pco", "--bundle", name)
        assert_refused(result, 4, "expected a bundle directory")
        assert not Path("out.pco").exists()

    def test_missing_and_altered_files(
        self, run: Run, photo: Path, pco: Path, bundle_copy: Path
    ) -> None:
        weights_of(bundle_copy, "encoder").unlink()
        result = run("encode", photo, "-o", "out.pco", "--bundle", bundle_copy)
        assert_refused(result, 4, "expected a file")
        spoil(weights_of(bundle_copy, "decoder"))
        result = run("decode", pco, "-o", "out.png", "--bundle", bundle_copy)
        assert_refused(result, 4, "the file was altered")
        assert not Path("out.pco").exists()
        assert not Path("out.png").exists()


class TestOutputs:
    """Refused before any work is done: the inputs below would fail, were they read."""

    def test_names_that_cannot_be_written(self, run: Run, tmp_path: Path) -> None:
        Path("bad.pco").write_bytes(b"no stream")
        assert_refused(run("decode", "bad.pco", "-o", "no/a.png"), 5, "no directory 'no'")
        Path("a.png").mkdir()
        assert_refused(run("decode", "bad.pco", "-o", "a.png"), 5, "got a directory")
        assert_refused(run("decode", "bad.pco", "-o", "a.gif"), 2, "image format of 'a.gif'")
        assert_refused(run("decode", "bad.pco", "--format", "gif"), 2, "choose PNG, JPEG or WEBP")
        assert_refused(run("encode", "bad.png", "-o", "a.jpg"), 2, "ends in .pco")

    @pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
    def test_full_disk(self, run: Run, photo: Path) -> None:
        assert_refused(run("encode", photo, "-o", "/dev/full"), 5, "No space left")

    def test_the_input_is_never_overwritten(self, run: Run) -> None:
        Path("bad.pco").write_bytes(b"no stream")
        Path("link").symlink_to("bad.pco")
        for name in ("bad.pco", "./bad.pco", "link"):
            result = run("decode", "bad.pco", "-o", name, "--format", "png")
            assert_refused(result, 2, "other than the input")

    def test_a_default_name_replaces_nothing(self, run: Run, photo: Path, stream: bytes) -> None:
        photo.with_suffix(".pco").write_bytes(stream)
        before = photo.read_bytes()
        assert_refused(run("decode", photo.with_suffix(".pco")), 2, "name the output with -o")
        assert photo.read_bytes() == before
        assert_refused(run("encode", photo), 2, "name the output with -o")

    def test_no_bytes_for_a_terminal(
        self, run: Run, photo: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert_refused(run("encode", photo, "-o", "-"), 2, "got a terminal")

    def test_reader_that_went_away(self, pco: Path) -> None:
        for arguments in (("info", str(pco)), ("--version",)):
            reader, writer = os.pipe()
            os.close(reader)
            result = fresh("-m", "percoedge", *arguments, stdout=writer)
            os.close(writer)
            assert result.returncode == 5
            assert re.fullmatch(rb"percoedge: error: cannot write [^\n]+\n", result.stderr)


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "COMMAND"),
            (("compress", "a"), "invalid choice"),
            (("encode",), "IN"),
            (("encode", "a.png", "--pass", "1"), "unrecognized arguments"),
            (("encode", "a.png", "--passes", "0"), "at least 1"),
            (("decode", "a.pco", "--steps", "four"), "invalid number"),
            (("bundle",), "ACTION"),
            (("encode", "a.png", "b.pco", "-o", "c.pco"), "got 'b.pco' and -o 'c.pco'"),
            (("decode", "a.pco", "-o", "c.png", "--steps", "1", "b.png"), "expected one output"),
            (("encode", "a.png", "b.png"), "ends in .pco"),  # encode *.png
            (("encode", "a.png", "b.heic"), "ends in .pco"),
            (("encode", "a.png", "b.pco", "c.pco"), "unrecognized arguments: c.pco"),
            (("encode", "a.png", "--wrong", "b.pco"), "unrecognized arguments: --wrong"),
            (("decode", "a.pco", "b.pco"), "image format of 'b.pco'"),  # decode *.pco
            (("info", "a.pco", "b.pco"), "unrecognized arguments: b.pco"),
            (("demo", "a.png", "b.png"), "unrecognized arguments: b.png"),
        ],
    )
    def test_arguments(self, run: Run, arguments: tuple[str, ...], words: str) -> None:
        assert_refused(run(*arguments), 2, words)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--schedule", "spiral"), "schedule"),
            (("--passes", "99"), "passes"),
            (("--seed", "-1"), "seed"),
            (("--caption", "a" * 1025), "caption"),
            (("--backend", "abacus"), "backend"),
        ],
    )
    def test_values(self, run: Run, photo: Path, arguments: tuple[str, ...], words: str) -> None:
        assert_refused(run("encode", photo, *arguments), 2, words)
        assert not photo.with_suffix(".pco").exists()

    @pytest.mark.parametrize("option", [("--steps", "256"), ("--guidance", "nan")])
    def test_values_of_decode(self, run: Run, pco: Path, option: tuple[str, str]) -> None:
        assert_refused(run("decode", pco, *option), 2, f"got {option[1]}")

    def test_guidance_of_a_bundle_without_it(self, run: Run, pco: Path) -> None:
        result = run("decode", pco, "--guidance", 2)
        assert_refused(result, 2, "'tiny' has no guided flow graph, got 2.0; leave it out")
        assert not pco.with_suffix(".png").exists()

    def test_version_and_help(self, run: Run) -> None:
        assert run("--version") == (0, f"percoedge {percoedge.__version__}\n".encode(), "")
        text = run("--help").out.decode()
        for code in (0, 2, 3, 4, 5):
            assert re.search(rf"^  {code}  ", text, re.MULTILINE)
        for command in ("encode", "decode", "info", "demo", "doctor"):
            assert f"    {command} " in text
            assert b"--json" in run(command, "--help").out
        schedules = " ".join(run("encode", "--help").out.decode().split())
        assert f"{', '.join(SCHEDULES[:-1])} or {SCHEDULES[-1]}" in schedules

    def test_version_loads_nothing(self) -> None:
        code = (
            "import sys; from percoedge.runtime.cli.main import main; main(['--version']); "
            "print(*sys.modules)"
        )
        loaded = set(fresh("-c", code).stdout.decode().split())
        assert not loaded & {"numpy", "PIL", "msgspec", "constriction", "percoedge.engines"}


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 4, "--low-memory"),
        (RuntimeError("two\nlines \x1b[0m"), 1, r"RuntimeError: two lines \x1b[0m; this is a bug"),
    ],
)
def test_the_unforeseen(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(info, "info", fail)
    monkeypatch.delenv("PERCOEDGE_DEBUG", raising=False)
    assert_refused(run("info", "a.pco"), code, words)
    monkeypatch.setenv("PERCOEDGE_DEBUG", "1")
    result = run("info", "a.pco")
    assert result.code == code
    assert result.err.startswith("Traceback")
    assert result.err.splitlines()[-1].startswith("percoedge: error: ")


def test_text_for_people() -> None:
    assert printable("a\tb\x7f\udc80é") == "a\\tb\\x7f\\udc80é"
    sizes = [size_text(size) for size in (1, 1023, 1024, 24 << 20, 3 << 40)]
    assert sizes == ["1 byte", "1023 bytes", "1.0 KiB", "24.0 MiB", "3072.0 GiB"]


def fresh(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    """Run a fresh interpreter that finds the package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    for name in ("PERCOEDGE_DEBUG", "PYTHONUNBUFFERED"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=60,
    )
