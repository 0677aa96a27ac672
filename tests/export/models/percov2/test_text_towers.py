"""The towers' graphs beside those that Optimum exports of the same weights.

Optimum's exporter needs transformers below 4.58: where that is not installed this is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from percoedge.export.models.percov2.text import ClipGraph, T5Graph, build_tower

optimum = pytest.importorskip(
    "optimum.exporters.onnx",
    reason="optimum-onnx with transformers below 4.58",
    exc_type=ImportError,
)

_CLIP = {
    "vocab_size": 1000,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
_TOWERS: dict[str, dict[str, Any]] = {
    "clip_l": {**_CLIP, "hidden_size": 64, "projection_dim": 64, "hidden_act": "quick_gelu"},
    "clip_g": {**_CLIP, "hidden_size": 80, "projection_dim": 80, "hidden_act": "gelu"},
    "t5": {
        "vocab_size": 1000,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 3,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", _TOWERS)
def test_a_tower_computes_what_optimum_exports(name: str, tmp_path: Path) -> None:
    from optimum.exporters.onnx import model_configs

    torch.manual_seed(0)
    tower = build_tower(name, _TOWERS[name]).eval()
    ids = np.random.default_rng(0).integers(3, 999, (2, 77))
    ids[:, -1] = 2
    graph = T5Graph(tower) if name == "t5" else ClipGraph(tower)
    with torch.no_grad():
        ours = graph(torch.from_numpy(ids.astype(np.int32)))

    tower.config.output_hidden_states = name != "t5"
    kind = "T5EncoderOnnxConfig" if name == "t5" else "CLIPTextWithProjectionOnnxConfig"
    described = getattr(model_configs, kind)(tower.config, task="feature-extraction")
    optimum.export(tower, described, tmp_path / "tower.onnx", opset=18)
    session = onnxruntime.InferenceSession(
        tmp_path / "tower.onnx", providers=["CPUExecutionProvider"]
    )
    names = ["last_hidden_state"] if name == "t5" else ["hidden_states.2", "text_embeds"]
    theirs = session.run(names, {"input_ids": ids})
    for a, b in zip(ours if isinstance(ours, tuple) else (ours,), theirs, strict=True):
        np.testing.assert_allclose(a.numpy(), b, atol=1e-4)
