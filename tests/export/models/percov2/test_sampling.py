"""The Euler loop of PyTorch against flows whose path is known, and against the runtime's loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from percoedge.engines.bundle import Bundle
from percoedge.engines.fake import FakeEngine
from percoedge.export.models.percov2.sampling import sample
from percoedge.runtime.flow import sample as runtime_sample

Z = torch.zeros(1)  # a condition that these flows pass over


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_straight_path_is_walked_to_its_end(steps: int) -> None:
    latent, noise = torch.randn(2, 4, 2, 3), torch.randn(2, 4, 2, 3)
    times = []

    def velocity(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        times.append(t.tolist())
        return noise - latent

    torch.testing.assert_close(sample(velocity, noise, Z, steps), latent)
    assert times == [pytest.approx([1 - index / steps] * 2) for index in range(steps)]


def test_steps_behind_it_are_not_walked_again() -> None:
    def velocity(x: Tensor, z: Tensor, t: Tensor) -> Tensor:
        return x * t.view(-1, 1)

    x = torch.randn(1, 5)
    behind = x - velocity(x, Z, torch.ones(1)) / 4
    assert torch.equal(sample(velocity, behind, Z, 4, first=1), sample(velocity, x, Z, 4))


def test_half_precision_is_added_up_in_single() -> None:
    x = torch.full((1, 1), 1000.0)
    assert sample(lambda x, z, t: torch.full_like(x, 0.25).half(), x, Z, 2).item() == 999.75


def test_the_runtime_walks_the_same_path() -> None:
    codec = Bundle.open("tiny").codec
    graph = Bundle.open("tiny").graph("flow", "fp32")

    def step(feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"x_next": feeds["x"] - feeds["dt"] * np.sin(feeds["x"] + feeds["t"])}

    start = np.random.default_rng(0).standard_normal((2, codec.latent_channels, 4, 6), np.float32)
    tokens = np.zeros((2, 2, 3), np.int32)
    engine = FakeEngine(graph.inputs, graph.outputs, step)
    found = runtime_sample(engine, tokens, start, 3, None, codec)
    x = torch.from_numpy(start)
    wanted = sample(lambda x, z, t: torch.sin(x + t.view(-1, 1, 1, 1)), x, Z, 3)
    np.testing.assert_allclose(np.asarray(found), wanted.numpy(), rtol=1e-5, atol=1e-6)
