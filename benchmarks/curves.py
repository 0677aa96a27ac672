"""Plot the training curves of a run: ``python -m benchmarks.curves DIR`` writes DIR/curves.png."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from matplotlib import pyplot as plt

_PICTURES = ("vae", "codec", "codec_wide", "joint", "joint_more", "refine", "refine_more")
STAGES = (*_PICTURES, "mim", "mim_exact", "mim_classic")


def main() -> None:
    """One panel per stage: the loss, and the figures logged beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    stages = [stage for stage in STAGES if (folder / f"{stage}.jsonl").exists()]
    figure, panels = plt.subplots(1, len(stages), figsize=(4 * len(stages), 3.2), squeeze=False)
    for stage, panel in zip(stages, panels[0], strict=True):
        lines = [json.loads(line) for line in (folder / f"{stage}.jsonl").open()]
        curve = [line for line in lines if "loss" in line]
        steps = [line["step"] for line in curve]
        panel.plot(steps, [line["loss"] for line in curve], color="tab:blue", label="loss")
        panel.set_title(stage)
        panel.set_xlabel("step")
        panel.set_yscale("log")
        if "psnr_db" in curve[0]:
            right = panel.twinx()
            right.plot(steps, [line["psnr_db"] for line in curve], color="tab:orange")
            if "few_psnr_db" in curve[0]:
                few = [line["few_psnr_db"] for line in curve]
                right.plot(steps, few, color="tab:orange", linestyle=":")
            right.set_ylabel("PSNR of crops, dB", color="tab:orange")
        panel.set_ylabel("loss", color="tab:blue")
    figure.tight_layout()
    figure.savefig(folder / "curves.png", dpi=80)


if __name__ == "__main__":
    main()
