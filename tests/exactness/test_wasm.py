"""ONNX Runtime's WebAssembly kernels, the ones that browsers run, in Node.js."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import Report, Target
from run_onnxruntime import VARIANTS

_HERE = Path(__file__).parent


@pytest.mark.parametrize("variant", VARIANTS)
def test_webassembly(
    variant: str, case_folder: Path, cache: Path, report: Report, target: Target
) -> None:
    node, web = cache / "node", cache / "web"
    if not (node.exists() and web.exists()):
        pytest.skip("no Node.js with onnxruntime-web: run tests/exactness/prepare.sh")
    graph = case_folder / f"entropy.{variant}.onnx"
    command = [node, _HERE / "run_wasm.mjs", web, graph, case_folder]
    report(target(command, 600))
