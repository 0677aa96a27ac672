"""A real photo for the measures: statistics of textures mean little on made-up ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import percoedge.bundles


@pytest.fixture(scope="session")
def photo() -> NDArray[np.uint8]:
    """The demo's photo (400,600,3)."""
    with Image.open(Path(percoedge.bundles.__file__).parent / "demo.jpg") as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def folder(tmp_path: Path, photo: Any) -> Path:
    """A folder of two photos of 128x128 and a file that is none."""
    root = tmp_path / "photos"
    root.mkdir()
    for index in range(2):
        crop = photo[100 : 100 + 128, 200 * index : 200 * index + 128]
        Image.fromarray(crop).save(root / f"{index}.png")
    (root / "notes.txt").write_text("no photo")
    return root
