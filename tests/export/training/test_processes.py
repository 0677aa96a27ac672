"""Training in several processes gives the steps that one process would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from percoedge.errors import UsageError
from percoedge.export.config import StageConfig
from percoedge.export.training.trainer import share_of

# Each process takes its part of batches that do not depend on the number of processes.
SCRIPT = """
import sys
from pathlib import Path
import torch
from percoedge.export.config import HyperConfig, StageConfig
from percoedge.export.models.percov2.hyper import VectorQuantizer
from percoedge.export.training.data import Crops, Photos
from percoedge.export.training.trainer import Trainer, joined_processes, place_among_processes

out = Path(sys.argv[1])
torch.set_num_threads(1)
with joined_processes():
    rank, count = place_among_processes()
    torch.manual_seed(rank)  # parameters must come from the first process
    module = torch.nn.ModuleDict({"line": torch.nn.Conv2d(3, 6, 1)})
    if rank == 0:
        torch.manual_seed(0)
        module["line"].reset_parameters()
    module["codes"] = VectorQuantizer(6, 4, 8, 2)
    module["codes"].spread = torch.nn.Identity()
    module["codes"].usage += 1
    stage = StageConfig(steps=6, batch=4, crop=8, lr=1e-2, warmup=2, ema=0.5)
    trainer = Trainer("toy", module, stage, out, seed=3, log_every=2)

    crops = Crops(Photos(out.parent / "photos"), 1, 8, seed=0)

    def step(index, drawn, rng):
        images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(index))
        mine = images[rank :: count]
        z, _ = module["codes"](module["line"](mine))
        return (z - mine[:, :2]).square().mean(), {}

    trainer.run(step, crops, lambda: {})
    torch.save(module.state_dict(), out / f"{count}-{rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path: Path) -> None:
    script = tmp_path / "toy.py"
    script.write_text(SCRIPT)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "black.png")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    alone, together = tmp_path / "alone", tmp_path / "together"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for folder, options in ((alone, []), (together, launcher)):
        folder.mkdir()
        command = [sys.executable, *options, str(script), str(folder)]
        run = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert run.returncode == 0, run.stderr
    one, *two = (
        torch.load(path, weights_only=True)
        for path in (alone / "1-0.pt", together / "2-0.pt", together / "2-1.pt")
    )
    for key, value in one.items():
        torch.testing.assert_close(two[0][key], value, atol=1e-5, rtol=1e-4, msg=key)
        torch.testing.assert_close(two[1][key], two[0][key], atol=0, rtol=0, msg=key)
    # the first process alone writes the curve
    assert len((together / "toy.jsonl").read_text().splitlines()) == 4


def test_a_batch_is_shared_evenly_or_refused() -> None:
    stage = StageConfig(steps=1, batch=6, crop=8, lr=1e-2, warmup=1, pixel_batch=2)
    assert share_of(stage, 1) == stage
    assert share_of(stage, 3).batch == 2
    assert share_of(stage, 3).pixel_batch == 1
    with pytest.raises(UsageError, match="expected batches that 4 processes share evenly, got one"):
        share_of(stage, 4)
