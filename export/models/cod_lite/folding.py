"""The denoiser at its only step, with everything that does not depend on the tokens computed once.

At t = 0 and without noise the time embedding, and with it shift, scale and gate of every block, are
constants: they go into the weights of the layers around them. So do the affine parts of the norms,
and the network on pixels needs no table of positions: that is in the bias of the layer before.
Notation and formulae: arXiv 2604.12525; DiCo's blocks, arXiv 2505.11196.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from percoedge.export.models.cod_lite.config import PATCH
from percoedge.export.models.cod_lite.network import DCT_SIDE, Network

_EPSILON = 1e-6
_PIXELS = PATCH**2


class Block(nn.Module):
    """x (n,h,w,c) -> the same: depthwise convolution with channel attention, then an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.attention = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """One block of the trunk."""
        y = self.first(_normalised(x)).permute(0, 3, 1, 2)
        y = F.gelu(self.depthwise(y)).permute(0, 2, 3, 1)
        mean = y.float().mean((1, 2), keepdim=True).to(y.dtype)  # of the whole picture
        y = y * torch.sigmoid(self.attention(mean))
        x = x + self.second(y)
        return x + self.down(F.gelu(self.up(_normalised(x))))


class PixelBlock(nn.Module):
    """x (n,h,w,256,c) -> the same; ``condition`` is of its shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """One residual block of the network on pixels."""
        shift, scale, gate = self.modulation(condition).chunk(3, dim=-1)
        y = _normalised(x) * scale + shift
        return x + gate * self.second(F.silu(self.first(y)))


class Denoiser(nn.Module):
    """Condition (n,c,h,w) -> image (n,16h,16w,3) in [-1,1], not clipped."""

    def __init__(self, width: int, blocks: int, pixel_width: int, pixel_blocks: int) -> None:
        super().__init__()
        self.start = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.pixels = nn.Linear(width, _PIXELS * pixel_width)
        self.condition = nn.Linear(width, _PIXELS * pixel_width)
        self.pixel_blocks = nn.ModuleList(PixelBlock(pixel_width) for _ in range(pixel_blocks))
        self.last = nn.Linear(pixel_width, 3)

    def forward(self, condition: Tensor) -> Tensor:
        """The trunk on patches, then the network on pixels."""
        patches = condition.permute(0, 2, 3, 1)
        count, height, width = patches.shape[:3]
        x = self.start(patches)
        for block in self.blocks:
            x = block(x)
        pixels = self.pixels(patches).unflatten(-1, (_PIXELS, -1))
        condition = F.silu(self.condition(x)).unflatten(-1, (_PIXELS, -1))
        for pixel_block in self.pixel_blocks:
            pixels = pixel_block(pixels, condition)
        single = pixels.float()
        size = torch.rsqrt(single.square().mean(-1, keepdim=True) + _EPSILON)
        colours = self.last((single * size).to(pixels.dtype))
        rows = colours.unflatten(3, (PATCH, PATCH)).permute(0, 1, 3, 2, 4, 5)
        return rows.reshape(count, height * PATCH, width * PATCH, 3)


def _normalised(x: Tensor) -> Tensor:
    """LayerNorm over the last axis without scale and shift, in float32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=_EPSILON).to(x.dtype)


@torch.no_grad()
def folded(network: Network) -> Denoiser:
    """The denoiser of a network in float32; folded in float64, so that nothing is lost twice."""
    wide = {
        name: tensor.double()
        for name, tensor in network.state_dict().items()
        if not name.startswith("y_embedder.")
    }
    denoiser = Denoiser(
        network.y_embedder_x.in_channels,
        len(network.blocks),
        network.dec_net.input_proj.in_features,
        len(network.dec_net.res_blocks),
    )
    start = torch.cat([torch.ones(128), torch.zeros(128)]).double()  # cosines and sines of 0
    hidden = F.silu(F.linear(start, wide["t_embedder.mlp.0.weight"], wide["t_embedder.mlp.0.bias"]))
    time = F.linear(hidden, wide["t_embedder.mlp.2.weight"], wide["t_embedder.mlp.2.bias"])
    # The weights for the noise, of which there is none, come first.
    weight = wide["s_embedder.proj2.weight"][:, -network.y_embedder_x.in_channels :, 0, 0]
    _fill(denoiser.start, weight, wide["s_embedder.proj2.bias"])
    for index, block in enumerate(denoiser.blocks):
        _fold_block(block, _below(wide, f"blocks.{index}."), F.silu(time))  # type: ignore[arg-type]
    _fold_pixels(denoiser, wide)
    return denoiser.float().eval()


def _fold_block(block: Block, of: dict[str, Tensor], time: Tensor) -> None:
    modulation = F.linear(time, of["adaLN_modulation.1.weight"], of["adaLN_modulation.1.bias"])
    shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6)
    first, second, up, down, attention = (
        of[f"{name}.weight"][:, :, 0, 0] for name in ("conv1", "conv3", "conv4", "conv5", "ca.1")
    )
    _fill(block.first, first * (1 + scale1), of["conv1.bias"] + first @ shift1)
    _fill(block.depthwise, of["conv2.weight"], of["conv2.bias"])
    _fill(block.attention, attention, of["ca.1.bias"])
    _fill(block.second, second * gate1[:, None], of["conv3.bias"] * gate1)
    _fill(block.up, up * (1 + scale2), of["conv4.bias"] + up @ shift2)
    _fill(block.down, down * gate2[:, None], of["conv5.bias"] * gate2)


def _fold_pixels(denoiser: Denoiser, of: dict[str, Tensor]) -> None:
    # Noise, condition and position enter one linear layer, and its result the next one.
    width = len(of["dec_net.input_proj.bias"])
    embed, project = of["x_embedder.embedder.0.weight"], of["dec_net.input_proj.weight"]
    both = project @ embed[:, 3 : 3 + width]
    constant = (
        project
        @ (
            embed[:, 3 + width :] @ positions().double().T
            + of["x_embedder.embedder.0.bias"][:, None]
        )
        + of["dec_net.input_proj.bias"][:, None]
    )  # (c,256)
    # Rows of y_embedder_x are (channel, pixel); those here (pixel, channel).
    weight = of["y_embedder_x.weight"].reshape(width, _PIXELS, -1)
    bias = of["y_embedder_x.bias"].reshape(width, _PIXELS)
    _fill(
        denoiser.pixels,
        torch.einsum("dc,cpk->pdk", both, weight).flatten(0, 1),
        (both @ bias + constant).T.flatten(),
    )
    _fill(denoiser.condition, of["dec_net.cond_embed.weight"], of["dec_net.cond_embed.bias"])
    for index, block in enumerate(denoiser.pixel_blocks):
        inner = _below(of, f"dec_net.res_blocks.{index}.")
        _fold_pixel_block(block, inner)  # type: ignore[arg-type]
    _fill(
        denoiser.last,
        of["final_layer.linear.weight"] * of["final_layer.norm.weight"],
        of["final_layer.linear.bias"],
    )


def _fold_pixel_block(block: PixelBlock, of: dict[str, Tensor]) -> None:
    """(norm * g + b) * (1 + scale) + shift = norm * scale' + shift', linear in the condition."""
    gain, offset = of["in_ln.weight"], of["in_ln.bias"]
    shift, scale, gate = of["adaLN_modulation.1.weight"].chunk(3)
    shift_bias, scale_bias, gate_bias = of["adaLN_modulation.1.bias"].chunk(3)
    weight = torch.cat([shift + scale * offset[:, None], scale * gain[:, None], gate])
    bias = torch.cat([shift_bias + (1 + scale_bias) * offset, (1 + scale_bias) * gain, gate_bias])
    _fill(block.modulation, weight, bias)
    _fill(block.first, of["mlp.0.weight"], of["mlp.0.bias"])
    _fill(block.second, of["mlp.2.weight"], of["mlp.2.bias"])


def positions() -> Tensor:
    """What tells the pixels of a patch apart: float64 (256,64), rows by row and column.

    cos(pi x f) cos(pi y g) / (1 + f g) with x and y from 0 to 1 over a patch and f, g of
    linspace(0, 8, 8); f, which goes with x, varies slowest.
    """
    place = torch.linspace(0, 1, PATCH, dtype=torch.float64)
    frequency = torch.linspace(0, DCT_SIDE, DCT_SIDE, dtype=torch.float64)
    waves = torch.cos(math.pi * place[:, None] * frequency)  # (place, frequency)
    damping = 1 + frequency[:, None] * frequency
    table = waves[None, :, :, None] * waves[:, None, None, :] / damping
    return table.reshape(_PIXELS, DCT_SIDE**2)


def _fill(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.load_state_dict({"weight": weight, "bias": bias})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
