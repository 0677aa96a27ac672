"""Rectified-flow decoder: diffusers' SD3 transformer with z_l as extra input channels.

Convention: x_t = (1 - t) * latent + t * noise, velocity v = noise - latent, so one Euler step is
x_{t-dt} = x_t - dt * v and a single step from t = 1 gives noise - v.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import SD3Transformer2DModel
from diffusers.models.attention_processor import JointAttnProcessor2_0
from diffusers.models.embeddings import PatchEmbed, TimestepEmbedding, Timesteps
from diffusers.models.transformers.transformer_sd3 import SD3SingleTransformerBlock
from torch import Tensor, nn

from percoedge.export.config import FlowConfig
from percoedge.export.models.precision import attends_faster_in_float32


class TrainedAttention(JointAttnProcessor2_0):
    """SD3's attention; under autocast on a CPU, in the precision that is faster there."""

    def __call__(self, attn: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Attention of (B,N,C) hidden states among themselves; see the base class."""
        on_cpu = hidden_states.device.type == "cpu"
        if on_cpu and torch.is_autocast_enabled("cpu") and attends_faster_in_float32():
            with torch.autocast("cpu", enabled=False):
                return super().__call__(attn, hidden_states.float(), *args, **kwargs)
        return super().__call__(attn, hidden_states, *args, **kwargs)


class TextFreeBlock(SD3SingleTransformerBlock):
    """SD3's block without the text stream, called as the transformer calls its joint blocks."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__(width, heads, head_dim)
        self.attn.set_processor(TrainedAttention())

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None,
        temb: Tensor,
        joint_attention_kwargs: dict[str, object] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Both streams, of which the text's passes through as it came."""
        return encoder_hidden_states, super().forward(hidden_states, temb)


class TimeEmbedding(nn.Module):
    """SD3's conditioning vector from the timestep alone; the pooled text is ignored."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.timestep_embedder = TimestepEmbedding(256, width)

    def forward(self, timestep: Tensor, pooled_projections: Tensor | None) -> Tensor:
        """Vectors (n,width) of timesteps (n,)."""
        dtype = self.timestep_embedder.linear_1.weight.dtype
        embedded: Tensor = self.timestep_embedder(self.time_proj(timestep).to(dtype))
        return embedded


class PlacedPatchEmbed(PatchEmbed):
    """Patch embedding whose window into the position table can be moved while training.

    ``window`` = (top, left); None is SD3's centre crop, the one that is exported.
    """

    window: tuple[int, int] | None = None

    def cropped_pos_embed(self, height: int, width: int) -> Tensor:
        """Embeddings of the window's positions for a latent of that height and width."""
        size = self.pos_embed_max_size
        rows, columns = height // self.patch_size, width // self.patch_size
        if self.window is None:
            # SD3's (size - rows) // 2; written so that the exported division never sees a negative
            # number, which ONNX would round the other way
            top, left = size // 2 - (rows + 1) // 2, size // 2 - (columns + 1) // 2
        else:
            top, left = self.window
        table = self.pos_embed.reshape(1, size, size, -1)
        return table[:, top : top + rows, left : left + columns].flatten(1, 2)


class FlowModel(nn.Module):
    """Velocity of the flow: (x_t, z_l, t, text) -> v.

    x_t (B,C,H,W) latent; z_l (B,M,h,w) with H = repeat * h; t (B,) in
    [0,1]; text None, or (tokens (B,L,joint_attention_dim), pooled (B,pooled_projection_dim)).
    """

    def __init__(self, config: FlowConfig, latent_channels: int, repeat: int) -> None:
        super().__init__()
        width = config.heads * config.head_dim
        # positions are scaled to the side of the transformer's own pictures, in patches
        side = 2 * (config.pos_embed_base_size or config.pos_embed_max_size)
        self.repeat = repeat  # latent cells per token, each way
        self.transformer = SD3Transformer2DModel(
            sample_size=side,
            patch_size=2,
            in_channels=latent_channels + config.condition_channels,
            out_channels=latent_channels,
            num_layers=config.layers if config.text else 0,
            attention_head_dim=config.head_dim,
            num_attention_heads=config.heads,
            joint_attention_dim=config.joint_attention_dim if config.text else 1,
            pooled_projection_dim=config.pooled_projection_dim if config.text else 1,
            caption_projection_dim=width,
            pos_embed_max_size=config.pos_embed_max_size,
        )
        self.transformer.pos_embed = PlacedPatchEmbed(
            height=side,
            width=side,
            patch_size=2,
            in_channels=latent_channels + config.condition_channels,
            embed_dim=width,
            pos_embed_max_size=config.pos_embed_max_size,
        )
        if not config.text:
            self.transformer.context_embedder = nn.Identity()
            self.transformer.time_text_embed = TimeEmbedding(width)
            self.transformer.transformer_blocks = nn.ModuleList(
                TextFreeBlock(width, config.heads, config.head_dim) for _ in range(config.layers)
            )
        self._start_as_identity()

    def _start_as_identity(self) -> None:
        """Zero the gates and the output, as DiT does (arXiv 2212.09748), for a calm start."""
        layers = [block.norm1.linear for block in self.transformer.transformer_blocks]
        for layer in [*layers, self.transformer.norm_out.linear, self.transformer.proj_out]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def place(self, window: tuple[int, int] | None) -> None:
        """Move the position window for the next calls (training only)."""
        self.transformer.pos_embed.window = window

    def forward(
        self, x: Tensor, z: Tensor, t: Tensor, text: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """Velocity like ``x``; ``z`` are codes at token size, ``text`` states and pooled states."""
        # as two calls of repeat_interleave would, but a single operator of ONNX
        repeated = F.interpolate(z, scale_factor=self.repeat, mode="nearest")
        whole = torch.cat([x, repeated], dim=1)
        if self.repeat % 2:
            # An odd side is one cell short of whole patches; behind an even one the extra row or
            # column is left over by the patch embedding.
            whole = torch.cat([whole, whole[:, :, -1:]], dim=2)
            whole = torch.cat([whole, whole[:, :, :, -1:]], dim=3)
        velocity: Tensor = self.transformer(
            hidden_states=whole,
            encoder_hidden_states=None if text is None else text[0],
            pooled_projections=None if text is None else text[1],
            timestep=1000.0 * t,
            return_dict=False,
        )[0]
        if self.repeat % 2:
            velocity = velocity[:, :, : x.shape[2], : x.shape[3]]
        return velocity
