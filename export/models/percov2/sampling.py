"""The Euler loop of a flow in PyTorch, for calibration and training.

The runtime has its own over engines (percoedge.runtime.flow), which also cuts pictures into tiles.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def sample(
    velocity: Callable[[Tensor, Tensor, Tensor], Tensor],
    x: Tensor,
    z: Tensor,
    steps: int,
    first: int = 0,
) -> Tensor:
    """Integrate from t = 1 to 0 in equal Euler steps: latent (n,C,H,W) like ``x``.

    ``velocity``: as FlowModel, of a state like ``x``, the condition ``z`` and times (n,), all of
    them equal; it may be of another float type. ``first``: how many of the steps ``x`` has behind
    it, 0 for noise.
    """
    for index in range(first, steps):
        t = torch.full((len(x),), 1 - index / steps, device=x.device)
        x = x - velocity(x, z, t).float() / steps
    return x
