"""True AArch64 kernels, under QEMU: the graph's integers, and whole files decoded to tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, Report, Target, digest
from numpy.typing import NDArray

from percoedge.bitstream.container import Header, pack
from percoedge.bitstream.schedules import SCHEDULES
from percoedge.engines.bundle import Bundle
from percoedge.runtime.entropy import EntropyCodec

_HERE = Path(__file__).parent
_GOLDEN = _HERE.parent / "golden"


@pytest.fixture(scope="session")
def run_aarch64(cache: Path) -> Path:
    if not list((cache / "aarch64").glob("site-*")) or not (cache / "aarch64" / "qemu").exists():
        pytest.skip("no QEMU with an AArch64 Python: run tests/exactness/prepare.sh")
    return _HERE / "run_aarch64.sh"


@pytest.fixture(scope="module")
def streams(case_folder: Path, bundle: Bundle, coder: EntropyCodec, cases: list[Case]) -> Path:
    """Files made here, one per schedule and grid; and the golden ones, if of this bundle."""
    folder, stride = case_folder, bundle.codec.stride
    records: list[dict[str, Any]] = []
    for tokens in _grids(cases, bundle.codec.codebook_size):
        height, width = tokens.shape
        for schedule in SCHEDULES:
            header = Header(width * stride, height * stride, schedule)
            if schedule == bundle.codec.schedule:
                header = Header(width * stride, height * stride)
            name = f"{schedule}-{height}x{width}.pco"
            coded = coder.encode(tokens, schedule)
            (folder / name).write_bytes(pack(header, coded, bundle.fingerprint))
            records.append({"file": name, "bare": False, "tokens_sha256": digest(tokens)})
    vectors = _GOLDEN / "vectors.json"
    golden = json.loads(vectors.read_text()) if vectors.exists() else {}
    if golden and golden["fingerprint"] == bundle.manifest.fingerprint:
        for name, record in golden["files"].items():
            data = (_GOLDEN / f"{name}.pco").read_bytes()
            assert hashlib.sha256(data).hexdigest() == record["sha256"]
            (folder / f"golden-{name}.pco").write_bytes(data)
            records.append(
                {
                    "file": f"golden-{name}.pco",
                    "bare": record.get("bare", False),
                    "tokens_sha256": record["tokens_sha256"],
                }
            )
    (folder / "streams.json").write_text(json.dumps(records, indent=1) + "\n")
    return folder


def _grids(cases: list[Case], classes: int) -> list[NDArray[np.int32]]:
    """A small grid, and one of two tiles; nothing in them is masked."""
    by_name = {case.name: case.tokens % classes for case in cases}
    wide = np.concatenate(list(by_name["3x64"]), axis=1)[:, :70]
    return [by_name["7x5"][0], np.ascontiguousarray(wide)]


# Emulation is slow, that of matrix tiles most of all.
_TRIALS = {
    "cortex-a57": ["--levels", "off", "basic", "all", "--max-cells", "256"],
    "cortex-a76": ["--levels", "off", "all", "--max-cells", "256"],
    "max": ["--levels", "off", "all", "--max-cells", "256"],
    "max, bfloat16 fast math": ["--levels", "all", "--max-cells", "256", "--fast-math"],
    "max-sme": ["--levels", "all", "--max-cells", "35"],
}
_WITH_STREAMS = ("cortex-a57", "max")  # the least and the most that such a CPU has


@pytest.mark.slow
@pytest.mark.parametrize("trial", _TRIALS)
def test_aarch64(
    run_aarch64: Path, trial: str, streams: Path, bundle: Bundle, report: Report, target: Target
) -> None:
    command: list[str | Path] = [run_aarch64, trial.partition(",")[0], "--one-batch"]
    command += ["--bundle", bundle.path, "--cases", streams, *_TRIALS[trial]]
    if trial in _WITH_STREAMS:
        command.append("--streams")
    tally = target([*command, "--target", f"AArch64 {trial} (QEMU)"], 900)
    if trial in _WITH_STREAMS:
        assert tally.streams == len(json.loads((streams / "streams.json").read_text()))
    report(tally)
