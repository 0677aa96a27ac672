"""Costs in the manifest are what PyTorch counts, at any size, and say nothing where it differs."""

from __future__ import annotations

import shutil

import pytest
import torch
from msgspec.structs import replace
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import percoedge.bundles
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.write import replace_manifest
from percoedge.export.config import load_config
from percoedge.export.graphs import costs
from percoedge.export.graphs.modules import graph_plans
from percoedge.export.models.percov2.family import Family


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A copy of the shipped bundle without its costs."""
    folder = tmp_path_factory.mktemp("tiny") / "tiny"
    shutil.copytree(percoedge.bundles.shipped_bundles()["tiny"], folder)
    bundle = Bundle.open(folder)
    graphs = {k: replace(graph, cost=None) for k, graph in bundle.manifest.graphs.items()}
    return replace_manifest(folder, replace(bundle.manifest, graphs=graphs))


@pytest.mark.slow
def test_the_shipped_bundle_has_those_of_its_configuration(tiny: Bundle) -> None:
    before = tiny.manifest
    assert all(graph.cost is None for graph in before.graphs.values())
    counted = costs.with_costs(tiny, load_config("tiny"))
    assert counted.manifest == Bundle.open("tiny").manifest
    assert (counted.fingerprint, counted.manifest.files) == (tiny.fingerprint, before.files)
    counted.verify()


@pytest.mark.parametrize("kind", ["encoder", "flow", "decoder"])
def test_operations_are_those_that_pytorch_counts(kind: str) -> None:
    cost = Bundle.open("tiny").manifest.graphs[kind].cost
    assert cost is not None
    config, sizes = load_config("tiny"), {"n": 2, "h": 6, "w": 10}
    plan = graph_plans(config)[kind]
    with costs.FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        module = plan.build(Family(config).eval(), torch.float32)  # which computes, too
        feeds = {
            spec.name: torch.zeros(spec.shape_at(sizes), dtype=getattr(torch, spec.dtype))
            for spec in plan.inputs
        }
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            module(**feeds)
    assert cost.operations("fp32", sizes) == (counter.get_total_flops(), 0)
    assert sum(cost.operations("int8", sizes)) == counter.get_total_flops()


def test_only_what_is_drawn_from_the_last_block_is_counted_by_positions() -> None:
    cost = Bundle.open("tiny").manifest.graphs["entropy"].cost
    mim = load_config("tiny").mim
    assert cost is not None
    mix = mim.width * mim.kernel**2
    block = 2 * mim.width * mim.hidden
    assert cost.macs == {
        "n*h*w": mim.layers * mix + (mim.layers - 1) * block,
        "n*p": block + mim.width * load_config("tiny").codec.codebook_size,
    }
    assert cost.int8_macs == cost.macs


def test_what_is_in_bytes_is_what_the_graphs_say() -> None:
    graphs = Bundle.open("tiny").manifest.graphs
    flow, decoder = graphs["flow"].cost, graphs["decoder"].cost
    assert flow is not None and decoder is not None
    family = Family(load_config("tiny"))
    first = family.vae.get_submodule("decoder.0").weight
    inside = [p for n, p in family.vae.decoder.named_parameters() if n.endswith("weight")]
    assert decoder.int8_weights == sum(p.numel() for p in inside) - first.numel()
    assert decoder.macs["n*h*w"] - decoder.int8_macs["n*h*w"] == 4 * first.numel()
    assert flow.int8_macs == {"n*h*w": flow.int8_weights}  # each weight once for each token


def test_counts_that_are_no_sum_of_products_are_left_out() -> None:
    """Patches of 2x2 cells where a token is one cell: the last one is half empty on odd grids."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 2, stride=2, padding=1)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.layer(image.float().permute(0, 3, 1, 2))
            return result

    plan = graph_plans(load_config("tiny"))["encoder"]
    everywhere = (*costs._FITTED, *costs._COMPARED)
    counts = [costs._counts(Padded(), plan.inputs, sizes)[""] for sizes in everywhere]
    assert costs._fit((*costs._FITTED, *costs._COMPARED), counts) is None
