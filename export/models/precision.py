"""Which precision training computes in: measured, since CPUs differ.

Some have matrix units for bfloat16 (AMX), others take twice the time of float32 for a convolution
and nine times for attention.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F


def precision(device: torch.device) -> torch.autocast:
    """Autocast to bfloat16 where that is faster than float32: on GPUs, and measured on CPUs."""
    enabled = device.type != "cpu" or _convolves_faster_in_bfloat16()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


@functools.cache
def _convolves_faster_in_bfloat16() -> bool:
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = (
            torch.zeros(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
            for shape in ((4, 64, 64, 64), (64, 64, 3, 3))
        )
        times.append(_least_time(functools.partial(torch.conv2d, x, weight, padding=1)))
    return times[1] < times[0]


@functools.cache
def attends_faster_in_float32() -> bool:
    """Whether attention takes this CPU less time in float32 than in bfloat16; measured once."""
    times = []
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.zeros(1, 8, 256, 32, dtype=dtype)
        times.append(_least_time(functools.partial(F.scaled_dot_product_attention, x, x, x)))
    return times[0] < times[1]


def _least_time(function: Callable[[], object], runs: int = 5) -> float:
    """Least seconds of some runs."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return min(times)
