"""A codec without models: graphs that are a few lines of numpy, with the traits of real ones.

encoder  brightness of a token's 3x3 neighbourhood, so that a tile needs a margin of 1 token
entropy  integer weights that depend on every token of the tile and on the position
flow     a step towards a level given by the token; what is left of the noise shows in the pixels
decoder  mean of 3x3 latent cells, enlarged 4 times

Stride 8, K = 64, latents of 4 channels at stride 4, entropy and flow tiles of 4 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.engines.fake import FakeBackend, FakeEngine, GraphFunction

K = 64
Feeds = Mapping[str, NDArray[Any]]
CONSTANTS: dict[str, Any] = {
    "stride": 8,
    "codebook_size": K,
    "latent_channels": 4,
    "latent_stride": 4,
    "schedule": "qlds-4",
    "steps": 2,
    "guidance": 1.0,
    "entropy_tile": 4,
    "flow_tile": 4,
    "flow_overlap": 1,
    "flow_batch": 1,
    "decoder_tile": 4,
    "encoder_margin": 1,
    "decoder_margin": 1,
    "captions_condition": False,
}

IMAGE = TensorSpec("image", "uint8", ("n", "8*h", "8*w", 3))
TOKENS = TensorSpec("tokens", "int32", ("n", "h", "w"))
LATENT = TensorSpec("x", "float32", ("n", 4, "2*h", "2*w"))
KNOBS = (TensorSpec("t", "float32", (1,)), TensorSpec("dt", "float32", (1,)))
SPECS = {
    "encoder": ((IMAGE,), (TOKENS,)),
    "entropy": (
        (TOKENS, TensorSpec("positions", "int32", ("p",))),
        (TensorSpec("weights", "int32", ("n", "p", K)),),
    ),
    "flow": ((LATENT, TOKENS, *KNOBS), (TensorSpec("x_next", "float32", LATENT.shape),)),
    "flow_guided": (
        (LATENT, TOKENS, *KNOBS, TensorSpec("guidance", "float32", (1,))),
        (TensorSpec("x_next", "float32", LATENT.shape),),
    ),
    "decoder": ((LATENT,), (IMAGE,)),
}


def neighbourhood(grid: NDArray[Any]) -> NDArray[Any]:
    """Sum over 3x3 of the last two axes, zeros outside."""
    padded = np.pad(grid, [(0, 0)] * (grid.ndim - 2) + [(1, 1), (1, 1)])
    height, width = grid.shape[-2:]
    views = [padded[..., r : r + height, c : c + width] for r in range(3) for c in range(3)]
    total = views[0].copy()
    for view in views[1:]:
        total += view
    return total


def encoder(feeds: Feeds) -> dict[str, NDArray[Any]]:
    n, height, width, _ = feeds["image"].shape
    blocks = feeds["image"].reshape(n, height // 8, 8, width // 8, 8, 3)
    sums = blocks.sum(axis=(2, 4, 5), dtype=np.int64)
    return {"tokens": (neighbourhood(sums) // 61 % K).astype(np.int32)}


def entropy(feeds: Feeds) -> dict[str, NDArray[Any]]:
    flat = feeds["tokens"].reshape(len(feeds["tokens"]), -1).astype(np.int64)
    context = (flat * np.arange(1, flat.shape[1] + 1)).sum(axis=1) % 997
    symbols, positions = np.arange(K), feeds["positions"].astype(np.int64)
    mixed = context[:, None, None] * (symbols + 3) + (positions[:, None] * 17 + symbols**2 * 7)
    return {"weights": (1 + mixed % 211).astype(np.int32)}


def flow(feeds: Feeds) -> dict[str, NDArray[Any]]:
    level = feeds["tokens"].repeat(2, axis=1).repeat(2, axis=2)[:, None].astype(np.float32)
    target = level * np.float32(0.5) * feeds.get("guidance", np.ones(1, np.float32))
    return {"x_next": feeds["x"] + feeds["dt"] * (target - feeds["x"])}


def decoder(feeds: Feeds) -> dict[str, NDArray[Any]]:
    mean = neighbourhood(feeds["x"][:, :3]) / np.float32(9)
    big = np.clip(mean * 8, 0, 255).astype(np.uint8).repeat(4, axis=2).repeat(4, axis=3)
    return {"image": big.transpose(0, 2, 3, 1)}


FUNCTIONS: dict[str, GraphFunction] = {
    "encoder": encoder,
    "entropy": entropy,
    "flow": flow,
    "flow_guided": flow,
    "decoder": decoder,
}


def engine(kind: str, function: GraphFunction | None = None) -> FakeEngine:
    return FakeEngine(*SPECS[kind], function or FUNCTIONS[kind])


def backend(**functions: GraphFunction) -> FakeBackend:
    return FakeBackend({**FUNCTIONS, **functions})


def constants(**changes: Any) -> CodecConstants:
    return CodecConstants(**{**CONSTANTS, **changes})


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="session")
def make_bundle(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bundle]:
    """Write a bundle whose graph files hold a few bytes that no fake backend looks at."""

    def make(kinds: str = "encoder entropy flow decoder", **changes: Any) -> Bundle:
        root: Path = tmp_path_factory.mktemp("fake")
        (root / "graph.onnx").write_bytes(b"fake")
        files = {"fp32": ("graph.onnx",)}
        return write_manifest(
            root,
            name="fake",
            family="tiny",
            language="1" * 64,
            codec=constants(**changes),
            graphs={kind: GraphFiles(*SPECS[kind], files) for kind in kinds.split()},
            licence="CC0-1.0",
        )

    return make


@pytest.fixture(scope="session")
def fake_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle()


@pytest.fixture(scope="session")
def guided_bundle(make_bundle: Callable[..., Bundle]) -> Bundle:
    return make_bundle("encoder entropy flow flow_guided decoder")


@pytest.fixture(scope="session")
def fakes() -> Any:
    """What the fakes are made with, for test modules, which import nothing from one another."""
    return SimpleNamespace(
        K=K,
        backend=backend,
        constants=constants,
        engine=engine,
        functions=FUNCTIONS,
        photo=photo,
        specs=SPECS,
    )
