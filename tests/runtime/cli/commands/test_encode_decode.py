"""percoedge encode and decode of single files."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from percoedge.bitstream.container import Header, unpack
from tests.runtime.cli.command_line import (
    SIZE,
    Run,
    assert_refused,
)


def test_names_are_made_from_the_input(run: Run, photo: Path) -> None:
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
    run: Run, photo: Path, pco: Path, stream: bytes
) -> None:
    encoded = run("encode", "-", "--caption", "a hill", "--json", stdin=photo.read_bytes())
    assert (encoded.code, encoded.out) == (0, stream)
    record = json.loads(encoded.err)
    assert (record["output"], record["bytes"], record["width"]) == ("-", len(stream), 50)
    decoded = run("decode", "-", "-o", "-", "-q", stdin=stream)
    assert (decoded.code, decoded.err) == (0, "")
    assert run("decode", pco, "-o", "out.png").code == 0
    assert decoded.out == Path("out.png").read_bytes()


def test_output_behind_the_input(run: Run, photo: Path, stream: bytes) -> None:
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


def test_options_reach_the_codec(run: Run, photo: Path) -> None:
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


def test_the_most_passes_that_fit_are_sent(run: Run, photo: Path) -> None:
    whole = run("encode", photo, "-o", "whole.pco", "--json").record
    assert whole["passes_sent"] == whole["passes_total"] == 8
    limit = whole["bytes"] - 1
    part = run("encode", photo, "-o", "part.pco", "--bytes", limit, "--json").record
    assert part["bytes"] <= limit
    assert unpack(Path("part.pco").read_bytes()).header.passes_sent == part["passes_sent"] < 8
    line = run("encode", photo, "-o", "part.pco", "--bytes", limit).out.decode()
    assert f", {part['passes_sent']} of 8 passes, " in line


def test_notes_go_to_stderr(run: Run, tmp_path: Path) -> None:
    Image.new("RGBA", SIZE, (1, 2, 3, 4)).save("glass.png")
    result = run("encode", "glass.png", "--json")
    note = "its transparent parts were laid on white"
    assert (result.code, result.err) == (0, f"percoedge: note: glass.png: {note}\n")
    assert result.record["notes"] == [note]
    quiet = run("encode", "glass.png", "-o", "b.pco", "-q")
    assert quiet == (0, b"", "")


def test_a_cut_stream_is_decoded_on_demand(run: Run, stream: bytes) -> None:
    Path("cut.pco").write_bytes(stream[:-3])
    assert_refused(run("decode", "cut.pco"), 3, "cut.pco: expected the checksum")
    assert not Path("cut.png").exists()
    assert run("decode", "cut.pco", "--cut").code == 0
    assert Path("cut.png").exists()
