"""Train a family: ``python -m percoedge.export.train tiny --photos D --validation D --out D``.

Runs all stages in order; each leaves a checkpoint in ``--out`` and is resumed or skipped when it
is run again. The last line writes ``<out>/family.pt``, which ``percoedge.export.bundle`` turns into
a bundle. With ``--start BUNDLE`` only the stage ``refine`` is trained, from the weights of a
bundle, whose streams the result still reads.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from percoedge.engines.bundle import Bundle
from percoedge.export.config import load_config
from percoedge.export.models.family import Family
from percoedge.export.training.data import Photos
from percoedge.export.training.latents import LatentPhotos
from percoedge.export.training.stages import (
    freeze,
    latent_statistics,
    train_codec,
    train_vae,
    validation_images,
)
from percoedge.export.training.stages_mim import train_mim
from percoedge.export.training.stages_refine import train_refine
from percoedge.export.training.trainer import pick_device
from percoedge.export.training.warm_start import family_from_bundle


def train(
    config_name: str,
    photo_dir: Path,
    validation_dir: Path,
    out: Path,
    device_name: str = "auto",
    limit: int | None = None,
    start: str | None = None,
) -> Family:
    """Run every stage of ``config_name`` and return the trained family.

    ``limit`` uses only so many photos (dry run). ``start``: a bundle to refine, instead of
    training all of it. Raises ValueError when a folder has no photos, BundleError when the bundle
    is not of the configuration.
    """
    config = load_config(config_name)
    device = pick_device(device_name)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    family = Family(config) if start is None else family_from_bundle(Bundle.open(start), config)
    family.to(device, memory_format=torch.channels_last)
    photos = Photos(photo_dir, limit)
    valid = validation_images(validation_dir, device)
    if start is None:
        train_vae(family.vae, config, photos, valid, out)
        latent_statistics(family.vae, photos)
    freeze(family.vae)
    latents = LatentPhotos(family.vae, photos, config.codec.latent_stride)
    if start is None:
        train_codec(family, config, latents, valid, out, "codec")
        train_codec(family, config, latents, valid, out, "codec_wide")
    freeze(family.hyper)
    freeze(family.quantizer)
    train_refine(family, config, latents, valid, out)
    if start is None:
        train_mim(family, config, latents, valid, out)
    torch.save(family.state_dict(), out / "family.pt")
    return family


def main() -> None:
    """Command line of the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="shipped configuration (tiny) or path to a TOML file")
    parser.add_argument("--photos", type=Path, required=True, help="folder of training photos")
    parser.add_argument("--validation", type=Path, required=True, help="folder of other photos")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and curves")
    parser.add_argument("--start", metavar="BUNDLE", help="refine a bundle, keep its tokens")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--limit", type=int, help="use so many photos only (dry run)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    places = (args.photos, args.validation, args.out)
    train(args.config, *places, args.device, args.limit, args.start)


if __name__ == "__main__":
    main()
