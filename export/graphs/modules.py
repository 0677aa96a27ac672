"""The graphs of a bundle as PyTorch modules, with pre- and postprocessing inside.

What crosses a graph's border is uint8 images, int32 tokens and float32 latents, whatever precision
is inside; distances to the codebook, timesteps and the Euler update stay in float32.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.engines.contract import TensorSpec
from percoedge.export.config import Config
from percoedge.export.models.exportable import GraphPlan
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.text import (
    CLIP_TOWERS,
    ClipGraph,
    JoinGraph,
    T5Graph,
    tower_length,
)

DTYPES = {"fp16": torch.float16, "fp32": torch.float32}
"""What a float graph computes in, by variant; weights are stored as the first of them has them."""


class EncoderGraph(nn.Module):
    """image uint8 (n,16h,16w,3) -> tokens int32 (n,h,w)."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.hyper, self.quantizer = family.vae, family.hyper, family.quantizer
        self.dtype = dtype

    def forward(self, image: Tensor) -> Tensor:
        """Tokens of images; see the class."""
        # cast first: TensorRT does nothing else with bytes
        pixels = image.to(self.dtype).permute(0, 3, 1, 2) / 127.5 - 1.0
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
        """One Euler step, float32: x at the time t - dt."""
        return x - dt * self.velocity(x, tokens, t, text, pooled)


class GuidedFlowGraph(FlowGraph):
    """As FlowGraph, with classifier-free guidance: the batch runs twice, with and without z_l.

    Families with text run the second half on an empty caption's condition, which is in the graph.
    """

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__(family, dtype)
        if hasattr(family, "null_text"):
            self.register_buffer("null_text", family.null_text)
            self.register_buffer("null_pooled", family.null_pooled)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        tokens: Tensor,
        t: Tensor,
        dt: Tensor,
        guidance: Tensor,
        text: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """One Euler step with guidance, float32: x at the time t - dt."""
        batch = x.shape[0]
        nothing = torch.full_like(tokens, self.table.shape[0] - 1)
        texts = pools = None
        if text is not None and pooled is not None:
            texts = torch.cat([text, self.null_text.expand(batch, -1, -1)])
            pools = torch.cat([pooled, self.null_pooled.expand(batch, -1)])
        both = self.velocity(torch.cat([x, x]), torch.cat([tokens, nothing]), t, texts, pools)
        with_tokens, without = both[:batch], both[batch:]
        return x - dt * (without + guidance * (with_tokens - without))


class DecoderGraph(nn.Module):
    """x float32 (n,C,2h,2w) -> image uint8 (n,16h,16w,3)."""

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        super().__init__()
        self.vae, self.dtype = family.vae, dtype

    def forward(self, x: Tensor) -> Tensor:
        """Images of latents; see the class."""
        decoded = self.vae.decode(x.to(self.dtype)).float()
        pixels = (decoded * 127.5 + 127.5).round().clamp(0.0, 255.0)
        return pixels.permute(0, 2, 3, 1).to(torch.uint8)


def graph_plans(config: Config) -> dict[str, GraphPlan]:
    """The float graphs of a family by kind; the entropy graph is built in ``exact``."""
    codec, flow = config.codec, config.flow
    cells = codec.stride // codec.latent_stride
    image = TensorSpec("image", "uint8", ("n", f"{codec.stride}*h", f"{codec.stride}*w", 3))
    tokens = TensorSpec("tokens", "int32", ("n", "h", "w"))
    latent = ("n", codec.latent_channels, f"{cells}*h", f"{cells}*w")
    x, x_next = TensorSpec("x", "float32", latent), TensorSpec("x_next", "float32", latent)
    t, dt, guidance = (TensorSpec(name, "float32", (1,)) for name in ("t", "dt", "guidance"))
    text = _condition_specs(config) if flow.text else ()
    side = 2 * flow.pos_embed_max_size // cells  # the position table is in patches of 2x2 cells
    grid = {"h": side, "w": side}
    step = (x, tokens, t, dt)
    flow_file, flow_parts = "flow.weights", ("flow",)
    guided = GraphPlan(
        GuidedFlowGraph, (*step, guidance, *text), (x_next,), flow_file, flow_parts, grid
    )
    return {
        "encoder": GraphPlan(
            EncoderGraph, (image,), (tokens,), "encoder.weights", ("vae", "hyper")
        ),
        "flow": GraphPlan(FlowGraph, (*step, *text), (x_next,), flow_file, flow_parts, grid),
        **({"flow_guided": guided} if flow.guided else {}),
        "decoder": GraphPlan(DecoderGraph, (x,), (image,), "decoder.weights", ("vae",)),
        **_text_plans(config),
    }


def _condition_specs(config: Config) -> tuple[TensorSpec, ...]:
    """What the flow takes of a caption."""
    flow = config.flow
    return (
        TensorSpec("text", "float32", ("n", flow.text_tokens, flow.joint_attention_dim)),
        TensorSpec("pooled", "float32", ("n", flow.pooled_projection_dim)),
    )


def _text_plans(config: Config) -> dict[str, GraphPlan]:
    """A graph ``text_<tower>`` per tower, and ``text_join`` from their outputs to the flow."""
    plans = {}
    parts: list[TensorSpec] = []
    for name, table in config.text.items():
        length = tower_length(config, name)
        width = table["d_model" if name == "t5" else "hidden_size"]
        outputs = [TensorSpec(name, "float32", ("n", length, width))]
        if name in CLIP_TOWERS:
            outputs.append(TensorSpec(f"{name}_pooled", "float32", ("n", table["projection_dim"])))
        kind = f"text_{name}"
        plans[kind] = GraphPlan(
            partial(_tower_graph, name),
            (TensorSpec("ids", "int32", ("n", length)),),
            tuple(outputs),
            f"{kind}.weights",
            (f"text.{name}",),
        )
        parts += outputs
    if parts:
        flow = config.flow
        plans["text_join"] = GraphPlan(
            lambda family, dtype: JoinGraph(flow.text_tokens, flow.joint_attention_dim),
            tuple(parts),
            _condition_specs(config),
            "text_join.weights",
            (),
        )
    return plans


def _tower_graph(name: str, family: Family, dtype: torch.dtype) -> nn.Module:
    graph = ClipGraph if name in CLIP_TOWERS else T5Graph
    return graph(family.text[name])
