"""Run the cases on an NVIDIA GPU: ONNX Runtime's CUDA provider and PyTorch, TF32 on and off.

As a program, ``python tests/exactness/run_cuda.py [--bundle BUNDLE]`` prints one line of JSON for
each target, and a line of why for each that is not there; it exits with 1 if anything was wrong or
nothing was tried. test_cuda.py runs the same under pytest.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import onnxruntime
from cases import Case, Tally, make_cases
from reference import answered
from run_onnxruntime import run_all

from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OPTIMIZATIONS, OnnxRuntimeBackend
from percoedge.export.exact.integers import IntegerMim
from percoedge.export.exact.read import integers_of


def missing_provider() -> str | None:
    """Why ONNX Runtime's CUDA provider cannot be tried here, or None."""
    return OnnxRuntimeBackend("onnxruntime-cuda").missing()


def missing_torch() -> str | None:
    """Why PyTorch's CUDA kernels cannot be tried here, or None."""
    try:
        import torch
    except ImportError:
        return "without PyTorch: pip install '.[export]'"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} finds no GPU"


def try_provider(bundle: Bundle, cases: Sequence[Case], tf32: bool) -> Tally:
    """The CUDA provider at every optimisation level and batch composition."""
    state = "on" if tf32 else "off"
    tally = Tally(f"onnxruntime {onnxruntime.__version__}, CUDA, TF32 {state}")
    options = {"use_tf32": str(int(tf32))}
    run_all(
        tally,
        bundle,
        cases,
        OPTIMIZATIONS,
        [1],
        ["fp16"],
        name="onnxruntime-cuda",
        provider_options=options,
    )
    return tally


def try_torch(model: IntegerMim, cases: Sequence[Case]) -> Tally:
    """PyTorch on the GPU: float32 proper, and with TF32."""
    import torch
    from torch_model import run_precisions

    device = torch.cuda.get_device_name()
    tally = Tally(f"torch {torch.__version__}, {device}: TF32 off and on")
    run_precisions(tally, model, "cuda", cases)
    return tally


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default=os.environ.get("PERCOEDGE_BUNDLE", "tiny"))
    bundle = Bundle.open(parser.parse_args().bundle)
    model = integers_of(bundle)
    cases = answered(model, make_cases(bundle.codec.codebook_size))
    tallies = []
    if reason := missing_provider():
        print(f"not tried: {reason}")
    else:
        tallies += [try_provider(bundle, cases, tf32) for tf32 in (False, True)]
    if reason := missing_torch():
        print(f"not tried: {reason}")
    else:
        tallies.append(try_torch(model, cases))
    for tally in tallies:
        print(tally.json_line())
    return int(not tallies or any(tally.wrong for tally in tallies))


if __name__ == "__main__":
    raise SystemExit(main())
