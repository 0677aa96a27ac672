"""The graphs of a bundle as PyTorch modules, with pre- and postprocessing inside.

What crosses a graph's border is uint8 images, int32 tokens and float32 latents, whatever precision
is inside; distances to the codebook, timesteps and the Euler update stay in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.engines.contract import TensorSpec
from percoedge.export.config import Config
from percoedge.export.family import Family


class EncoderGraph(nn.Module):
    """image uint8 (n,16h,16w,3) -> tokens int32 (n,h,w)."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.hyper, self.quantizer = family.vae, family.hyper, family.quantizer
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        pixels = image.permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1.0
        codes = self.quantizer.codes(self.hyper(self.vae.encode(pixels)))
        return self.quantizer.nearest(codes).to(torch.int32)


class FlowGraph(nn.Module):
    """One Euler step: x float32 (n,C,H,W), tokens (n,h,w), t (1,), dt (1,) -> x_next like x.

    Families with text take text float32 (n,l,D) and pooled float32 (n,P) besides.
    """

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.flow, self.dtype = family.flow, dtype
        self.register_buffer("table", family.quantizer.table().detach().to(dtype))

    def velocity(
        self, x: Tensor, tokens: Tensor, t: Tensor, text: Tensor | None, pooled: Tensor | None
    ) -> Tensor:
        """Velocity in float32; ``tokens`` may hold K for "no token"."""
        z = F.embedding(tokens, self.table).permute(0, 3, 1, 2)
        condition = None
        if text is not None and pooled is not None:
            condition = (text.to(self.dtype), pooled.to(self.dtype))
        velocity: Tensor = self.flow(x.to(self.dtype), z, t.expand(x.shape[0]), condition)
        return velocity.float()

    def forward(
        self,
        x: Tensor,
        tokens: Tensor,
        t: Tensor,
        dt: Tensor,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        return x - dt * self.velocity(x, tokens, t, text, pooled)


class GuidedFlowGraph(FlowGraph):
    """As FlowGraph, with classifier-free guidance: the batch runs twice, with and without z_l.

    Families with text run the second half on null_text and null_pooled, those of an empty caption.
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        tokens: Tensor,
        t: Tensor,
        dt: Tensor,
        guidance: Tensor,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
        null_text: Tensor | None = None,
        null_pooled: Tensor | None = None,
    ) -> Tensor:
        nothing = torch.full_like(tokens, self.table.shape[0] - 1)
        texts = torch.cat([text, null_text]) if text is not None else None
        pools = torch.cat([pooled, null_pooled]) if pooled is not None else None
        both = self.velocity(torch.cat([x, x]), torch.cat([tokens, nothing]), t, texts, pools)
        batch = x.shape[0]
        with_tokens, without = both[:batch], both[batch:]
        return x - dt * (without + guidance * (with_tokens - without))


class DecoderGraph(nn.Module):
    """x float32 (n,C,2h,2w) -> image uint8 (n,16h,16w,3)."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.dtype = family.vae, dtype

    def forward(self, x: Tensor) -> Tensor:
        decoded = self.vae.decode(x.to(self.dtype)).float()
        pixels = (decoded * 127.5 + 127.5).round().clamp(0.0, 255.0)
        return pixels.permute(0, 2, 3, 1).to(torch.uint8)


@dataclass(frozen=True)
class GraphPlan:
    """How to export one graph: its module, its border, and the file its weights go to.

    ``bounds`` caps symbolic axes (inclusive). Graphs with the same ``weights`` share that file.
    """

    build: Callable[[Family, torch.dtype], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: str
    bounds: dict[str, int]


def graph_plans(config: Config) -> dict[str, GraphPlan]:
    """The float graphs of a family by kind; the entropy graph is built in ``exact``."""
    codec, flow = config.codec, config.flow
    cells = codec.stride // codec.latent_stride
    image = TensorSpec("image", "uint8", ("n", f"{codec.stride}*h", f"{codec.stride}*w", 3))
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    latent = ("n", codec.latent_channels, f"{cells}*h", f"{cells}*w")
    x, x_next = TensorSpec("x", "float32", latent), TensorSpec("x_next", "float32", latent)
    t, dt, guidance = (TensorSpec(name, "float32", (1,)) for name in ("t", "dt", "guidance"))
    text: tuple[TensorSpec, ...] = ()
    null_text: tuple[TensorSpec, ...] = ()
    if flow.text:
        text_shape = ("n", flow.text_tokens, flow.joint_attention_dim)
        pooled_shape = ("n", flow.pooled_projection_dim)
        text, null_text = (
            (
                TensorSpec(f"{prefix}text", "float32", text_shape),
                TensorSpec(f"{prefix}pooled", "float32", pooled_shape),
            )
            for prefix in ("", "null_")
        )
    side = 2 * flow.pos_embed_max_size // cells  # the position table is in patches of 2x2 cells
    grid = {"h": side, "w": side}
    step = (x, tokens, t, dt)
    weights = "flow.weights"
    return {
        "encoder": GraphPlan(EncoderGraph, (image,), (tokens,), "encoder.weights", {}),
        "flow": GraphPlan(FlowGraph, (*step, *text), (x_next,), weights, grid),
        "flow_guided": GraphPlan(
            GuidedFlowGraph, (*step, guidance, *text, *null_text), (x_next,), weights, grid
        ),
        "decoder": GraphPlan(DecoderGraph, (x,), (image,), "decoder.weights", {}),
    }


def entropy_specs(config: Config) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Border of the entropy graph: tokens and flat positions -> integer weights."""
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    positions = TensorSpec("positions", "int32", ("p",))
    weights = TensorSpec("weights", "int32", ("n", "p", config.codec.codebook_size))
    return (tokens, positions), (weights,)
