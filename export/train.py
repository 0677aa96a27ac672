"""Train a family: ``python -m percoedge.export.train tiny --photos D --validation D --out D``.

Runs all stages in order; each leaves a checkpoint in ``--out`` and is resumed or skipped when it
is run again. The last line writes ``<out>/family.pt``, which ``percoedge.export.bundle`` turns into
a bundle. ``--start BUNDLE`` goes on from a bundle's weights, with the stages from ``joint`` on;
``--keep-tokens`` then trains ``refine`` alone, and the bundle's streams stay readable. On several
GPUs: ``torchrun --nproc-per-node N -m percoedge.export.train ...`` shares each batch among them.

    python -m percoedge.export.train mim --bundle B --photos D --validation D --out D

trains an entropy model alone, for the tokens of any bundle: see percoedge.export.entropy.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from msgspec.structs import replace

from percoedge.engines.bundle import Bundle
from percoedge.export.config import load_config
from percoedge.export.entropy import main as train_entropy_model
from percoedge.export.models.percov2.family import Family
from percoedge.export.training.data import Photos
from percoedge.export.training.features import Features
from percoedge.export.training.stages import (
    freeze,
    latent_statistics,
    train_codec,
    train_vae,
    validation_images,
)
from percoedge.export.training.stages_joint import train_joint, train_refine
from percoedge.export.training.stages_mim import family_tokens, train_mim
from percoedge.export.training.trainer import (
    joined_processes,
    pick_device,
    place_among_processes,
    share_of,
)
from percoedge.export.training.warm_start import family_from_bundle


def train(
    config_name: str,
    photo_dir: Path,
    validation_dir: Path,
    out: Path,
    device_name: str = "auto",
    limit: int | None = None,
    start: str | None = None,
    keep_tokens: bool = False,
) -> Family:
    """Run every stage of ``config_name`` and return the trained family.

    ``limit`` uses only so many photos (dry run). ``start``: a bundle to go on from, instead of
    training all of it; with ``keep_tokens`` only its decoding side changes.

    Raises ValueError when a folder has no photos or one is too small, BundleError when the bundle
    is not of the configuration, UsageError when the processes of torchrun cannot share a batch.
    """
    config = load_config(config_name)
    rank, processes = place_among_processes()
    stages = {name: share_of(stage, processes) for name, stage in config.train.items()}
    config = replace(config, train=stages)
    device = pick_device(device_name)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # losses take differences of squares
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    family = Family(config) if start is None else family_from_bundle(Bundle.open(start), config)
    family.to(device, memory_format=torch.channels_last)
    photos = Photos(photo_dir, limit)
    photos.check_sides(
        max(
            stage.crop * (config.codec.stride if name.startswith("mim") else 1)
            for name, stage in stages.items()
        )
    )
    valid = validation_images(validation_dir, device)
    features = Features().to(device, memory_format=torch.channels_last)
    if start is None:
        train_vae(family.vae, config, photos, valid, out)
        latent_statistics(family.vae, photos)
        freeze(family.vae)
        train_codec(family, config, photos, valid, out, "codec")
        train_codec(family, config, photos, valid, out, "codec_wide")
        family.mim.start_from(family.quantizer.codebook)
    if not keep_tokens:
        train_joint(family, config, photos, valid, out, features)
    train_refine(family, config, photos, valid, out, features)
    if not keep_tokens:
        tokens = family_tokens(family, config, photos, valid)
        train_mim(family.mim, tokens, stages, out, config.seed)
    if rank == 0:
        torch.save(family.state_dict(), out / "family.pt")
    return family


def main() -> None:
    """Command line of the recipe."""
    if sys.argv[1:2] == ["mim"]:
        train_entropy_model(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="shipped configuration (tiny) or path to a TOML file")
    parser.add_argument("--photos", type=Path, required=True, help="folder of training photos")
    parser.add_argument("--validation", type=Path, required=True, help="folder of other photos")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and curves")
    parser.add_argument("--start", metavar="BUNDLE", help="go on from the weights of a bundle")
    parser.add_argument(
        "--keep-tokens", action="store_true", help="with --start: change the decoding side only"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--limit", type=int, help="use so many photos only (dry run)")
    args = parser.parse_args()
    if args.keep_tokens and args.start is None:
        parser.error("--keep-tokens needs --start")
    if args.threads:
        torch.set_num_threads(args.threads)
    places = (args.photos, args.validation, args.out)
    with joined_processes():
        train(args.config, *places, args.device, args.limit, args.start, args.keep_tokens)


if __name__ == "__main__":
    main()
