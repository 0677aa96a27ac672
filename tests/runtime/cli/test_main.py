"""percoedge.runtime.cli.main: every command, every exit code, one line for every failure."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import percoedge
from percoedge.bitstream.container import Header, pack
from percoedge.bitstream.schedules import SCHEDULES
from percoedge.runtime.cli.commands import info
from percoedge.runtime.cli.console import printable, size_text
from percoedge.runtime.cli.main import main
from tests.runtime.cli.command_line import (
    SIZE,
    Run,
    assert_refused,
    fresh,
    spoil,
    weights_of,
)

MISSING = ("no.png", "no/no.pco")


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
            (b"GIF89a and so on", "got GIF"),
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
            ("info", "."),  # encode and decode take folders
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

    @pytest.mark.parametrize("command", ["encode", "demo"])
    def test_too_many_pixels_to_encode(self, run: Run, photo: Path, command: str) -> None:
        output = "out.pco" if command == "encode" else "out.png"
        options = (photo, "-o", output, "--max-pixels")
        assert_refused(run(command, *options, 1999), 3, "--max-pixels")
        assert not Path(output).exists()
        assert run(command, *options, 2000).code == 0
        Path(output).unlink()


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
        Path("folder").mkdir()
        for arguments in (("decode", "bad.pco"), ("encode", "bad.png"), ("demo", "bad.png")):
            assert_refused(run(*arguments, "-o", "folder"), 5, "got a directory")
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

    @pytest.mark.parametrize("device", [None, "/dev/full"])
    def test_standard_output_that_is_closed_or_full(
        self,
        pco: Path,
        device: str | None,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if device is not None and not os.path.exists(device):
            pytest.skip(f"no {device}")

        def code_of(*arguments: str) -> int:
            with contextlib.ExitStack() as stack:
                stdout = device and stack.enter_context(open(device, "w", buffering=1))
                stack.enter_context(monkeypatch.context()).setattr(sys, "stdout", stdout)
                return main(arguments)

        stream = str(pco)
        for arguments in (("info", stream), ("info", stream, "--json"), ("decode", stream, "-")):
            assert code_of(*arguments) == 5
        assert code_of("--version") == code_of("encode", "--help") == 5
        words = "No space left" if device else "it is closed"
        assert [words in line for line in capsys.readouterr().err.splitlines()] == [True] * 5
        assert code_of("bundle", "verify", "tiny", "--quiet") == 0  # has nothing to say


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ((), "COMMAND"),
            (("compress", "a"), "invalid choice"),
            (("encode",), "IN"),
            (("encode", "a.png", "--pass", "1"), "unrecognized arguments"),
            (("encode", "a.png", "--passes", "0"), "at least 1"),
            (("encode", "a.png", "--bytes", "0"), "at least 1"),
            (("encode", "a.png", "--bytes", "90", "--passes", "2"), "not allowed with"),
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
            (("encode", "a.png", *["--caption"], *["word"] * 999), "word ...; see"),
            (("demo", "a.png", "b.png"), "unrecognized arguments: b.png"),
            (("bench", "tiny"), "arguments: tiny; a bundle is named by --bundle; see"),
            (("bench", "--stream", "2"), "is --streams meant?"),
            (("decode", "a.pco", "--step=2"), "is --steps meant?"),
            (("decode", "a.pco", "--bytes", "9"), "--bytes 9; see"),
            (("bench", "--reports"), "--reports; see"),
        ],
    )
    def test_arguments(self, run: Run, arguments: tuple[str, ...], words: str) -> None:
        assert_refused(run(*arguments), 2, words)

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("--schedule", "spiral"), "schedule"),
            (("--passes", "99"), "passes"),
            (("--bytes", "9"), "which the smallest stream of this image takes, got 9"),
            (("--seed", "-1"), "seed"),
            (("--caption", "a" * 1025), "caption"),
            (("--backend", "abacus"), "percoedge doctor"),
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

    def test_a_fleet_without_its_extra(self) -> None:
        code = (
            "import sys; sys.modules['ray'] = None; from percoedge.runtime.cli.main import main; "
            "sys.exit(main(['fleet', 'decode', 'in', '--out', 'out']))"
        )
        result = fresh("-c", code)
        assert result.returncode == 4
        assert b"pip install 'percoedge[fleet]'" in result.stderr

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
