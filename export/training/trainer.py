"""One resumable training loop for all stages: warm-up and cosine rate, EMA, curves, checkpoints."""

from __future__ import annotations

import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from percoedge.errors import UsageError
from percoedge.export.config import StageConfig
from percoedge.export.training.data import Crops

Figures = dict[str, Tensor]
Step = Callable[[int, Tensor, np.random.Generator], tuple[Tensor, Figures]]


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU; each process of torchrun has its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and dist.is_initialized():
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return torch.device(name)


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the other processes where torchrun started this one; alone, do nothing."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
        gc.collect()  # DistributedDataParallel holds threads of the group, and stands in cycles
        dist.barrier()
    finally:
        dist.destroy_process_group()


def place_among_processes() -> tuple[int, int]:
    """Number of this process, from 0, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def share_of(stage: StageConfig, count: int) -> StageConfig:
    """The stage of one of ``count`` processes: each has its part of every batch.

    Raises UsageError when the batch cannot be shared evenly.
    """
    if stage.batch % count:
        raise UsageError(
            f"expected batches that {count} processes share evenly, got one of {stage.batch}; "
            "start another number of processes, or change the batch"
        )
    pixel_batch = max(1, stage.pixel_batch // count)
    return replace(stage, batch=stage.batch // count, pixel_batch=pixel_batch)


def learning_rate(stage: StageConfig, step: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the rate."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.lr * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


class Trainer:
    """Runs ``stage.steps`` steps on a module and leaves its averaged weights in it.

    The checkpoint ``<out>/<name>.pt`` holds weights, EMA, optimiser and step; a run that finds one
    goes on from it. ``<out>/<name>.jsonl`` holds the curve, one line per ``log_every`` steps.
    Gradients are clipped to a norm of 1, those of parts that are ``apart`` by themselves; the
    rate of those is ``apart_rate`` times the others'. Step ``i`` draws from a generator seeded with
    (seed, i), so a resumed run sees the same data. Processes of torchrun draw each their own and
    average gradients (DistributedDataParallel); the first one writes the files.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        stage: StageConfig,
        out: Path,
        seed: int,
        *,
        parameters: Iterable[nn.Parameter] | None = None,
        apart: Sequence[nn.Module] = (),
        apart_rate: float = 1.0,
        save_every: int = 500,
        log_every: int = 50,
    ) -> None:
        self.name, self.module, self.stage, self.seed = name, module, stage, seed
        self._rank, self._processes = place_among_processes()
        self.checkpoint = out / f"{name}.pt"
        self.curve = out / f"{name}.jsonl"
        self.save_every, self.log_every = save_every, log_every
        trained = list(module.parameters() if parameters is None else parameters)
        others = {id(p) for part in apart for p in part.parameters()}
        self._clipped = [[p for p in trained if id(p) not in others]]
        self._clipped += [list(part.parameters()) for part in apart]
        groups = []
        for number, parameters in enumerate(self._clipped):
            factor = apart_rate if number else 1.0
            for decay, vectors in ((stage.weight_decay, False), (0.0, True)):
                chosen = [p for p in parameters if (p.ndim < 2) == vectors]
                groups.append({"params": chosen, "weight_decay": decay, "factor": factor})
        self._device = trained[0].device
        self.optimizer = torch.optim.AdamW(
            groups,
            lr=stage.lr,
            betas=(stage.momentum, 0.98),
            fused=self._device.type == "cuda",
        )
        self.averaged = {
            key: value.detach().clone().float() for key, value in module.state_dict().items()
        }

    def finished(self) -> bool:
        """Load the averaged weights if the stage has been trained to its end before."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["step"] < self.stage.steps:
            return False
        self.module.load_state_dict(state["ema"])
        return True

    def _resume(self) -> int:
        if not self.checkpoint.exists():
            return 0
        state = torch.load(self.checkpoint, map_location=self._device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged = {key: value.float() for key, value in state["ema"].items()}
        return int(state["step"])

    def _save(self, step: int) -> None:
        if self._rank:
            return
        partial = self.checkpoint.with_suffix(".part")
        current = self.module.state_dict()
        torch.save(
            {
                "step": step,
                "module": current,
                "optimizer": self.optimizer.state_dict(),
                "ema": {key: v.to(current[key].dtype) for key, v in self.averaged.items()},
            },
            partial,
        )
        partial.replace(self.checkpoint)

    @torch.no_grad()
    def _average(self, step: int) -> None:
        decay = min(self.stage.ema, (1 + step) / (10 + step))
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.averaged[key].lerp_(value.float(), 1 - decay)
            else:
                self.averaged[key].copy_(value)

    def run(
        self,
        step_function: Step,
        crops: Crops,
        validate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Train to the end on ``crops``.

        ``step_function(step, images, rng)`` gives the loss and figures to log, all of them scalars;
        ``images`` are float32 (B,3,H,W) in [-1,1].
        """
        self.module.train()
        start = self._resume()
        loss_of: nn.Module = _Step(self.module, step_function)
        if self._processes > 1:
            loss_of = DistributedDataParallel(loss_of)
        sums: Figures = {}
        began = time.time()
        steps = range(start, self.stage.steps)
        crops.rank = self._rank
        batches = crops.batches(steps, self._device)
        bar = tqdm(steps, initial=start, total=self.stage.steps, disable=self._rank > 0)
        bar.set_description(self.name)
        for step, images in zip(bar, batches, strict=True):
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.stage, step) * group["factor"]
            # the first process draws what one alone would
            rng = np.random.default_rng((self.seed, step, self._rank)[: 3 if self._rank else 2])
            torch.manual_seed((self.seed + 7919 * self._rank) * 1_000_003 + step)
            loss, figures = loss_of(step, images, rng)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norms = [nn.utils.clip_grad_norm_(group, 1.0) for group in self._clipped]
            if bool(torch.isfinite(torch.stack(norms)).all()):
                self.optimizer.step()
                self._average(step)
            else:
                figures["skipped"] = torch.ones(())
            for key, value in {"loss": loss, **figures}.items():
                sums[key] = sums.get(key, 0.0) + value.detach()
            done = step + 1
            if done % self.log_every == 0:
                means = {key: round(float(v) / self.log_every, 5) for key, v in sums.items()}
                self._write({"step": done, "seconds": round(time.time() - began, 1), **means})
                bar.set_postfix(means)
                sums = {}
            if done % self.save_every == 0 or done == self.stage.steps:
                self._save(done)
        torch.manual_seed(self.seed)
        state = self.module.state_dict()
        for key, value in self.averaged.items():
            if self._processes > 1:  # the first one's, which it has saved
                dist.broadcast(value, 0)
            state[key].copy_(value)
        self.module.eval()
        if validate is not None:
            with torch.no_grad():
                line = {"step": self.stage.steps, "validation": validate()}
            self._write(line)

    def _write(self, line: dict[str, Any]) -> None:
        """Add a line to the curve."""
        if self._rank == 0:
            with self.curve.open("a") as handle:
                handle.write(json.dumps(line) + "\n")


class _Step(nn.Module):
    """A step function as a module, as DistributedDataParallel wants it."""

    def __init__(self, trained: nn.Module, step: Step) -> None:
        super().__init__()
        self.trained, self._step = trained, step

    def forward(
        self, index: int, images: Tensor, rng: np.random.Generator
    ) -> tuple[Tensor, Figures]:
        return self._step(index, images, rng)
