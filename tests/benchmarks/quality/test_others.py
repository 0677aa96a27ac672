"""Outputs of other codecs: the images and bytes of each photo, or what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality.others import TABLE, Other
from percoedge.errors import InputError

PHOTOS = [Path("a.jpg"), Path("b.c.png")]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    Image.new("L", (20, 10), 9).save(tmp_path / "b.c.webp", lossless=True)
    (tmp_path / TABLE).write_text("file,bytes\na.png,700\nb.c.webp,81\nspare.png,5\n")
    return tmp_path


def test_images_and_bytes_of_photos(outputs: Path) -> None:
    other = Other("VTM", outputs, PHOTOS)
    pixels, size_bytes = other.output("a.jpg", np.zeros((30, 40, 3), np.uint8))
    assert (pixels.shape, size_bytes) == ((30, 40, 3), 700)
    assert (pixels == (255, 0, 0)).all()
    assert other.output("b.c.png", np.zeros((10, 20, 3), np.uint8))[1] == 81


def test_an_image_of_another_size_is_refused(outputs: Path) -> None:
    with pytest.raises(InputError, match="expected 41x30 px, as a.jpg has, got 40x30 in .*a.png"):
        Other("VTM", outputs, PHOTOS).output("a.jpg", np.zeros((30, 41, 3), np.uint8))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,bytes\na.png,700\n", "a row for b.c.webp"),
        ("file,size\na.png,700\n", "the columns file and bytes"),
        ("file,bytes\na.png,0\n", "1 or more.* in line 2"),
        ("file,bytes\na.png,\n", "1 or more"),
        ("file,bytes\na.png,7.5\n", "1 or more"),
        ("file,bytes\na.png\n", "1 or more"),
        ("file,bytes\na.png,7\na.png,8\n", "one row for a.png"),
        (None, "cannot read .*bytes.csv"),
    ],
)
def test_wrong_tables_are_refused(outputs: Path, table: str | None, words: str) -> None:
    (outputs / TABLE).unlink()
    if table is not None:
        (outputs / TABLE).write_text(table)
    with pytest.raises(InputError, match=words):
        Other("VTM", outputs, PHOTOS)


def test_one_image_for_each_photo(outputs: Path) -> None:
    with pytest.raises(InputError, match=r"expected one image d.png .* got none"):
        Other("VTM", outputs, [*PHOTOS, Path("d.png")])
    (outputs / "a.jpg").touch()
    with pytest.raises(InputError, match=r"expected one image a.png .* got a.jpg, a.png"):
        Other("VTM", outputs, PHOTOS)
