"""What training looks at beside pixels: features of a network, judges on them, made-up crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from percoedge.errors import UsageError
from percoedge.export.training import features as module
from percoedge.export.training.discriminator import (
    Discriminator,
    discriminator_loss,
    generator_loss,
)
from percoedge.export.training.features import (
    STRIDES,
    FeatureNetwork,
    Features,
    feature_distance,
    shifted,
)
from percoedge.export.training.synthetic import synthetic_crop

_CHANNELS = (16, 24, 40, 112, 320)


def test_features_of_several_networks_follow_one_another() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    networks = Features(pretrained=False)
    image = torch.rand(1, 3, 32, 32)
    found = networks(image)
    assert [x.shape[1] for x in found] == networks.channels == [*_CHANNELS, *_CHANNELS]
    assert not torch.equal(found[0], found[len(_CHANNELS)])
    assert float(feature_distance([-x for x in found], found)) <= 18


def test_features_have_the_strides_and_channels_that_are_named() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    network = FeatureNetwork(pretrained=False).train()
    image = torch.rand(2, 3, 64, 96).requires_grad_(True)
    found = network(image)
    sizes = [tuple(f.shape) for f in found]
    wanted = [(2, c, 64 // s, 96 // s) for c, s in zip(network.channels, STRIDES, strict=True)]
    assert sizes == wanted
    assert not network.training
    found[-1].sum().backward()
    assert image.grad is not None and bool(image.grad.any())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_missing_package_is_named() -> None:
    with pytest.raises(UsageError, match=r"no-such-net.*pip install 'percoedge\[train\]'"):
        module._imported("no_such_net")


def test_the_distance_is_of_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(1, c, 4, 4, generator=generator) for c in _CHANNELS]
    assert float(feature_distance(ours, ours)) == 0
    assert float(feature_distance([3 * x for x in ours], ours)) < 1e-5
    assert float(feature_distance([-x for x in ours], ours)) == pytest.approx(18, rel=1e-2)


def test_images_are_shifted_together() -> None:
    ramp = torch.arange(64.0 * 64).reshape(1, 1, 64, 64)
    seen = set()
    for seed in range(200):
        one, two = shifted([ramp, -ramp], np.random.default_rng(seed))
        torch.testing.assert_close(one, -two)
        down, right = divmod(int(one[0, 0, 0, 0]), 64)
        assert one.shape == (1, 1, 64 - down, 64 - right)
        seen |= {down, right}
    assert seen == set(range(16))


def test_judges_learn_to_tell_and_are_constants_to_the_generator() -> None:
    torch.manual_seed(0)
    judge = Discriminator((3, 5), 4)
    real = [torch.randn(2, 3, 8, 8) + 1, torch.randn(2, 5, 4, 4)]
    made = [(torch.randn(2, 3, 8, 8) - 1).requires_grad_(True), torch.randn(2, 5, 4, 4)]
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    before = float(discriminator_loss(judge, real, made).detach())
    for _ in range(50):
        optimizer.zero_grad()
        discriminator_loss(judge, real, made).backward()
        optimizer.step()
    assert made[0].grad is None
    assert float(discriminator_loss(judge, real, made).detach()) < before - 0.3
    optimizer.zero_grad()
    generator_loss(judge, made).backward()
    assert made[0].grad is not None and bool(made[0].grad.any())
    assert all(parameter.grad is None for parameter in judge.parameters())


def test_synthetic_crops_are_reproducible_and_of_all_kinds() -> None:
    flat = bright = 0
    for seed in range(100):
        crop = synthetic_crop(np.random.default_rng(seed), 64)
        assert crop.shape == (64, 64, 3) and crop.dtype == np.uint8
        np.testing.assert_array_equal(crop, synthetic_crop(np.random.default_rng(seed), 64))
        flat += len(np.unique(crop.reshape(-1, 3), axis=0)) == 1
        bright += set(np.unique(crop)) == {0, 255}
    assert 10 < flat < 50
    assert bright > 5
