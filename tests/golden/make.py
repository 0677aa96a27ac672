"""Make the golden files from the demo photo: ``python tests/golden/make.py``.

A file is made once and then kept: a decoder must read it for ever. `vectors.json` holds for each
the options it was made with, the SHA-256 of the file and of its tokens (int32, little endian, row
by row), and mean colours of the decoded image on a 4x4 grid. Run it again when the bundle's
decoder changes: that writes new colours, and fails if a file reads differently. When another bundle
is shipped, whose fingerprint differs, ``--new-bundle`` makes all of them again.

The stream that ``percoedge doctor`` decodes, in bundles/, is written too: a copy of `demo.pco`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from percoedge import Codec
from percoedge.bitstream.schedules import SCHEDULES
from percoedge.bundles import shipped_photo, token_digest
from percoedge.runtime.images import read_image

HERE = Path(__file__).parent
SIZES = ((1, 1), (16, 16), (17, 33), (100, 37), (64, 200), (130, 130))
CAPTIONS = ("a cup of coffee on a wooden table", "Кофе ☕", "x" * 200)


def options() -> dict[str, dict[str, Any]]:
    """Name of each golden file -> size of the photo and the arguments of ``encode``."""
    table: dict[str, dict[str, Any]] = {"demo": {"size": None}}
    for width, height in SIZES:
        table[f"size-{width}x{height}"] = {"size": (width, height)}
    for schedule in SCHEDULES:
        table[f"schedule-{schedule}"] = {"size": (90, 70), "schedule": schedule}
        table[f"bare-{schedule}"] = {"size": (70, 90), "schedule": schedule, "bare": True}
    for passes in (1, 3, 7):
        table[f"passes-{passes}"] = {"size": (120, 80), "passes": passes}
    for number, caption in enumerate(CAPTIONS):
        table[f"caption-{number}"] = {"size": (48, 48), "caption": caption}
    table["seed"] = {"size": (48, 48), "seed": 0xFFFFFFFF}
    table["all-options"] = {
        "size": (75, 61),
        "schedule": "quincunx",
        "passes": 2,
        "seed": 7,
        "caption": "a spoon",
    }
    table["wide"] = {"size": (1100, 40)}  # beyond one tile of the entropy model and of the flow
    return table


def photo_of(size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """The demo photo, resized to (width, height)."""
    pixels = read_image(shipped_photo()).pixels
    if size is None:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize(tuple(size), Image.Resampling.BICUBIC))


def mean_colours(image: Image.Image) -> list[list[int]]:
    """Colours of the image averaged to 4x4, row by row."""
    small = image.resize((4, 4), Image.Resampling.BOX)
    return [[int(v) for v in colour] for colour in np.asarray(small).reshape(-1, 3)]


def golden_record(
    codec: Codec, name: str, made_with: dict[str, Any], again: bool
) -> dict[str, Any]:
    """Describe a golden file, which is made if it is not there, or in any case with ``again``."""
    arguments = dict(made_with)
    photo = photo_of(arguments.pop("size"))
    file = HERE / f"{name}.pco"
    if again or not file.exists():
        file.write_bytes(codec.encode(photo, **arguments))
    data = file.read_bytes()
    bare = bool(arguments.get("bare", False))
    return {
        **made_with,
        "size": [photo.shape[1], photo.shape[0]],
        "sha256": hashlib.sha256(data).hexdigest(),
        "tokens_sha256": token_digest(codec.decode_tokens(data, bare=bare)),
        "colours": mean_colours(codec.decode(data, bare=bare)),
    }


def main() -> None:
    """Write what is missing, the table, and the doctor's stream."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--new-bundle", action="store_true", help="make all files again")
    again = parser.parse_args().new_bundle
    path = HERE / "vectors.json"
    before = json.loads(path.read_text())["files"] if path.exists() and not again else {}
    with Codec.load("tiny") as codec:
        table = {name: golden_record(codec, name, made, again) for name, made in options().items()}
        document = {"fingerprint": codec.bundle.manifest.fingerprint, "files": table}
    for name, record in before.items():
        for key in ("sha256", "tokens_sha256"):
            if table[name][key] != record[key]:
                raise SystemExit(f"{name}: expected {key} {record[key]}, got {table[name][key]}")
    path.write_text(json.dumps(document, indent=1) + "\n")
    write_doctors(HERE.parents[1] / "bundles", document)


def write_doctors(folder: Path, document: dict[str, Any]) -> None:
    """Write what `percoedge.bundles.golden_stream` reads."""
    shutil.copy(HERE / "demo.pco", folder / "golden.pco")
    expected = {
        "bundle": "tiny",
        "fingerprint": document["fingerprint"],
        "tokens_sha256": document["files"]["demo"]["tokens_sha256"],
    }
    (folder / "golden.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
