"""A bundle of CoD-Lite beside its authors' code in eager PyTorch, on one CPU, taking turns.

    python -m benchmarks.cod_lite --published GenCodec/CoD_Lite --bundle cod-lite-0.0312 \\
        --checkpoint CoD_Lite_bpp_0_0312.pt --config CoD_Lite_bpp_0_0312.yaml --save NAME

``--published`` is that folder of a checkout of github.com/microsoft/GenCodec: its classes are run
as they are, in FP32 (their tool knows CUDA only); they want einops. Both sides start from pixels in
memory and end there, with the stream in between; ratios are over the published code, or without it
over the bundle in FP32. Peak memory is that of a process that encodes and
decodes one image.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.util
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import report
from benchmarks.timing import process_cost, race
from percoedge import Codec
from percoedge.arguments import expect_size
from percoedge.engines.processors import usable_processors

Pixels = NDArray[np.uint8]
PUBLISHED = "published code, FP32"
_BACKENDS = {
    "percoedge, FP32": "onnxruntime-cpu:fp32",
    "percoedge, int8": "onnxruntime-cpu",
}


class Published:
    """The authors' classes with the weights of a checkpoint.

    PyTorch is loaded here alone: its memory is not that of the other side.
    """

    def __init__(self, folder: Path, checkpoint: Path, config: Path, threads: int) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(threads)
        sys.path.insert(0, str(folder))
        # their discriminator, which only trains, wants these
        for name in ("timm", "timm.data", "timm.data.constants", "torchvision"):
            _stand_in(name)
        _stand_in("torchvision.transforms", Normalize=None)
        sys.modules["timm.data.constants"].__dict__.update(
            IMAGENET_DEFAULT_MEAN=(), IMAGENET_DEFAULT_STD=()
        )
        models: Any = importlib.import_module("finetuned_one_step_codec.models.models")
        arguments = msgspec.yaml.decode(config.read_bytes())["model"]["net"]["init_args"]
        for name in ("fix_encoder", "net_ckpt_path", "pretrain_prefix"):
            arguments.pop(name, None)
        self._net: Any = models.OneStepCoD(**{"noise_level": 0.0, **arguments})
        state = self._torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
        self._net.load_state_dict({n.removeprefix("net."): t for n, t in state.items()})
        self._net.eval()

    def encode(self, pixels: Pixels) -> Any:
        """Pixels as the authors' list of bytes."""
        image = self._torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        with self._torch.no_grad():
            return self._net.compress(image)

    def decode(self, stream: Any, height: int, width: int) -> Pixels:
        """The list of bytes as pixels."""
        torch = self._torch
        with torch.no_grad():
            condition = self._net.decompress(stream, height, width, "cpu")
            image = self._net.inference(torch.zeros(1, 3, height, width), cond=condition)
            image = ((image + 1) * 127.5 + 0.5).clamp_(0, 255).to(torch.uint8)
            pixels: Pixels = image[0].permute(1, 2, 0).contiguous().numpy()
        return pixels


def _stand_in(name: str, **content: Any) -> None:
    """An empty module where there is none of this name."""
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec(name) is not None:
            return
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


def photo(width: int, height: int) -> Pixels:
    """Seeded pixels: what they show takes no part in the time."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def sides(args: argparse.Namespace, names: list[str]) -> dict[str, Any]:
    """Whoever takes part, by name."""
    made: dict[str, Any] = {}
    for name in names:
        if name == PUBLISHED:
            made[name] = Published(args.published, args.checkpoint, args.config, args.threads)
        else:
            made[name] = Codec.load(args.bundle, _BACKENDS[name], threads=args.threads)
    return made


def calls(side: Any, pixels: Pixels) -> tuple[Callable[[], object], Callable[[], object]]:
    """Encoding and decoding of one image, as functions of nothing."""
    stream = side.encode(pixels)
    if isinstance(side, Published):
        return lambda: side.encode(pixels), lambda: side.decode(stream, *pixels.shape[:2])
    return lambda: side.encode(pixels), lambda: np.asarray(side.decode(stream))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--size", default="512x512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_processors())
    parser.add_argument("--without-published", action="store_true", help="race the bundle alone")
    parser.add_argument("--only", help="encode and decode once with this side, and time nothing")
    parser.add_argument("--save", help="also write results/NAME.json")
    args = parser.parse_args()
    pixels = photo(*expect_size("--size", args.size, 4096))
    names = [*([] if args.without_published else [PUBLISHED]), *_BACKENDS]
    if args.only is not None:
        (side,) = sides(args, [args.only]).values()
        for call in calls(side, pixels):
            call()
        return
    # first: a process that is started counts what this one holds as its own
    command = [sys.executable, "-m", "benchmarks.cod_lite", *sys.argv[1:], "--only"]
    peaks = {name: round(process_cost([*command, name]).peak_mib) for name in names}
    load = os.getloadavg()[0]
    functions = {name: calls(side, pixels) for name, side in sides(args, names).items()}
    results: dict[str, Any] = {
        "settings": {"size": args.size, "threads": args.threads, "rounds": args.rounds},
        "encode": race({n: pair[0] for n, pair in functions.items()}, args.rounds, names[:1]),
        "decode": race({n: pair[1] for n, pair in functions.items()}, args.rounds, names[:1]),
    }
    results["peak_memory_mib"] = peaks
    results["load_1_min"] = {"before": round(load, 1), "after": round(os.getloadavg()[0], 1)}
    report(args.save or "", results, bool(args.save))


if __name__ == "__main__":
    main()
