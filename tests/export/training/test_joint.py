"""What a token costs, as the joint training sees it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

from percoedge.export.config import load_config
from percoedge.export.models.percov2.family import Family
from percoedge.export.training.stages_joint import rate


def test_the_rate_pulls_codes_towards_tokens_that_are_expected() -> None:
    torch.manual_seed(0)
    config = load_config("tiny", mim={"width": 16, "hidden": 16, "layers": 1})
    family = Family(config)
    expected = 7
    with torch.no_grad():
        family.mim.head.weight.zero_()
        family.mim.head.bias.zero_()
        family.mim.head.bias[expected] = 8.0
    book = family.quantizer.codebook
    beside = torch.nn.functional.normalize(book[expected] + 0.4 * torch.randn(2, 8, 8, 8), dim=-1)
    codes = beside.requires_grad_(True)
    tokens = family.quantizer.nearest(codes)
    price, fit = rate(family, codes, tokens, np.random.default_rng(0))
    price.backward(retain_graph=True)
    moved = codes - 0.1 * torch.nn.functional.normalize(codes.grad, dim=-1)
    hidden = codes.grad.abs().sum(-1) > 0
    assert hidden.any()
    nearer = ((moved - codes) @ book[expected])[hidden]
    assert (nearer > 0).float().mean() > 0.9
    # the entropy model learns from the tokens as they are, not from what the codes are pulled to
    assert family.mim.head.bias.grad is None
    fit.backward()
    assert family.mim.head.bias.grad is not None
