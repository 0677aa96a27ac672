"""The network of PerCo (SD) in a bundle beside diffusers' in eager PyTorch, on one CPU, in turns.

    python -m benchmarks.perco_sd --checkpoint DIR --bundle perco-sd-0.0313 --save NAME

One evaluation of the network at 512x512 with a caption and one step of the sampler, both in FP32.
The other side is the network as published: diffusers' UNet over the latent and the codes, repeated
up to its size, and diffusers' DDIMScheduler. ``--decode N`` decodes an image in N guided steps
instead, and reports its time by stage and the peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.environment import report
from benchmarks.timing import race
from percoedge import Codec
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import example_feeds
from percoedge.engines.processors import usable_processors
from percoedge.engines.selection import select
from percoedge.runtime.flow import step_times

RIVAL = "diffusers, FP32"
_BACKEND = "onnxruntime-cpu:fp32"
_STEPS = 20


def feeds_of(bundle: Bundle) -> dict[str, Any]:
    """What one step at 512x512 takes, in the middle of twenty."""
    specs = bundle.manifest.graphs["flow"].input_specs
    many = bundle.codec.flow_multiple * bundle.codec.stride
    sizes = {"n": 1, "h": 512 // many, "w": 512 // many}
    feeds = example_feeds(specs, sizes, bundle.codec.codebook_size - 1)
    t, dt = step_times(bundle.codec, _STEPS)[_STEPS // 2]
    return {**feeds, "t": np.array([t], np.float32), "dt": np.array([dt], np.float32)}


def published(folder: Path, feeds: dict[str, Any], threads: int) -> Callable[[], Any]:
    """A step of the network as it lies in the folder."""
    import torch
    import torch.nn.functional as F
    from diffusers import DDIMScheduler

    from percoedge.export.models.perco_sd.checkpoint import load_networks
    from percoedge.export.models.perco_sd.config import read_folder

    torch.set_num_threads(threads)
    networks = load_networks(folder, read_folder(folder))
    unet, table = networks.unet, networks.hyper.quantizer.table()
    unet.conv_in = unet.conv_in_extended
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    scheduler.set_timesteps(_STEPS)
    x, tokens, text = (torch.from_numpy(feeds[name]) for name in ("x", "tokens", "text"))
    time = int(feeds["t"][0])

    @torch.no_grad()
    def step() -> Any:
        codes = table[tokens.long()].permute(0, 3, 1, 2)
        whole = torch.cat([x, F.interpolate(codes, size=x.shape[2:], mode="nearest")], dim=1)
        velocity = unet(whole, time, text, return_dict=False)[0]
        return scheduler.step(velocity, time, x).prev_sample.numpy()

    return step


def decode(bundle: str, steps: int, threads: int) -> dict[str, Any]:
    """Encode and decode the shipped photo at 512x512: seconds by stage, peak memory of both."""
    photo = Image.open(shipped_photo()).convert("RGB").resize((512, 512))
    seconds = {}
    with Codec.load(bundle, _BACKEND, threads=threads, low_memory=True) as codec:
        data = codec.encode(photo, caption="a photo")
        seconds["encode"] = {n: round(time / 1000, 2) for n, time in codec.timings_ms.items()}
        codec.decode(data, steps=steps)
        seconds["decode"] = {n: round(time / 1000, 2) for n, time in codec.timings_ms.items()}
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"stream_bytes": len(data), "seconds": seconds, "peak_gib": round(peak_kib / 2**20, 2)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--decode", type=int, metavar="N")
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    results: dict[str, Any] = {"settings": {"size": "512x512", "threads": args.threads}}
    if args.decode:
        results["decode"] = {"steps": args.decode, **decode(args.bundle, args.decode, args.threads)}
    else:
        bundle = Bundle.open(args.bundle)
        feeds = feeds_of(bundle)
        rival = published(args.checkpoint, feeds, args.threads)
        backend = select(_BACKEND, threads=args.threads)
        with backend.load(bundle.graph("flow", backend.variant)) as engine:
            ours = np.asarray(engine.run(feeds)["x_next"])
            difference = np.linalg.norm(ours - rival()) / np.linalg.norm(ours)
            results["relative_l2"] = float(f"{difference:.3g}")
            sides = {RIVAL: rival, "percoedge, FP32": lambda: engine.run(feeds)}
            results["step"] = race(sides, args.rounds, [RIVAL])
    results["load_1_min"] = {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)}
    report(args.save or "", results, bool(args.save))


if __name__ == "__main__":
    main()
