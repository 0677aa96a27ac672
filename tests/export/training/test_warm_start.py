"""A bundle's weights, read back into PyTorch, are those that it was made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import example_feeds
from percoedge.engines.selection import select
from percoedge.errors import BundleError
from percoedge.export.config import load_config
from percoedge.export.exact.integers import language_digest
from percoedge.export.graphs.modules import graph_plans
from percoedge.export.models.mim import integer_mim
from percoedge.export.models.percov2.family import Family
from percoedge.export.training.warm_start import family_from_bundle


@pytest.fixture(scope="module")
def restored() -> Family:
    return family_from_bundle(Bundle.open("tiny"), load_config("tiny"))


def test_it_speaks_the_same_language(restored: Family) -> None:
    digest = language_digest(integer_mim(restored.mim), restored.quantizer.codebook.numpy())
    assert digest == Bundle.open("tiny").manifest.language


@pytest.mark.parametrize("kind", ["encoder", "flow", "decoder"])
def test_its_modules_compute_what_the_graphs_compute(restored: Family, kind: str) -> None:
    config = load_config("tiny")
    source = Bundle.open("tiny").read(kind, "fp32")
    feeds = example_feeds(source.inputs, {"n": 1, "h": 4, "w": 5}, 1024)
    module = graph_plans(config)[kind].build(restored, torch.float32)
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).numpy()
    with select("onnxruntime-cpu").load(source) as engine:
        (output,) = engine.run(feeds).values()
    if kind == "flow":
        np.testing.assert_allclose(np.asarray(output), expected, atol=1e-4)
    else:  # tokens and pixels: a last bit may turn one of them
        assert np.mean(np.asarray(output) != expected) < 1e-3


def test_another_configuration_is_refused() -> None:
    config = load_config("tiny", flow={"layers": 6})
    with pytest.raises(BundleError, match=r"transformer_blocks\.5.* got nothing"):
        family_from_bundle(Bundle.open("tiny"), config)
