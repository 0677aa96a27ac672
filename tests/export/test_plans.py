"""From PyTorch to plans: a cut of two layers of the full-size family, exported and then built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from percoedge.engines.tiling import TILING
from percoedge.export.assemble import random_family
from percoedge.export.bundle import export_bundle
from percoedge.export.config import load_config
from percoedge.runtime.cli.main import main

TOWER = {
    "vocab_size": 300,
    "bos_token_id": 298,
    "eos_token_id": 299,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "projection_dim": 8,
}
CUT = {
    "vae": {"block_out_channels": [16, 16, 16, 16], "layers_per_block": 1},
    "hyper": {"width": 16, "features": 16},
    "flow": {
        "condition_channels": 16,
        "layers": 2,
        "heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "pos_embed_max_size": 32,
    },
    "mim": {"width": 16, "hidden": 16, "layers": 1},
    "text": {"clip_l": TOWER, "clip_g": TOWER},
}


@pytest.mark.slow
def test_a_cut_of_the_full_family_builds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    assembly = random_family(load_config("sd3-medium", **CUT))
    bundle = export_bundle(
        assembly.family,
        assembly.config,
        tmp_path / "cut",
        name="cut",
        licence="random weights",
        tokenizers=assembly.tokenizers,
        variants=("fp16",),
    )
    arguments = ["build", str(bundle.path), "--backend", "tensorrt-rtx", "--sm", "86,89,120"]
    assert main([*arguments, "--cache", str(tmp_path / "plans"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["graphs"]
    assert [row["graph"] for row in rows] == [*bundle.kinds, *TILING]
    assert {"encoder", "entropy", "flow", "flow_guided", "decoder"} <= set(bundle.kinds)
