"""An entropy model trained on the tokens of any bundle, and the bundle that codes with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from percoedge import Codec
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.errors import BundleMismatchError, UsageError
from percoedge.export.config import CONFIG_DIR
from percoedge.export.entropy import codebook_of, train_entropy
from percoedge.export.graphs.writing import write_bundle
from percoedge.export.models.exportable import Exportable, GraphPlan

pytestmark = pytest.mark.slow

_STRIDE = 8
_MICRO = {
    "width = 128\nhidden = 512\nlayers = 4\nkernel = 7": (
        "width = 16\nhidden = 32\nlayers = 2\nkernel = 3"
    )
}


class _Nearest(torch.nn.Module):
    """Stands for a published codec: a patch's nearest vector, and its vectors as pictures."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.patch = torch.nn.Conv2d(3, 6, _STRIDE, stride=_STRIDE)
        self.codebook = torch.nn.Parameter(torch.randn(size, 6, generator=generator))
        self.picture = torch.nn.Parameter(torch.rand(size, 3, generator=generator))
        torch.nn.init.normal_(self.patch.weight, std=0.3, generator=generator)
        self.requires_grad_(False)


class _Encoder(torch.nn.Module):
    def __init__(self, codec: _Nearest, dtype: torch.dtype) -> None:
        super().__init__()
        self.codec, self.dtype = codec, dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.codec.patch(image.to(self.dtype).permute(0, 3, 1, 2) / 255)
        codebook = self.codec.codebook.float()
        offset = codebook.square().sum(1) / -2
        scores = torch.nn.functional.linear(x.float().permute(0, 2, 3, 1), codebook, offset)
        return scores.argmax(-1).to(torch.int32)


class _Decoder(torch.nn.Module):
    def __init__(self, codec: _Nearest, dtype: torch.dtype) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        pixels = (torch.nn.functional.embedding(tokens, self.codec.picture) * 255).to(torch.uint8)
        return pixels.repeat_interleave(_STRIDE, 1).repeat_interleave(_STRIDE, 2)


def _bundle(out: Path, size: int) -> Bundle:
    image = TensorSpec("image", "uint8", ("n", f"{_STRIDE}*h", f"{_STRIDE}*w", 3))
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    constants = CodecConstants(
        stride=_STRIDE, codebook_size=size, schedule="uniform", entropy_tile=64
    )
    plans = {
        "encoder": GraphPlan(_Encoder, (image,), (tokens,), "encoder.weights", ("patch",)),
        "decoder": GraphPlan(_Decoder, (tokens,), (image,), "decoder.weights", ()),
    }
    codec = Exportable(
        "made-up", "made-up", _Nearest(size), plans, constants, "ab" * 32, "none", {"from": "here"}
    )
    return write_bundle(codec, out)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(3):
        small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        small.resize((200, 168), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def micro(tmp_path_factory: pytest.TempPathFactory) -> str:
    text = (CONFIG_DIR / "tiny.toml").read_text()
    for old, new in _MICRO.items():
        assert old in text
        text = text.replace(old, new)
    path = tmp_path_factory.mktemp("config") / "micro.toml"
    path.write_text(text.replace("batch = 64", "batch = 4"))
    return str(path)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, photos: Path, micro: str
) -> Callable[[int, int], tuple[Bundle, Bundle]]:
    """A bundle of tokens 0..size-1, and the one that was trained on it for so many steps."""

    def make(size: int, steps: int) -> tuple[Bundle, Bundle]:
        out = tmp_path_factory.mktemp("run")
        bundle = _bundle(out / "uniform", size)
        places = (photos, photos, out)
        options: dict[str, Any] = {"config_name": micro, "steps": steps, "device_name": "cpu"}
        return bundle, train_entropy(bundle, *places, threads=1, **options)

    return make


def test_the_same_pictures_in_fewer_bytes(
    trained: Callable[[int, int], tuple[Bundle, Bundle]], photos: Path
) -> None:
    before, after = trained(16, 60)
    photo = Image.open(photos / "0.png")
    uniform, coded = (
        Codec.load(bundle.path, backend="onnxruntime-cpu") for bundle in (before, after)
    )
    first, second = (codec.encode(photo) for codec in (uniform, coded))
    assert len(second) < 0.9 * len(first)
    np.testing.assert_array_equal(uniform.decode(first), coded.decode(second))
    assert coded.encode(photo, schedule="uniform") != second

    # another language, the same files
    assert after.codec.schedule == "qlds-8"
    assert after.fingerprint != before.fingerprint
    assert {record.sha256 for record in before.files} < {record.sha256 for record in after.files}
    assert after.manifest.graphs["decoder"] == before.manifest.graphs["decoder"]
    assert after.manifest.provenance["from"] == "here"
    assert after.manifest.graphs["entropy"].cost is not None
    after.verify()
    curve = [json.loads(line) for line in (after.path.parent / "mim_exact.jsonl").open()]
    assert curve[-1]["validation"]["qlds-8"] < 0.9 * np.log2(16)


def test_the_largest_published_codebook(
    trained: Callable[[int, int], tuple[Bundle, Bundle]], photos: Path
) -> None:
    _, after = trained(8196, 2)
    photo = Image.open(photos / "1.png")
    codec = Codec.load(after.path, backend="onnxruntime-cpu")
    assert codec.decode(codec.encode(photo)).size == photo.size


def test_training_starts_from_the_codebook(tmp_path: Path) -> None:
    bundle = _bundle(tmp_path, 16)
    vectors = _Nearest(16).codebook.half().float().numpy()
    found = codebook_of(bundle)
    assert found is not None
    centred = vectors - vectors.mean(0)
    np.testing.assert_allclose(
        found / np.linalg.norm(found), centred / np.linalg.norm(centred), atol=1e-3
    )
    assert codebook_of(Bundle.open("tiny")) is not None


def test_a_bundle_is_not_written_over_itself(tmp_path: Path, photos: Path) -> None:
    bundle = _bundle(tmp_path / "bundle", 16)
    with pytest.raises(UsageError, match="another folder"):
        train_entropy(bundle, photos, photos, tmp_path)


def test_streams_of_one_are_refused_by_the_other(
    trained: Callable[[int, int], tuple[Bundle, Bundle]], photos: Path
) -> None:
    before, after = trained(32, 1)
    stream = Codec.load(before.path, backend="onnxruntime-cpu").encode(Image.open(photos / "0.png"))
    with pytest.raises(BundleMismatchError):
        Codec.load(after.path, backend="onnxruntime-cpu").decode(stream)
