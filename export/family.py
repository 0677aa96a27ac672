"""All parts of a model family in one module, built from its configuration."""

from __future__ import annotations

from torch import nn

from percoedge.export.config import Config
from percoedge.export.flow import FlowModel
from percoedge.export.hyper import HyperEncoder, VectorQuantizer
from percoedge.export.mim import Mim
from percoedge.export.vae import build_vae


class Family(nn.Module):
    """Autoencoder, hyper-encoder, quantiser, flow and entropy model of one configuration."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        codec = config.codec
        self.vae = build_vae(config.vae, codec.latent_channels)
        self.hyper = HyperEncoder(config.hyper, codec.latent_channels)
        self.quantizer = VectorQuantizer(
            config.hyper.features,
            config.hyper.code_dim,
            codec.codebook_size,
            config.flow.condition_channels,
        )
        self.flow = FlowModel(
            config.flow, codec.latent_channels, codec.stride // codec.latent_stride
        )
        self.mim = Mim(config.mim, codec.codebook_size)
