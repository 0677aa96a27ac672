"""The exact model in PyTorch float32, to try its arithmetic on PyTorch's kernels.

The same steps as the graph of percoedge.export.exact.integers: integers carried in float32.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cases import Case, Run, Tally, compare
from numpy.typing import NDArray
from torch import Tensor

from percoedge.export.exact.integers import (
    ACTIVATION_MAX,
    ACTIVATION_MIN,
    HIDDEN_MAX,
    SQUARE_SHIFT,
    STREAM_MAX,
    IntegerLayer,
    IntegerMim,
)
from percoedge.export.models.mim import norm_index


def torch_run(model: IntegerMim, device: str) -> Run:
    """The model on a device, as a function."""

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).to(device)

    def layer(integers: IntegerLayer) -> tuple[Tensor, Tensor, Tensor]:
        shift = integers.shift.astype(np.float64)
        return tensor(integers.weight), tensor(integers.bias), tensor(np.exp2(-shift))

    def clipped(x: Tensor) -> Tensor:
        return x.clamp(ACTIVATION_MIN, ACTIVATION_MAX)

    def norm(x: Tensor) -> Tensor:
        squares = torch.round(x * 2.0**-SQUARE_SHIFT).square().sum(-1, keepdim=True)
        return clipped(torch.round(x * norm_table[norm_index(squares)]))

    def linear(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        return torch.round((x @ weight + bias) * scale)

    def depthwise(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
        pad = weight.shape[-1] // 2
        planes = x.permute(0, 3, 1, 2)
        y = F.conv2d(planes, weight[:, None], bias, padding=pad, groups=len(weight))
        return torch.round(y.permute(0, 2, 3, 1) * scale)

    embedding, norm_table = tensor(model.embedding), tensor(model.norm_table)
    weight_table = torch.from_numpy(model.weight_table.astype(np.int32)).to(device)
    blocks = [[layer(integers) for integers in block] for block in model.blocks]
    head = layer(model.head)

    @torch.inference_mode()
    def run(tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[Any]:
        x = embedding[torch.from_numpy(tokens).long().to(device)]
        for mix, up, down in blocks:
            mixed = clipped(depthwise(norm(x), *mix))
            hidden = linear(mixed, *up).clamp(0, HIDDEN_MAX)
            x = (x + linear(hidden, *down)).clamp(-STREAM_MAX, STREAM_MAX)
        chosen = x.flatten(1, 2)[:, torch.from_numpy(positions).long().to(device)]
        logits = linear(norm(chosen), *head).clamp(-STREAM_MAX, STREAM_MAX)
        distance = logits.amax(-1, keepdim=True) - logits
        return weight_table[distance.long()].cpu().numpy()

    return run


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """How PyTorch may multiply float32: "highest", "high" (TF32 or so) or "medium" (bfloat16)."""
    matmul = torch.get_float32_matmul_precision()
    convolution = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(name)
    torch.backends.cudnn.allow_tf32 = name != "highest"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = convolution


def run_precisions(
    tally: Tally,
    model: IntegerMim,
    device: str,
    cases: Sequence[Case],
    names: Iterable[str] = ("highest", "high", "medium"),
) -> None:
    """Every case at each precision, all slots together and each alone."""
    began = time.perf_counter()
    run = torch_run(model, device)
    for name in names:
        with precision(name):
            tally.configurations += 1
            for case in cases:
                slots = range(len(case.tokens))
                compare(run, case, [[slot] for slot in slots] + [list(slots)], name, tally)
    tally.seconds += time.perf_counter() - began
