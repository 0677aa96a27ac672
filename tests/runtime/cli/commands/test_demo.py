"""percoedge demo."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from percoedge import bundles
from percoedge.bundles import shipped_photo
from tests.runtime.cli.command_line import (
    Run,
    assert_refused,
    picture,
)


def test_measures_and_shows(run: Run, photo: Path) -> None:
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


def test_prints_for_people(run: Run, tmp_path: Path) -> None:
    Image.new("L", (5, 5), 90).save("dot.png")  # too small for MS-SSIM
    result = run("demo", "dot.png")
    assert result.code == 0
    for words in ("bpp", "PSNR", "MS-SSIM not defined", "load", "wrote    percoedge-demo.png"):
        assert words in result.out.decode()
    before = Path("percoedge-demo.png").stat()
    assert_refused(run("demo", "dot.png"), 2, "as it would be replaced; name the output with -o")
    assert Path("percoedge-demo.png").stat() == before
    assert run("demo", "dot.png", "-o", "percoedge-demo.png").code == 0  # it was named


def test_shipped_photo(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, photo: Path
) -> None:
    monkeypatch.setattr(bundles, "__file__", str(tmp_path / "__init__.py"))
    assert_refused(run("demo"), 3, "demo.jpg, found nothing")
    shutil.copy(photo, tmp_path / "demo.jpg")
    assert shipped_photo() == tmp_path / "demo.jpg"


def test_output_is_refused_first(run: Run, photo: Path) -> None:
    assert_refused(run("demo", photo, "-o", "both.gif"), 2, "image format of 'both.gif'")
    assert_refused(run("demo", photo, "-o", photo), 2, "other than the input")
