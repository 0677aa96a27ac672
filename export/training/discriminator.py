"""A patch discriminator that sees a photo beside the mean image that its tokens decode to."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Discriminator(nn.Module):
    """(photo, mean image), both (B,3,H,W) in [-1,1] -> scores of patches at 1/8 and 1/16, flat.

    Sides must be multiples of 16. ``widths`` are channels at 1/2, 1/4, 1/8 and 1/16.
    """

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(24, widths[0], 3, padding=1))
        self.stages = nn.ModuleList(
            nn.Conv2d(narrow, wide, 4, stride=2, padding=1)
            for narrow, wide in zip(widths, widths[1:], strict=False)
        )
        self.mixers = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[2:])
        self.heads = nn.ModuleList(nn.Conv2d(w, 1, 1) for w in widths[2:])

    def forward(self, photo: Tensor, mean: Tensor) -> Tensor:
        """Scores of photos beside their means; see the class."""
        x = F.leaky_relu(self.stem(torch.cat([photo, mean], dim=1)), 0.2)
        scores = []
        for level, stage in enumerate(self.stages):
            x = F.leaky_relu(stage(x), 0.2)
            if level:
                x = x + F.leaky_relu(self.mixers[level - 1](x), 0.2)
                scores.append(self.heads[level - 1](x).flatten(1))
        return torch.cat(scores, dim=1).float()


def discriminator_loss(
    discriminator: nn.Module, real: Tensor, fake: Tensor, mean: Tensor, penalty: float
) -> Tensor:
    """Relativistic loss on pairs of one photo, with a penalty on steep slopes at the real ones.

    softplus(D(fake) - D(real)), arXiv 1807.00734; the gradient penalty R1 is approximated by the
    change of the score under a little noise, arXiv 2501.08316. ``fake`` is taken as a constant.
    """
    noisy = real + 0.02 * torch.randn_like(real)
    scores = discriminator(torch.cat([real, fake.detach(), noisy]), torch.cat([mean] * 3))
    true, made, shaken = scores.chunk(3)
    return F.softplus(made - true).mean() + penalty * (true - shaken).square().mean()


def generator_loss(discriminator: nn.Module, real: Tensor, fake: Tensor, mean: Tensor) -> Tensor:
    """softplus(D(real) - D(fake)); the discriminator is taken as a constant."""
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    pair = (torch.cat([real, fake]), torch.cat([mean, mean]))
    true, made = torch.func.functional_call(discriminator, frozen, pair).chunk(2)
    return F.softplus(true.detach() - made).mean()
