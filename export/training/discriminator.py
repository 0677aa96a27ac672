"""Judges of realism on frozen features, as in projected GANs (arXiv 2111.01007)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """Features (B,C,h,w) at several strides -> scores (B,1,h,w) at each, by a small head each.

    ``channels`` of the features and ``width`` of the heads. Spectral norms keep the heads from
    becoming steeper than the features are.
    """

    def __init__(self, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(channel, width, 1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 1)),
            )
            for channel in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Scores of features; see the class."""
        return [head(x) for head, x in zip(self.heads, features, strict=True)]


def discriminator_loss(
    discriminator: nn.Module, real: Sequence[Tensor], made: Sequence[Tensor]
) -> Tensor:
    """Hinge loss, mean over heads; the features of both are taken as constants."""
    losses = []
    scores = [discriminator([x.detach() for x in features]) for features in (real, made)]
    for true, false in zip(*scores, strict=True):
        losses.append(F.relu(1 - true).mean() + F.relu(1 + false).mean())
    return torch.stack(losses).mean()


def generator_loss(discriminator: nn.Module, made: Sequence[Tensor]) -> Tensor:
    """Minus the mean score over heads; the discriminator is taken as a constant."""
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    scores = torch.func.functional_call(discriminator, frozen, (made,))
    return -torch.stack([score.mean() for score in scores]).mean()
