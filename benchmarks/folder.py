"""Images a second of a folder, against the same files one by one, in turns.

    python -m benchmarks.folder DIR [--count 24] [--rounds 5] [--jobs 1,3] [--save NAME]

The photos of DIR are encoded first, cut to squares of one size. "one by one": one process that
loads a codec and then decodes file after file and writes a PNG, with all threads on one image.
"folder": ``percoedge decode DIR --out DIR`` in its default division, and in those of ``--jobs``.
Both load their graphs in every round. With ``--processes``, "process each" is added: ``percoedge
decode`` started anew for every file, as a shell's loop does. A minute by default, where one image
of 512x512 takes 160 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from benchmarks.environment import report
from benchmarks.timing import interleaved, summary
from percoedge import Codec
from percoedge.runtime.cli.main import main as percoedge
from percoedge.runtime.images import write_image

_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".avif"}


def write_streams(photos: list[Path], size: int, bundle: str, target: Path) -> None:
    """One stream for each photo."""
    with Codec.load(bundle) as codec:
        for index, photo in enumerate(photos):
            with Image.open(photo) as image:
                square = ImageOps.fit(image.convert("RGB"), (size, size))
            (target / f"{index:03}.pco").write_bytes(codec.encode(square))


def run(*arguments: str) -> None:
    """A command that must succeed."""
    if percoedge([*arguments, "-q"]):
        raise SystemExit(f"percoedge {' '.join(arguments)} failed")


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=24, help="of photos")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--jobs", default="", help="divisions besides the default one: 1,3")
    parser.add_argument("--processes", action="store_true", help="also a process for every file")
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    photos = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    photos = photos[: args.count]
    if not photos:
        parser.error(f"no photos in {args.folder}")
    with tempfile.TemporaryDirectory() as place:
        source, target = Path(place, "in"), Path(place, "out")
        source.mkdir()
        target.mkdir()
        write_streams(photos, args.size, args.bundle, source)
        streams = sorted(source.iterdir())
        common = ("--bundle", args.bundle, "--steps", str(args.steps))

        def one_by_one() -> None:
            with Codec.load(args.bundle) as codec:
                for stream in streams:
                    image = codec.decode(stream.read_bytes(), steps=args.steps)
                    write_image(np.asarray(image), target / f"{stream.stem}.png")

        def process_each() -> None:
            for stream in streams:
                output = str(target / f"{stream.stem}.png")
                command = [sys.executable, "-m", "percoedge", "decode", str(stream), "-o", output]
                subprocess.run([*command, *common, "-q"], check=True)

        def folder(*jobs: str) -> Callable[[], None]:
            return lambda: run(
                "decode", str(source), "--out", str(target), "--force", *common, *jobs
            )

        contenders: dict[str, Callable[[], object]] = {
            "one by one": one_by_one,
            "folder": folder(),
        }
        for jobs in filter(None, args.jobs.split(",")):
            contenders[f"folder, {jobs} jobs"] = folder("--jobs", jobs)
        if args.processes:
            contenders["process each"] = process_each
        times = interleaved(contenders, args.rounds)
    per_image = {name: [t / len(photos) for t in values] for name, values in times.items()}
    ratios = {
        name: [a / b for a, b in zip(per_image["one by one"], values, strict=True)]
        for name, values in per_image.items()
    }
    report(
        args.save or "folder",
        {
            **{"photos": len(photos), "size": args.size, "steps": args.steps},
            "rounds": args.rounds,
            "per_image": {name: summary(values) for name, values in per_image.items()},
            "times_as_fast_as_one_by_one": {
                name: round(statistics.median(values), 3) for name, values in ratios.items()
            },
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
