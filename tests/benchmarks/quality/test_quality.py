"""The evaluation command on two small photos with the shipped bundle."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.quality import __main__ as quality
from benchmarks.quality.learned import Learned
from benchmarks.quality.scores import Originals, Scores, Setting, labels, table

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
    assert full["frechet"] > 0
    assert full["energy_5"] > full["energy_1"] >= 0
    assert full["lpips"] == "missing"


def test_files_that_are_asked_for(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quality, "RESULTS", tmp_path)
    monkeypatch.setattr("benchmarks.environment.RESULTS", tmp_path)
    sheet, images = tmp_path / "sheet.png", tmp_path / "images"
    quality.main(
        [
            *(str(folder), *QUICK, "--rivals", "--save", "trial"),
            *("--sheet", str(sheet), "--images", str(images)),
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
    assert Image.open(sheet).size[0] > 5 * 128


def test_plots(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the extra [bench]")
    rate, plane = tmp_path / "rate.png", tmp_path / "plane.png"
    quality.main(
        [
            *(str(folder), *QUICK, "--limit", "1", "--passes", "4,8"),
            *("--plot", str(rate), "--plane", str(plane)),
        ]
    )
    for path in (rate, plane):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("guidances", [(1.0,), (1.0, 2.0)])
def test_the_plane_has_a_line_for_each_guidance(
    guidances: tuple[float, ...], photo: Any, tmp_path: Path
) -> None:
    plots = pytest.importorskip("benchmarks.quality.plots", reason="plots need the extra [bench]")
    originals = Originals(Learned(wanted=False))
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
    assert lines[-1] == "LPIPS, DISTS, CLIP score, FID, KID: missing."
