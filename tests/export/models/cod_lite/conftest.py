"""Checkpoints of CoD-Lite with random weights, in the layout that its authors publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from percoedge.export.models.checkpoints import without_weights
from percoedge.export.models.cod_lite.config import Config
from percoedge.export.models.cod_lite.network import Network

YAML = """\
model:
  latent: false
  net:
    class_path: finetuned_one_step_codec.main_stage1.FinetunedOneStepCoD
    init_args:
      pred: x
      in_channels: 3
      patch_size: 16
      hidden_size_x: {pixel_width}
      hidden_size: {width}
      num_blocks: {all_blocks}
      num_cond_blocks: {blocks}
      light: true
      fix_encoder: true
      net_ckpt_path: null
      pretrain_prefix: net.
      ds: {stride}
      codebook_bits: {bits}
      up2x: true
"""


def random_state(config: Config, seed: int = 0) -> dict[str, Tensor]:
    """Tensors of a network, by name: activations keep about one size, norms are near to plain."""
    with without_weights():
        expected = Network(config).state_dict()
    rng = np.random.Generator(np.random.Philox(key=seed))
    state = {}
    for name, tensor in expected.items():
        fresh = rng.standard_normal(tensor.shape, np.float32)
        fresh *= 0.1 if tensor.ndim < 2 else float(np.prod(tensor.shape[1:])) ** -0.5
        if ("norm" in name or "in_ln" in name) and name.endswith("weight"):
            fresh += 1
        state[name] = torch.from_numpy(fresh)
    return state


def yaml_of(config: Config, **changes: Any) -> str:
    """The YAML file beside a checkpoint."""
    values = {**vars(config), "all_blocks": config.blocks + config.pixel_blocks, **changes}
    return YAML.format(**values)


@pytest.fixture(scope="session")
def narrow() -> Callable[..., Config]:
    """Sizes that a test can afford; the encoder's are published in one width only."""

    def make(stride: int, bits: int, **changes: int) -> Config:
        sizes = {"width": 32, "blocks": 1, "pixel_blocks": 1, "encoder_width": 32, **changes}
        return Config(stride, bits, **sizes)

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors as a checkpoint: ``container`` "state_dict", "module" or none."""

    def make(tensors: Any, container: str | None = "state_dict", prefix: str = "net.") -> Path:
        named = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
        path = tmp_path / "CoD_Lite_bpp_0_0312.pt"
        torch.save(named if container is None else {container: named, "step": 3}, path)
        return path

    return make


@pytest.fixture(scope="session")
def fakes() -> Any:
    """What test modules, which import nothing from one another, make checkpoints with."""
    return SimpleNamespace(random_state=random_state, yaml_of=yaml_of)
