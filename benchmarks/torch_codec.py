"""PyTorch's side of a race: the modules of a family, doing what the runtime does with engines."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.flop_counter import FlopCounterMode

from percoedge.bitstream.rangecoder import TokenDecoder, TokenEncoder
from percoedge.bitstream.schedules import passes
from percoedge.engines.contract import Buffer
from percoedge.export.config import load_config
from percoedge.export.graphs.modules import DecoderGraph, EncoderGraph, FlowGraph
from percoedge.export.models.percov2.family import Family
from percoedge.runtime.flow import noise, sample

__all__ = ["TorchCodec"]


class TorchCodec:
    """A codec in PyTorch, with random weights: time does not depend on them.

    ``name``: of a configuration. Flow and autoencoder are in FP32 on a CPU and in FP16 on a GPU,
    but tokens are encoded in FP32; with ``compiled``, a mode of torch.compile, everything goes
    through that. Passes, steps, tiles and range coding are the runtime's.
    """

    def __init__(self, name: str, device: str = "cpu", *, compiled: str | None = None) -> None:
        torch.manual_seed(0)
        self.config = load_config(name)
        self._device = torch.device(device)
        dtype = torch.float16 if device == "cuda" else torch.float32
        with self._device:
            family = Family(self.config).eval()
        family.to(self._device, memory_format=torch.channels_last)
        family.mim.exact = True
        # of its own: it shares modules with the parts that turn into FP16
        self._encoder: Any = EncoderGraph(copy.deepcopy(family), torch.float32)
        self._logits: Any = family.mim.integer_logits
        if dtype != torch.float32:
            family.vae.to(dtype)
            family.flow.to(dtype)
        self._flow: Any = FlowGraph(family, dtype)
        self._decoder: Any = DecoderGraph(family, dtype)
        if compiled is not None:
            # one graph for each pass, and on a GPU for each batch: its best
            dynamo: Any = importlib.import_module("torch._dynamo.config")
            dynamo.capture_scalar_outputs = True
            dynamo.recompile_limit = 64
            self._encoder, self._logits, self._flow, self._decoder = (
                torch.compile(part, mode=compiled, dynamic=False if device == "cuda" else None)
                for part in (self._encoder, self._logits, self._flow, self._decoder)
            )

    @torch.inference_mode()
    def encode(self, pixels: NDArray[np.uint8]) -> bytes:
        """Pixels (H,W,3), sides a multiple of the stride -> range-coded tokens."""
        found = self.tokens_from_pixels(pixels).long()
        grid = tuple(found.shape)
        tokens, coder = self._unknown(grid), TokenEncoder()
        for cells in map(torch.from_numpy, passes(self.config.codec.schedule, *grid)):
            here = cells.to(self._device)
            symbols = found.view(-1)[here]
            coder.encode(symbols.int().cpu().numpy(), self._weights(tokens, here))
            tokens.view(-1)[here] = symbols
        return coder.finish()

    @torch.inference_mode()
    def tokens_from_pixels(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """Pixels (H,W,3), sides a multiple of the stride -> tokens int32 (h,w), on the device."""
        found: torch.Tensor = self._encoder(torch.from_numpy(pixels[None]).to(self._device))[0]
        return found

    @torch.inference_mode()
    def tokens(self, data: bytes, grid: tuple[int, int]) -> NDArray[np.int32]:
        """The tokens int32 (1,h,w) that ``encode`` wrote."""
        tokens, coder = self._unknown(grid), TokenDecoder(data)
        for cells in map(torch.from_numpy, passes(self.config.codec.schedule, *grid)):
            here = cells.to(self._device)
            symbols = torch.from_numpy(coder.decode(self._weights(tokens, here)))
            tokens.view(-1)[here] = symbols.long().to(self._device)
        found: NDArray[np.int32] = tokens.int().cpu().numpy()
        return found

    def decode(self, data: bytes, grid: tuple[int, int], steps: int) -> NDArray[np.uint8]:
        """What ``encode`` wrote -> pixels uint8 (1,H,W,3)."""
        codec = self.config.codec
        tokens = self.tokens(data, grid)
        height, width = (codec.stride // codec.latent_stride * side for side in grid)
        return self.render(tokens, noise(0, codec.latent_channels, height, width)[None], steps)

    @torch.inference_mode()
    def render(
        self,
        tokens: NDArray[np.int32],
        start: NDArray[np.float32],
        steps: int,
        condition: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> NDArray[np.uint8]:
        """Tokens (n,h,w) and noise -> pixels; ``condition``: what the flow takes of captions."""
        latent = sample(self.flow(), tokens, start, steps, None, self.config.codec, condition)
        pixels: NDArray[np.uint8] = self._decoder(_tensor(latent, self._device)).cpu().numpy()
        return pixels

    def flow(self) -> Any:
        """The flow as an engine."""
        return _TorchFlow(self._flow, self._device)

    def render_flops(self, *arguments: Any) -> int:
        """Operations of matrix products and convolutions in ``render(*arguments)``."""
        with FlopCounterMode(display=False) as counter:
            self.render(*arguments)
        return int(counter.get_total_flops())

    def _unknown(self, grid: tuple[int, ...]) -> torch.Tensor:
        return torch.full((1, *grid), self.config.codec.codebook_size, device=self._device)

    def _weights(self, tokens: torch.Tensor, cells: torch.Tensor) -> NDArray[np.int32]:
        """Integer weights (p,K) of flat cells of a grid (1,h,w)."""
        logits = self._logits(tokens).flatten(0, 2)[cells]
        octaves = (logits - logits.amax(-1, keepdim=True)) / 16
        weights = (65536 * octaves.exp2()).round().clamp_min(1).int()
        found: NDArray[np.int32] = weights.cpu().numpy()
        return found


class _Tensor:
    """A tensor that stays on its device between the steps of a flow."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.shape = tuple(tensor.shape)
        self.dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))

    def begin_fetch(self) -> None:
        """Nothing: see the contract of DeviceBuffer."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.tensor.cpu().numpy(), dtype)


def _tensor(buffer: Any, device: torch.device) -> torch.Tensor:
    """What a flow is given, or has made, as a tensor on the device."""
    if isinstance(buffer, _Tensor):
        return buffer.tensor
    return torch.from_numpy(np.ascontiguousarray(buffer)).to(device)


class _TorchFlow:
    """The flow as an engine, so that PyTorch's pictures are cut and blended as the runtime's."""

    inputs = ()
    max_batch: int | None = None

    def __init__(self, flow: Any, device: torch.device) -> None:
        self._flow, self._device = flow, device

    def run(self, feeds: Mapping[str, Buffer], *, on_device: bool = False) -> dict[str, Buffer]:
        made = self._flow(**{name: _tensor(feed, self._device) for name, feed in feeds.items()})
        if on_device and made.is_cuda:
            made = made.clone()  # the next run of a CUDA graph writes where this one has written
        return {"x_next": _Tensor(made) if on_device else made.cpu().numpy()}
