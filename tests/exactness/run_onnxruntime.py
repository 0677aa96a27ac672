"""Run the cases through percoedge's ONNX Runtime backend, here or on a target.

As a program it is what runs on a target: it reads a folder of cases, and prints its tally as one
line of JSON. It needs what the decoder needs: numpy, onnxruntime, msgspec, pillow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cases import Case, Run, Tally, batches, compare, digest, read_cases
from numpy.typing import NDArray

from percoedge import Codec
from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OPTIMIZATIONS, OnnxRuntimeBackend

VARIANTS = ("fp32", "int8")
"""The graphs of a bundle that CPUs run."""

FAST_MATH = {"mlas.enable_gemm_fastmath_arm64_bfloat16": "1"}
"""Lets AArch64 kernels multiply float32 matrices in bfloat16: 8 bits, which small integers fit."""


class ConfiguredBackend(OnnxRuntimeBackend):
    """The backend with session settings that the codec itself never asks for."""

    settings: Mapping[str, str] = {}

    def _options(self, ort: Any) -> Any:
        options = super()._options(ort)
        for key, value in self.settings.items():
            options.add_session_config_entry(key, value)
        return options


def opened(
    bundle: Bundle,
    level: str,
    threads: int,
    variant: str,
    *,
    name: str = "onnxruntime-cpu",
    settings: Mapping[str, str] | None = None,
    provider_options: Mapping[str, str] | None = None,
) -> Run:
    """An entropy graph of a bundle, as a function."""
    backend = ConfiguredBackend(name, threads, level, provider_options or {})
    object.__setattr__(backend, "settings", settings or {})
    engine = backend.load(bundle.read("entropy", variant))

    def run(tokens: NDArray[np.int32], positions: NDArray[np.int32]) -> NDArray[Any]:
        return np.asarray(engine.run({"tokens": tokens, "positions": positions})["weights"])

    return run


def run_all(
    tally: Tally,
    bundle: Bundle,
    cases: Iterable[Case],
    levels: Iterable[str],
    threads: Iterable[int],
    variants: Iterable[str] = VARIANTS,
    *,
    one_batch: bool = False,
    **how: Any,
) -> None:
    """Every case at every setting; ``how`` goes to ``opened``.

    ``one_batch``: all slots of a case together, once, instead of every composition.
    """
    began = time.perf_counter()
    listed = list(cases)
    for level, count, variant in itertools.product(levels, threads, variants):
        run = opened(bundle, level, count, variant, **how)
        tally.configurations += 1
        for case in listed:
            slots = len(case.tokens)
            compositions = [list(range(slots))] if one_batch else batches(slots)
            compare(run, case, compositions, f"{variant}, level {level}, {count} threads", tally)
    tally.seconds += time.perf_counter() - began


def decode_streams(tally: Tally, bundle: Bundle, folder: Path) -> None:
    """Decode the tokens of every file that ``streams.json`` in the folder names."""
    began = time.perf_counter()
    with Codec.load(bundle, "onnxruntime-cpu", threads=1) as codec:
        for record in json.loads((folder / "streams.json").read_text()):
            data = (folder / record["file"]).read_bytes()
            tally.streams += 1
            try:
                tokens = codec.decode_tokens(data, bare=record["bare"])
            except Exception as error:  # whatever it is, this target does not read the file
                tally.wrong.append(f"{record['file']}: {error}")
                continue
            if digest(tokens) != record["tokens_sha256"]:
                tally.wrong.append(f"{record['file']}: other tokens")
    tally.seconds += time.perf_counter() - began


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--cases", type=Path, required=True, help="folder with cases.json")
    parser.add_argument("--target", default=platform.machine(), help="what to call it")
    parser.add_argument("--max-cells", type=int, default=1 << 30, help="leave out larger grids")
    parser.add_argument("--levels", nargs="+", default=list(OPTIMIZATIONS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS))
    parser.add_argument("--fast-math", action="store_true", help="bfloat16 kernels, where any")
    parser.add_argument("--one-batch", action="store_true", help="one batch a case")
    parser.add_argument("--streams", action="store_true", help="decode streams.json's files too")
    chosen = parser.parse_args(arguments)
    bundle = Bundle.open(chosen.bundle)
    cases = [case for case in read_cases(chosen.cases) if case.cells <= chosen.max_cells]
    tally = Tally(chosen.target)
    run_all(
        tally,
        bundle,
        cases,
        chosen.levels,
        chosen.threads,
        chosen.variants,
        one_batch=chosen.one_batch,
        settings=FAST_MATH if chosen.fast_math else None,
    )
    if chosen.streams:
        decode_streams(tally, bundle, chosen.cases)
    print(tally.json_line())


if __name__ == "__main__":
    main()
