"""Margins must cover what an encoder and a decoder see, whatever they are made of."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace
from torch import nn

from percoedge.errors import BundleError
from percoedge.export.bundle import export_bundle
from percoedge.export.checks.margins import check_margins, reach_of
from percoedge.export.config import Config, at_rate, load_config
from percoedge.export.models.percov2.family import Family
from percoedge.export.models.percov2.vae import build_vae


@pytest.mark.parametrize(("kernel", "layers", "size"), [(1, 1, 1), (3, 1, 1), (3, 5, 2), (7, 3, 4)])
def test_the_reach_of_convolutions(kernel: int, layers: int, size: int) -> None:
    """Zero weights and ReLUs hide nothing; one pixel of the next token is enough."""
    body = [nn.Conv2d(2, 2, kernel, padding=kernel // 2), nn.ReLU()] * layers
    for convolution in body:
        for parameter in convolution.parameters():
            nn.init.zeros_(parameter)
    reach = -(-(kernel // 2 * layers) // size)
    assert reach_of(nn.Sequential(*body), 2, size) == reach
    assert reach_of(nn.Sequential(*body), 2, size, expected=reach) == reach


@pytest.mark.parametrize("kernel", [(1, 5), (5, 1)])
def test_the_longer_axis_counts(kernel: tuple[int, int]) -> None:
    padding = (kernel[0] // 2, kernel[1] // 2)
    assert reach_of(nn.Conv2d(1, 1, kernel, padding=padding), 1, 1) == 2


def test_what_is_normalised_over_the_image_has_no_reach() -> None:
    assert reach_of(nn.Sequential(nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 1)), 2, 1) is None


def margins(config: Config, **changed: int) -> Config:
    return replace(config, codec=replace(config.codec, **changed))


@pytest.mark.slow
def test_margins_that_are_one_too_small_are_refused(
    family: Family, config: Config, tmp_path: Path
) -> None:
    codec = config.codec
    encoder = reach_of(lambda image: family.hyper(family.vae.encode(image)), 3, codec.stride, 16)
    decoder = reach_of(family.vae.decode, codec.latent_channels, codec.stride // 8, 8)
    assert encoder is not None and decoder is not None
    enough = margins(config, encoder_margin=encoder, decoder_margin=decoder)
    assert check_margins(family, enough) == {}
    for kind, reach in (("encoder", encoder), ("decoder", decoder)):
        short = margins(enough, **{f"{kind}_margin": reach - 1})
        message = rf"expected {kind}_margin of at least {reach} tokens.*got {reach - 1}; set codec"
        with pytest.raises(BundleError, match=message):
            export_bundle(family, short, tmp_path / kind, name="micro", licence="-")
        assert not (tmp_path / kind).exists()


@pytest.mark.slow
def test_margins_of_the_shipped_configuration() -> None:
    config = load_config("tiny")
    assert check_margins(Family(config).eval(), config) == {}


@pytest.mark.slow
def test_the_full_size_autoencoder_is_said_to_be_approximate(
    family: Family, config: Config
) -> None:
    vae = replace(config.vae, kind="kl", block_out_channels=[8, 8, 8, 8], layers_per_block=1)
    made = Family(config)
    made.vae, made.hyper = build_vae(vae, config.codec.latent_channels), family.hyper
    notes = check_margins(made.eval(), config)
    assert {"encoder_margin", "decoder_margin"} == notes.keys()
    assert all(note.startswith("an approximation") for note in notes.values())


@pytest.mark.slow
@pytest.mark.parametrize("rate", ["0.1250", "0.0313", "0.0098", "0.0019"])
def test_margins_of_every_rate_cover_the_small_decoder(rate: str) -> None:
    codec = at_rate(load_config("sd3-medium"), rate).codec
    config = load_config("sd3-medium").vae
    vae = replace(config, tiny_decoder=True, block_out_channels=[8, 8, 8, 8], layers_per_block=1)
    decoder = build_vae(vae, 16).eval()
    reach = reach_of(decoder.decode, 16, codec.stride // codec.latent_stride, codec.decoder_margin)
    assert reach is not None and reach <= codec.decoder_margin
