"""Rate and distortion of a bundle on a folder of photos, through real files.

    python -m benchmarks.quality DIR [--steps 1,4] [--save NAME] [--images OUT]

Every photo is encoded to a file and decoded from it; tokens read back must be those encoded.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.environment import report
from percoedge import Codec
from percoedge.runtime.images import read_image
from percoedge.runtime.metrics import ms_ssim, psnr_db

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}


def measure(
    codec: Codec, photo: Path, steps: list[int], images: Path | None
) -> tuple[dict[str, Any], bool]:
    """One row of the table, and whether the tokens survived the file."""
    pixels = read_image(photo).pixels
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "photo.pco")
        file.write_bytes(codec.encode(pixels))
        data = file.read_bytes()
    same = np.array_equal(codec.decode_tokens(data), codec.tokens(pixels))
    row: dict[str, Any] = {
        "photo": photo.name,
        "bytes": len(data),
        "bpp": 8 * len(data) / (pixels.shape[0] * pixels.shape[1]),
    }
    decoded = [codec.decode(data, steps=count) for count in steps]
    for count, image in zip(steps, decoded, strict=True):
        output = np.asarray(image)
        row[f"psnr_db_{count}"] = psnr_db(pixels, output)
        row[f"ms_ssim_{count}"] = ms_ssim(pixels, output)
    if images is not None:
        images.mkdir(parents=True, exist_ok=True)
        parts = [pixels, *(np.asarray(image) for image in decoded)]
        Image.fromarray(np.concatenate(parts, axis=1)).save(images / f"{photo.stem}.png")
    return row, same


def main() -> None:
    """Command line of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--steps", default="1,4", help="step counts, separated by commas")
    parser.add_argument("--save", help="also write results/NAME.json")
    parser.add_argument("--images", type=Path, help="write original | decoded side by side here")
    args = parser.parse_args()
    steps = [int(count) for count in args.steps.split(",")]
    photos = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not photos:
        parser.error(f"no photos in {args.folder}")
    with Codec.load(args.bundle) as codec:
        measured = [measure(codec, photo, steps, args.images) for photo in photos]
        fingerprint = codec.bundle.fingerprint.hex()
    rows = [row for row, _ in measured]
    columns = [name for name in rows[0] if name != "photo"]
    report(
        args.save or "quality",
        {
            "bundle": args.bundle,
            "fingerprint": fingerprint,
            "photos": len(rows),
            "tokens_survived": sum(same for _, same in measured),
            "mean": {name: round(float(np.mean([r[name] for r in rows])), 4) for name in columns},
            "rows": [
                {k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}
                for row in rows
            ],
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
