"""One resumable training loop for all stages: warm-up and cosine rate, EMA, curves, checkpoints."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from percoedge.export.config import StageConfig

Step = Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]]


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def precision(device: torch.device) -> torch.autocast:
    """bfloat16 autocast: matrix units exist for it on GPUs and on recent CPUs."""
    return torch.autocast(device.type, torch.bfloat16)


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
    Gradients are clipped to a norm of 1, those of parts that are ``apart`` by themselves.
    Step ``i`` draws from a generator seeded with (seed, i), so a resumed run sees the same data.
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
        save_every: int = 500,
        log_every: int = 50,
    ) -> None:
        self.name, self.module, self.stage, self.seed = name, module, stage, seed
        self.checkpoint = out / f"{name}.pt"
        self.curve = out / f"{name}.jsonl"
        self.save_every, self.log_every = save_every, log_every
        trained = list(module.parameters() if parameters is None else parameters)
        matrices = [p for p in trained if p.ndim >= 2]
        vectors = [p for p in trained if p.ndim < 2]
        others = {id(p) for part in apart for p in part.parameters()}
        self._clipped = [[p for p in trained if id(p) not in others]]
        self._clipped += [list(part.parameters()) for part in apart]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": stage.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=stage.lr,
            betas=(stage.momentum, 0.98),
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
        device = next(self.module.parameters()).device
        state = torch.load(self.checkpoint, map_location=device, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.averaged = {key: value.float() for key, value in state["ema"].items()}
        return int(state["step"])

    def _save(self, step: int) -> None:
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
        self, step_function: Step, validate: Callable[[], dict[str, float]] | None = None
    ) -> None:
        """Train to the end; ``step_function(step, rng)`` gives the loss and figures to log."""
        self.module.train()
        start = self._resume()
        sums: dict[str, float] = {}
        began = time.time()
        bar = tqdm(range(start, self.stage.steps), initial=start, total=self.stage.steps)
        bar.set_description(self.name)
        for step in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.stage, step)
            rng = np.random.default_rng((self.seed, step))
            torch.manual_seed(self.seed * 1_000_003 + step)
            loss, figures = step_function(step, rng)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norms = [nn.utils.clip_grad_norm_(group, 1.0) for group in self._clipped]
            if all(map(torch.isfinite, norms)):
                self.optimizer.step()
                self._average(step)
            else:
                figures["skipped"] = 1.0
            for key, value in {"loss": float(loss.detach()), **figures}.items():
                sums[key] = sums.get(key, 0.0) + value
            done = step + 1
            if done % self.log_every == 0:
                means = {key: round(v / self.log_every, 5) for key, v in sums.items()}
                line = {"step": done, "seconds": round(time.time() - began, 1), **means}
                with self.curve.open("a") as handle:
                    handle.write(json.dumps(line) + "\n")
                bar.set_postfix(means)
                sums = {}
            if done % self.save_every == 0 or done == self.stage.steps:
                self._save(done)
        state = self.module.state_dict()
        self.module.load_state_dict({k: v.to(state[k].dtype) for k, v in self.averaged.items()})
        self.module.eval()
        if validate is not None:
            with torch.no_grad():
                line = {"step": self.stage.steps, "validation": validate()}
            with self.curve.open("a") as handle:
                handle.write(json.dumps(line) + "\n")
            print(json.dumps(line))
