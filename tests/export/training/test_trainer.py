"""The training loop: resumable to the bit, averaged weights, curves on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from percoedge.export.config import StageConfig, load_config
from percoedge.export.training.data import Crops, Photos, image_tensor
from percoedge.export.training.trainer import Figures, Trainer, learning_rate

STAGE = StageConfig(steps=20, batch=4, crop=8, lr=1e-2, warmup=5, ema=0.9)


def crops(folder: Path) -> Crops:
    """Crops of 8x8 of two photos that are drawn into the folder."""
    photos = folder / "photos"
    photos.mkdir(exist_ok=True)
    rng = np.random.default_rng(1)
    for number in range(2):
        pixels = rng.integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(photos / f"{number}.png")
    return Crops(Photos(photos), STAGE.batch, STAGE.crop, seed=3)


def trained(out: Path, stop_after: int | None = None) -> nn.Linear:
    """Fit a line; ``stop_after`` raises in that step, as an interruption would."""
    torch.manual_seed(0)
    module = nn.Linear(1, 1)
    trainer = Trainer("line", module, STAGE, out, seed=3, save_every=5, log_every=5)

    def step(index: int, images: Tensor, rng: np.random.Generator) -> tuple[Tensor, Figures]:
        if index == stop_after:
            raise KeyboardInterrupt
        x = images[:, 0, 0, :1] + torch.from_numpy(rng.standard_normal((4, 1))).float()
        loss = (module(x) - 2 * x - 1).square().mean()
        return loss, {"noise": torch.rand(())}

    if not trainer.finished():
        trainer.run(step, crops(out), lambda: {"score": 1.0})
    return module


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    expected = trained(whole)
    with pytest.raises(KeyboardInterrupt):
        trained(parts, stop_after=12)
    resumed = trained(parts)
    torch.testing.assert_close(resumed.weight, expected.weight, atol=0, rtol=0)
    torch.testing.assert_close(resumed.bias, expected.bias, atol=0, rtol=0)


def test_a_finished_stage_is_not_trained_again(tmp_path: Path) -> None:
    first = trained(tmp_path)
    again = trained(tmp_path, stop_after=0)
    torch.testing.assert_close(again.weight, first.weight)


def test_the_curve_ends_with_the_validation(tmp_path: Path) -> None:
    trained(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "line.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 20]
    assert lines[-1]["validation"] == {"score": 1.0}
    assert lines[3]["loss"] < lines[0]["loss"]


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    module = nn.Linear(1, 1)
    before = module.weight.detach().clone()
    trainer = Trainer("nan", module, STAGE, tmp_path, seed=0)
    trainer.run(lambda *_: (module.weight.sum() * float("nan"), {}), crops(tmp_path))
    torch.testing.assert_close(module.weight, before)


def test_the_rate_warms_up_and_decays() -> None:
    rates = [learning_rate(STAGE, step) for step in range(20)]
    assert rates[0] == pytest.approx(STAGE.lr / 5)
    assert max(rates) == pytest.approx(STAGE.lr)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] < 0.1 * STAGE.lr


def test_photos_are_cropped_reproducibly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.PNG")
    (tmp_path / "._0.PNG").write_bytes(b"what macOS keeps of another file system's file")
    photos = Photos(tmp_path)
    drawn = Crops(photos, 4, 16, seed=5)
    cpu = torch.device("cpu")
    first, second = drawn.batches(range(2), cpu)
    (again,) = drawn.batches(range(1, 2), cpu)
    assert first.shape == (4, 3, 16, 16)
    assert first.min() >= -1 and first.max() <= 1
    torch.testing.assert_close(second, again, atol=0, rtol=0)
    assert not torch.equal(first, second)
    # whoever draws them
    loader = torch.utils.data.DataLoader(drawn, None, sampler=range(1, 2), num_workers=1)
    torch.testing.assert_close(image_tensor(next(iter(loader))), again, atol=0, rtol=0)
    drawn.rank = 1
    (other,) = drawn.batches(range(1), cpu)
    assert not torch.equal(first, other)


def test_a_folder_without_photos_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected photos in"):
        Photos(tmp_path)


def test_a_photo_smaller_than_the_crops_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (300, 255)).save(tmp_path / "small.png")
    photos = Photos(tmp_path)
    photos.check_sides(255)
    with pytest.raises(ValueError, match=r"at least 256 pixels.*got small.png of 300x255"):
        photos.check_sides(256)


def test_made_up_crops_take_their_share(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (90, 120, 150)).save(tmp_path / "plain.png")
    photos = Photos(tmp_path)
    plain = photos.crops(np.random.default_rng(0), 1, 32)
    drawn = photos.crops(np.random.default_rng(0), 200, 32, synthetic_share=0.3)
    made_up = sum(not np.array_equal(crop, plain[0]) for crop in drawn)
    assert 30 < made_up < 90


def test_a_recipe_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    text = (Path(load_config.__code__.co_filename).parent / "configs" / "tiny.toml").read_text()
    path = tmp_path / "wrong.toml"
    path.write_text(text + "\n[train.more]\nstepz = 1\n")
    with pytest.raises(ValueError, match="stepz|steps"):
        load_config(path)
