"""ONNX Runtime's WebAssembly kernels, the ones that browsers run, in Node.js."""

from __future__ import annotations

from pathlib import Path

import pytest
from cases import Report, Target
from run_onnxruntime import VARIANTS

from percoedge.engines.bundle import Bundle

_HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_webassembly(
    variant: str,
    bundle: Bundle,
    case_folder: Path,
    cache: Path,
    report: Report,
    target: Target,
    tmp_path: Path,
) -> None:
    node, web = cache / "node", cache / "web"
    if not (node.exists() and web.exists()):
        pytest.skip("no Node.js with onnxruntime-web: run tests/exactness/prepare.sh")
    pytest.importorskip("onnx", reason="without onnx: pip install '.[test]'")
    from percoedge.export.graphs.whole_model import whole_model

    graph = tmp_path / f"entropy.{variant}.onnx"
    graph.write_bytes(whole_model(bundle.read("entropy", variant)).SerializeToString())
    command = [node, _HERE / "run_wasm.mjs", web, graph, case_folder]
    report(target(command, 600))
