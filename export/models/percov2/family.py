"""All parts of a model family in one module, built from its configuration."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from percoedge.export.config import Config
from percoedge.export.models.mim import Mim
from percoedge.export.models.percov2.flow import FlowModel
from percoedge.export.models.percov2.hyper import HyperEncoder, VectorQuantizer
from percoedge.export.models.percov2.text import build_tower
from percoedge.export.models.percov2.vae import build_vae


class Family(nn.Module):
    """Autoencoder, hyper-encoder, quantiser, flow, entropy model and text towers.

    Those with text have ``null_text`` (1,L,D) and ``null_pooled`` (1,P): the condition of an empty
    caption, for guidance; zeros until the export computes it.
    """

    null_text: Tensor
    null_pooled: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        codec, flow = config.codec, config.flow
        self.vae = build_vae(config.vae, codec.latent_channels)
        self.hyper = HyperEncoder(config.hyper, codec.latent_channels)
        self.quantizer = VectorQuantizer(
            config.hyper.features,
            config.hyper.code_dim,
            codec.codebook_size,
            flow.condition_channels,
        )
        self.flow = FlowModel(flow, codec.latent_channels, codec.stride // codec.latent_stride)
        self.mim = Mim(config.mim, codec.codebook_size)
        self.text = nn.ModuleDict({n: build_tower(n, table) for n, table in config.text.items()})
        if flow.text:
            null_text = torch.zeros(1, flow.text_tokens, flow.joint_attention_dim)
            null_pooled = torch.zeros(1, flow.pooled_projection_dim)
            self.register_buffer("null_text", null_text, persistent=False)
            self.register_buffer("null_pooled", null_pooled, persistent=False)

    def tokens(self, latent: Tensor) -> Tensor:
        """Latents (n,c,rH,rW) of the autoencoder -> tokens int64 (n,H,W); r: latents a token."""
        return self.quantizer.nearest(self.quantizer.codes(self.hyper(latent)))
