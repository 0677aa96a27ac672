"""What exactness costs: the float MIM of the same size, trained alike, beside the exact one.

    python -m percoedge.export.training.baseline tiny --photos DIR --validation DIR --out RUN

``--out`` is the finished run of ``percoedge.export.train``. The baseline has LayerNorm and GELU in
place of the exact model's RMS norm and ReLU, and as many steps as the exact model had in all. Both
code the validation photos with every schedule; the table goes to ``<out>/exactness.json``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec
import torch

from percoedge.bitstream.schedules import SCHEDULES, pass_count
from percoedge.export.config import load_config
from percoedge.export.models.mim import Mim
from percoedge.export.models.percov2.family import Family
from percoedge.export.training.data import Photos
from percoedge.export.training.stages import freeze, validation_images
from percoedge.export.training.stages_mim import family_tokens, fit_mim, schedule_bits
from percoedge.export.training.trainer import pick_device


def compare(config_name: str, photo_dir: Path, validation_dir: Path, out: Path, device: str) -> str:
    """Train the baseline if needed and write the table; returns it as JSON."""
    config = load_config(config_name)
    torch.manual_seed(config.seed)
    family = Family(config)
    family.load_state_dict(torch.load(out / "family.pt", map_location="cpu", weights_only=True))
    family.to(pick_device(device), memory_format=torch.channels_last).eval()
    freeze(family)
    family.mim.exact = True
    valid = validation_images(validation_dir, pick_device(device))
    tokens = family_tokens(family, config, Photos(photo_dir), valid)
    grids = [tokens.of(image)[0] for image in valid]
    baseline = Mim(config.mim, config.codec.codebook_size, classic=True).to(pick_device(device))
    baseline.start_from(family.quantizer.codebook)
    float_stage, exact_stage = config.train["mim"], config.train["mim_exact"]
    stage = msgspec.structs.replace(float_stage, steps=float_stage.steps + exact_stage.steps)
    fit_mim(baseline, "mim_classic", stage, tokens, out, config.seed)
    uniform = torch.tensor(float(config.codec.codebook_size)).log2().item()
    table = {"uniform": {"passes": 1, "bits_per_token": round(uniform, 4)}}
    for name in SCHEDULES[1:]:
        exact = schedule_bits(family.mim, grids, name)
        classic = schedule_bits(baseline, grids, name)
        table[name] = {
            "passes": pass_count(name),
            "bits_per_token": round(exact, 4),
            "float_bits_per_token": round(classic, 4),
            "exact_over_float": round(exact / classic, 4),
            "saved_against_uniform": round(1 - exact / uniform, 4),
        }
    text = json.dumps(table, indent=1)
    (out / "exactness.json").write_text(text + "\n")
    return text


def main() -> None:
    """Command line of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    print(compare(args.config, args.photos, args.validation, args.out, args.device))


if __name__ == "__main__":
    main()
