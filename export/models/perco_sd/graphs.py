"""The graphs of a PerCo (SD) bundle that this family alone has: its steps, and its text tower."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTextModel

from percoedge.export.models.perco_sd.network import Quantizer, Vae


class Denoiser(nn.Module):
    """Velocity of a latent: x (n,4,H,W), tokens (n,h,w), t (1,) and text (n,77,D) -> like x.

    ``taps`` (9,K+1,C): what the first layer makes of the codes around a cell, by place and token.
    A convolution of what a table gives is the sum of the rows of nine tables; so the codes cost a
    step next to nothing. The last row, of zeros, is what lies outside.
    """

    taps: Tensor

    def __init__(self, unet: UNet2DConditionModel, table: Tensor, cells: int) -> None:
        super().__init__()
        first = unet.conv_in_extended
        channels = int(unet.config.in_channels)
        self.cells = cells
        self.unet = unet
        rows = torch.cat([table, torch.zeros_like(table[:1])]).double()
        places = first.weight[:, channels:].double().permute(2, 3, 1, 0).flatten(0, 1)  # (9,c,C)
        self.register_buffer("taps", (rows @ places).float())
        layer = nn.Conv2d(channels, first.out_channels, 3, padding=1)
        layer.weight = nn.Parameter(first.weight[:, :channels].clone(), requires_grad=False)
        layer.bias = first.bias
        unet.conv_in = _FirstLayer(layer, channels)
        del unet.conv_in_extended
        for module in unet.modules():
            if isinstance(module, Attention):
                module.set_processor(_Float32Scores())

    def condition(self, tokens: Tensor) -> Tensor:
        """The first layer's share of the tokens (n,h,w): (n,C,cells*h,cells*w)."""
        batch, height, width = tokens.shape
        times = self.cells
        spread = tokens[:, :, None, :, None].expand(-1, -1, times, -1, times)
        spread = spread.reshape(batch, height * times, width * times)
        padded = F.pad(spread, (1, 1, 1, 1), value=self.taps.shape[1] - 1)
        rows = []
        for place, table in enumerate(self.taps):
            top, left = divmod(place, 3)
            cells = padded[:, top : top + height * times, left : left + width * times]
            rows.append(F.embedding(cells, table))
        return reduce(torch.add, rows).permute(0, 3, 1, 2)

    def forward(self, x: Tensor, condition: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Velocity in the precision of the weights; ``t``: steps of training."""
        velocity: Tensor = self.unet(torch.cat([x, condition], dim=1), t, text, return_dict=False)[
            0
        ]
        return velocity


class _FirstLayer(nn.Module):
    """The convolution of the first channels, with the others, already computed, added."""

    def __init__(self, layer: nn.Conv2d, channels: int) -> None:
        super().__init__()
        self.layer, self.channels = layer, channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x[:, : self.channels])
        return y + x[:, self.channels :]


class _Float32Scores:
    """Attention whose scores and softmax are in float32: in FP16 those of this model overflow."""

    def __call__(
        self, attn: Attention, x: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        """(n,l,C) among themselves, or over the text (n,m,D)."""
        context = x if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(source).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
            for layer, source in ((attn.to_q, x), (attn.to_k, context), (attn.to_v, context))
        )
        scores = (query.float() * attn.scale) @ key.float().transpose(2, 3)
        mixed = scores.softmax(-1).to(value.dtype) @ value
        projected: Tensor = attn.to_out[0](mixed.transpose(1, 2).flatten(2))
        return projected


class Codec(nn.Module):
    """What a bundle is made of: ``vae``, ``hyper``, ``quantizer``, ``denoiser``, ``text`` if any.

    ``null_text`` (1,77,D): the condition of an empty caption.
    """

    null_text: Tensor

    def __init__(
        self,
        vae: Vae,
        hyper: nn.Module,
        quantizer: Quantizer,
        denoiser: Denoiser,
        text: CLIPTextModel | None,
        null_text: Tensor,
    ) -> None:
        super().__init__()
        self.vae, self.hyper, self.quantizer = vae, hyper, quantizer
        self.denoiser, self.text = denoiser, text
        self.register_buffer("null_text", null_text)


class FlowGraph(nn.Module):
    """One step: x float32 (n,4,H,W), tokens (n,h,w), t (1,), dt (1,), [text] -> x_next like x.

    With velocities v = alpha * noise - sigma * latent, DDIM turns x by an angle towards the latent:
    x cos(dt) - v sin(dt) (Salimans and Ho, arXiv 2202.00512, appendix D). ``t``: steps of
    training; ``dt``: radians. Without ``text``, captions are empty.
    """

    def __init__(self, codec: Codec, dtype: torch.dtype) -> None:
        super().__init__()
        self.denoiser, self.dtype = codec.denoiser, dtype
        self.register_buffer("null_text", codec.null_text)

    def forward(
        self, x: Tensor, tokens: Tensor, t: Tensor, dt: Tensor, text: Tensor | None = None
    ) -> Tensor:
        """One step, float32."""
        if text is None:
            text = self.null_text.expand(x.shape[0], -1, -1)
        z = self.denoiser.condition(tokens)
        velocity = self.denoiser(x.to(self.dtype), z, t, text.to(self.dtype))
        return _turned(x, velocity.float(), dt)


class GuidedFlowGraph(FlowGraph):
    """As FlowGraph, with classifier-free guidance away from an empty caption; tokens stay."""

    def forward(  # type: ignore[override]
        self, x: Tensor, tokens: Tensor, t: Tensor, dt: Tensor, guidance: Tensor, text: Tensor
    ) -> Tensor:
        """One step with guidance, float32."""
        batch = x.shape[0]
        z = self.denoiser.condition(tokens)
        texts = torch.cat([text, self.null_text.expand(batch, -1, -1)]).to(self.dtype)
        both = self.denoiser(torch.cat([x, x]).to(self.dtype), torch.cat([z, z]), t, texts).float()
        with_text, without = both[:batch], both[batch:]
        return _turned(x, without + guidance * (with_text - without), dt)


def _turned(x: Tensor, velocity: Tensor, angle: Tensor) -> Tensor:
    return torch.cos(angle) * x - torch.sin(angle) * velocity


class TextGraph(nn.Module):
    """ids int32 (n,77) -> text float32 (n,77,D): the last hidden states, normalised."""

    def __init__(self, tower: CLIPTextModel) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        """Hidden states of ids."""
        hidden: Tensor = self.tower(input_ids=ids).last_hidden_state
        return hidden.float()
