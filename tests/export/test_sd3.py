"""The full-size family: its shape, and a cut of two layers through the same export path."""

from __future__ import annotations

import pytest
import torch
from onnx import TensorProto, load_from_string

from percoedge.engines.backends import select
from percoedge.engines.bundle import Bundle
from percoedge.export.bundle import export_bundle, rounded_family
from percoedge.export.config import Config, load_config
from percoedge.export.family import Family
from percoedge.export.parity import check_parity

CUT = {
    "vae": {"block_out_channels": [32, 32, 32, 32], "layers_per_block": 1},
    "hyper": {"width": 32, "features": 32},
    "flow": {
        "condition_channels": 32,
        "layers": 2,
        "heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "text_tokens": 6,
        "pos_embed_max_size": 32,
    },
    "mim": {"width": 32, "hidden": 64, "layers": 1},
}


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_full_family_has_the_published_sizes() -> None:
    with torch.device("meta"):
        family = Family(load_config("sd3-medium"))
    # SD3-medium's transformer with 16 + 320 channels into its 2x2 patches of 1536
    assert parameters(family.flow) == 2_028_328_000 + 320 * 4 * 1536
    assert len(family.flow.transformer.transformer_blocks) == 24
    assert family.flow.transformer.pos_embed.proj.in_channels == 336
    assert 4e6 < parameters(family.hyper) < 6e6  # PerCo (SD): 4.08 to 5.87 million
    assert parameters(family.vae) == 83_819_683


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Config, Bundle]:
    config = load_config("sd3-medium", **CUT)
    torch.manual_seed(0)
    family = Family(config).eval()
    out = tmp_path_factory.mktemp("sd3")
    licence = "random weights"
    return family, config, export_bundle(family, config, out, name="cut", licence=licence)


def test_a_cut_exports_and_agrees_with_pytorch(cut: tuple[Family, Config, Bundle]) -> None:
    family, config, bundle = cut
    rows = check_parity(rounded_family(family), config, bundle)
    assert [row for row in rows if not row.ok] == []


def test_the_flow_takes_text_and_its_guided_form_an_empty_caption_too(
    cut: tuple[Family, Config, Bundle],
) -> None:
    bundle = cut[2]
    names = [spec.name for spec in bundle.read("flow", "fp16").inputs]
    assert names == ["x", "tokens", "t", "dt", "text", "pooled"]
    guided = [spec.name for spec in bundle.read("flow_guided", "fp16").inputs]
    assert guided[-2:] == ["null_text", "null_pooled"]
    model = load_from_string(bundle.read("flow", "fp16").model)
    assert any(t.data_type == TensorProto.FLOAT16 for t in model.graph.initializer)
    with select("onnxruntime-cpu").load(bundle.read("flow", "fp32")) as engine:
        assert engine.outputs[0].name == "x_next"
