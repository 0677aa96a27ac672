"""A family of a few thousand weights: the tiny one with everything narrowed, and guided."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="without the exporter: pip install '.[export]'")

from percoedge.export.config import Config, load_config  # noqa: E402
from percoedge.export.models.percov2.family import Family  # noqa: E402

MICRO: dict[str, dict[str, Any]] = {
    "codec": {"codebook_size": 32, "latent_channels": 4},
    "vae": {
        "encoder_widths": [8, 8, 16],
        "encoder_blocks": [0, 1, 1],
        "decoder_widths": [16, 8, 8],
        "decoder_blocks": [1, 1, 0],
    },
    "hyper": {"width": 16, "features": 16, "code_dim": 4},
    "flow": {"condition_channels": 4, "layers": 1, "heads": 2, "head_dim": 8, "guided": True},
    "mim": {"width": 16, "hidden": 32, "layers": 2, "kernel": 3},
}


def fill_zeros(family: Family) -> Family:
    """Give layers that start at zero some weights, so that nothing is skipped unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in family.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1, generator=generator)
    return family


@pytest.fixture(scope="session")
def config() -> Config:
    return load_config("tiny", **MICRO)


@pytest.fixture(scope="session")
def family(config: Config) -> Family:
    torch.manual_seed(0)
    return fill_zeros(Family(config)).eval()
