"""Decode and encode time of a bundle against PyTorch eager, interleaved in one run.

    python -m benchmarks.speed PHOTO [--rounds 10] [--save NAME]

The eager side runs the same modules (of the family's configuration, random weights: time does not
depend on them) over the same passes, steps and sizes, range coding included. Also measured: the
time from the start of a process to its first decoded image, and its peak memory.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.environment import report
from benchmarks.timing import interleaved, summary
from percoedge import Codec
from percoedge.bitstream.rangecoder import TokenDecoder, TokenEncoder
from percoedge.bitstream.schedules import passes
from percoedge.engines.contract import Buffer
from percoedge.engines.processors import usable_processors
from percoedge.export.config import load_config
from percoedge.export.graphs.modules import DecoderGraph, EncoderGraph, FlowGraph
from percoedge.export.models.family import Family
from percoedge.runtime.flow import noise, sample


class EagerCodec:
    """The modules of a family in PyTorch eager mode, doing what the runtime does.

    ``name``: of a configuration. Flow and autoencoder are of ``dtype`` (tokens are encoded in FP32
    only); with ``compiled`` the decoding side goes through torch.compile.
    """

    def __init__(
        self,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.config = load_config(name)
        self.device = torch.device(device)
        with self.device:
            family = Family(self.config).eval()
        family.to(self.device, memory_format=torch.channels_last)
        family.mim.exact = True
        self.encoder = EncoderGraph(family, torch.float32)
        self.integer_logits = family.mim.integer_logits
        if dtype != torch.float32:
            family.vae.to(dtype)
            family.flow.to(dtype)
        self.flow: Any = FlowGraph(family, dtype)
        self.decoder: Any = DecoderGraph(family, dtype)
        if compiled:
            self.integer_logits = torch.compile(self.integer_logits)
            self.flow = torch.compile(self.flow)
            self.decoder = torch.compile(self.decoder)

    @torch.inference_mode()
    def encode_tokens(self, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
        tokens: torch.Tensor = self.encoder(torch.from_numpy(pixels[None]))
        return tokens

    def weights(self, tokens: torch.Tensor, cells: torch.Tensor) -> np.ndarray[Any, Any]:
        """Integer weights (p,K) of flat cells of a grid (1,h,w)."""
        logits = self.integer_logits(tokens).flatten(0, 2)[cells]
        octaves = (logits - logits.amax(-1, keepdim=True)) / 16
        weights = (65536 * octaves.exp2()).round().clamp_min(1).int()
        found: np.ndarray[Any, Any] = weights.cpu().numpy()
        return found

    @torch.inference_mode()
    def stream(self, grid: tuple[int, int]) -> bytes:
        """Random tokens coded with this model, for ``decode`` to read."""
        size = self.config.codec.codebook_size
        target = torch.randint(size, (1, *grid), generator=torch.Generator().manual_seed(0))
        tokens, coder = torch.full((1, *grid), size, device=self.device), TokenEncoder()
        for cells in map(torch.from_numpy, passes(self.config.codec.schedule, *grid)):
            symbols = target.view(-1)[cells]
            coder.encode(symbols.numpy(), self.weights(tokens, cells.to(self.device)))
            tokens.view(-1)[cells.to(self.device)] = symbols.to(self.device)
        return coder.finish()

    @torch.inference_mode()
    def decode(self, data: bytes, grid: tuple[int, int], steps: int) -> np.ndarray[Any, Any]:
        """A stream of ``stream`` -> pixels uint8 (1,H,W,3)."""
        codec = self.config.codec
        coder = TokenDecoder(data)
        tokens = torch.full((1, *grid), codec.codebook_size, device=self.device)
        for cells in map(torch.from_numpy, passes(codec.schedule, *grid)):
            symbols = coder.decode(self.weights(tokens, cells.to(self.device)))
            known = torch.from_numpy(symbols).long().to(self.device)
            tokens.view(-1)[cells.to(self.device)] = known
        height, width = (codec.stride // codec.latent_stride * side for side in grid)
        start = noise(0, codec.latent_channels, height, width)[None]
        return self.render(tokens.int(), torch.from_numpy(start), steps)

    @torch.inference_mode()
    def render(
        self, tokens: torch.Tensor, start: torch.Tensor, steps: int, *text: torch.Tensor
    ) -> np.ndarray[Any, Any]:
        """Tokens (1,h,w) and noise -> pixels; ``text``: what the flow takes of captions."""
        captions = {
            name: _Tensor(tensor) for name, tensor in zip(("text", "pooled"), text, strict=False)
        }
        latent = sample(
            _TorchFlow(self.flow, self.device),
            tokens.cpu().numpy(),
            start.numpy(),
            steps,
            None,
            self.config.codec,
            captions,
        )
        pixels: np.ndarray[Any, Any] = self.decoder(_tensor(latent, self.device)).cpu().numpy()
        return pixels


class _Tensor:
    """A tensor that stays on its device between the steps of a flow."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.asarray(self.tensor.cpu().numpy(), dtype)


def _tensor(buffer: Any, device: torch.device) -> torch.Tensor:
    """What a flow is given, or has made, as a tensor on the device."""
    if isinstance(buffer, _Tensor):
        return buffer.tensor
    return torch.from_numpy(np.ascontiguousarray(buffer)).to(device)


class _TorchFlow:
    """The flow as an engine, so that PyTorch's pictures are cut and blended as the runtime's."""

    inputs = ()

    def __init__(self, flow: Any, device: torch.device) -> None:
        self._flow, self._device = flow, device

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        made = self._flow(**{name: _tensor(feed, self._device) for name, feed in feeds.items()})
        return {"x_next": _Tensor(made) if on_device else made.cpu().numpy()}


def first_image(stream: Path, bundle: str, steps: int, rounds: int) -> dict[str, float]:
    """A fresh process decoding one file to PNG: wall time (median) and peak memory."""
    walls, peaks = [], []
    for _ in range(rounds):
        command = [sys.executable, "-m", "percoedge", "decode", str(stream), "--bundle", bundle]
        command += ["--steps", str(steps), "-q", "-o", str(stream.with_suffix(".png"))]
        began = time.perf_counter()
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        walls.append(time.perf_counter() - began)
        peaks.append(usage.ru_maxrss / 1024)
        if status:
            raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return {
        "seconds_to_first_image": round(statistics.median(walls), 2),
        "peak_memory_mib": round(max(peaks)),
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photo", type=Path)
    parser.add_argument("--size", type=int, default=512, help="the photo is resized to a square")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--bundle", default="tiny")
    parser.add_argument("--config", default="tiny", help="configuration of the eager side")
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    photo = Image.open(args.photo).convert("RGB").resize((args.size, args.size))
    pixels = np.asarray(photo)
    eager = EagerCodec(args.config)
    stages: dict[str, list[float]] = {}
    with Codec.load(args.bundle, threads=args.threads) as codec:
        data = codec.encode(photo)
        height, width = codec.tokens(photo).shape
        eager_data = eager.stream((height, width))

        def decode() -> None:
            codec.decode(data, steps=args.steps)
            for stage, time_ms in codec.timings_ms.items():
                stages.setdefault(stage, []).append(time_ms)

        times = interleaved(
            {
                "decode eager": lambda: eager.decode(eager_data, (height, width), args.steps),
                "decode": decode,
                "decode 1 step": lambda: codec.decode(data, steps=1),
                "encode eager": lambda: eager.encode_tokens(pixels),
                "encode": lambda: codec.encode(photo),
            },
            args.rounds,
        )
    stages.pop("load", None)
    with tempfile.TemporaryDirectory() as folder:
        stream = Path(folder, "photo.pco")
        stream.write_bytes(data)
        cold = first_image(stream, args.bundle, args.steps, 5)
    medians = {name: statistics.median(values) for name, values in times.items()}
    report(
        args.save or "speed",
        {
            "size": args.size,
            "steps": args.steps,
            "threads": args.threads,
            "rounds": args.rounds,
            "times": {name: summary(values) for name, values in times.items()},
            "decode_stages": {name: summary(values[1:]) for name, values in stages.items()},
            "decode_speedup_over_eager": round(medians["decode eager"] / medians["decode"], 2),
            "encode_speedup_over_eager": round(medians["encode eager"] / medians["encode"], 2),
            **cold,
        },
        save=args.save is not None,
    )


if __name__ == "__main__":
    main()
