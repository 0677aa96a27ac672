"""The learned measures that this machine has: features, LPIPS, DISTS, FID, KID and CLIP score.

Distances of features (lite2.py) need the extra [quality] alone. For the others nothing is ever
downloaded: look-ups of hosts are refused while a metric loads, and one that cannot load is
"missing". The packages are torchmetrics and torchvision (LPIPS, DISTS), torch-fidelity
(FID, KID) and transformers (CLIP score); the weights are those that their own caches hold.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.lite2 import Lite2
from benchmarks.quality.perceptual import Moments, frechet
from percoedge.errors import BackendError

__all__ = ["MISSING", "NAMES", "Learned", "kernel_distance", "set_distances"]

MISSING = "missing"
NAMES = {
    "feature_distance": "features",
    "frechet": "Fréchet",
    "lpips": "LPIPS",
    "dists": "DISTS",
    "clip_score": "CLIP score",
    "fid": "FID",
    "kid": "KID",
}
"""Keys of the results, and their titles."""
_CLIP_MODEL = "openai/clip-vit-base-patch16"
_INCEPTION_SIZE = 2048
# FID and KID of a folder of few photos: on patches, twice, the second time shifted by half of one
# (Mentzer et al., "High-fidelity generative image compression", 2020).
_PATCH_PX = 256

Pixels = NDArray[np.uint8]
PairMetric = Callable[[Pixels, Pixels], float]
Features = Callable[[Pixels], NDArray[np.float64]]


class Learned:
    """The metrics that this machine has, each network loaded once; none if not ``wanted``.

    ``lite2``: the network of the feature distances, or None; then ``why_no_lite2`` says why.
    ``pairs``: other metrics of an output and its original, by key. ``inception``: features (n,
    2048) of a photo's patches, or None.
    """

    def __init__(self, wanted: bool = True) -> None:
        makers = {"lpips": _lpips, "dists": _dists, "clip_score": _clip_score} if wanted else {}
        loaded = {key: _loaded(make) for key, make in makers.items()}
        self.pairs: dict[str, PairMetric] = {key: one for key, one in loaded.items() if one}
        self.inception: Features | None = _loaded(_inception) if wanted else None
        self.lite2: Lite2 | None = None
        self.why_no_lite2 = ""
        if wanted:
            try:
                self.lite2 = Lite2()
            except BackendError as error:
                self.why_no_lite2 = str(error)

    def compare(self, original: Pixels, output: Pixels) -> dict[str, float]:
        """Values of the metrics of pairs, by key."""
        return {key: metric(original, output) for key, metric in self.pairs.items()}


def set_distances(
    original: list[NDArray[np.float64]], output: list[NDArray[np.float64]]
) -> dict[str, float]:
    """FID and KID of two sets of Inception features, each a list of (n, 2048), one a photo."""
    a, b = np.concatenate(original), np.concatenate(output)
    moments = []
    for vectors in (a, b):
        moments.append(Moments(vectors.shape[1]))
        moments[-1].add(vectors)
    return {"fid": frechet(*moments), "kid": kernel_distance(a, b)}


def kernel_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Unbiased squared MMD of (n,d) and (m,d), kernel (x.y / d + 1)^3 (Binkowski et al., 2018)."""

    def kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> Any:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: NDArray[np.float64]) -> Any:
        matrix = kernel(x, x)
        return (matrix.sum() - np.trace(matrix)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def _loaded(make: Callable[[], Any]) -> Any:
    """What ``make`` gives, or None: without its package, without its weights, or broken."""
    with _offline():
        try:
            return make()
        except Exception:  # packages raise what they like when a file is not there
            return None


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Refuse every look-up of a host, so that weights are found on this machine or not at all."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("benchmarks download nothing")

    lookup = socket.getaddrinfo
    socket.getaddrinfo = refuse
    try:
        yield
    finally:
        socket.getaddrinfo = lookup


def _tensor(pixels: Pixels) -> Any:
    """Photo uint8 (H,W,3) -> tensor uint8 (1,3,H,W)."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def _lpips() -> PairMetric:
    """LPIPS of AlexNet features, 0 for equal photos."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    return _unit(LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True))


def _dists() -> PairMetric:
    """DISTS, 0 for equal photos."""
    from torchmetrics.image.dists import DeepImageStructureAndTextureSimilarity

    return _unit(DeepImageStructureAndTextureSimilarity())


def _unit(metric: Any) -> PairMetric:
    """A metric of tensors in 0..1 as one of photos."""
    import torch

    def value(original: Pixels, output: Pixels) -> float:
        with torch.inference_mode():
            return float(metric(_tensor(output) / 255, _tensor(original) / 255))

    return value


def _clip_score() -> PairMetric:
    """100 times the cosine between the CLIP embeddings of both photos; no caption is needed."""
    import torch
    from transformers import CLIPVisionModelWithProjection

    network = CLIPVisionModelWithProjection.from_pretrained(_CLIP_MODEL, local_files_only=True)
    from transformers import CLIPImageProcessor  # warns where torchvision is not installed

    prepare = CLIPImageProcessor.from_pretrained(_CLIP_MODEL, local_files_only=True)

    def value(original: Pixels, output: Pixels) -> float:
        with torch.inference_mode():
            embeds = network(**prepare([original, output], return_tensors="pt")).image_embeds
            return float(100 * torch.cosine_similarity(embeds[0], embeds[1], dim=0))

    return value


def _inception() -> Features:
    """Pool features of the Inception network that FID is defined on."""
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3("inception-v3-compat", [str(_INCEPTION_SIZE)]).eval()

    def features(pixels: Pixels) -> NDArray[np.float64]:
        with torch.inference_mode():
            parts = [network(_tensor(patch))[0] for patch in _patches(pixels)]
        vectors: NDArray[np.float64] = torch.cat(parts).double().numpy()
        return vectors

    return features


def _patches(pixels: Pixels) -> Iterator[Pixels]:
    """Whole patches of a photo on two grids; of a smaller photo, the photo."""
    height, width = pixels.shape[:2]
    if min(height, width) < _PATCH_PX:
        yield pixels
        return
    for offset in (0, _PATCH_PX // 2):
        for top in range(offset, height - _PATCH_PX + 1, _PATCH_PX):
            for left in range(offset, width - _PATCH_PX + 1, _PATCH_PX):
                yield pixels[top : top + _PATCH_PX, left : left + _PATCH_PX]
