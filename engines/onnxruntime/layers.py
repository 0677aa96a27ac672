"""What each node of a graph takes, as ONNX Runtime's own profile tells it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from percoedge.engines.contract import Buffer, Graph
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend

__all__ = ["NodeRun", "node_runs"]

_WARM_UP = 2


@dataclass(frozen=True)
class NodeRun:
    """One run of one node: ``provider`` as ONNX Runtime calls it, and microseconds of the host.

    On a GPU these are of queueing, not of computing.
    """

    name: str
    operator: str
    provider: str
    host_us: float


def node_runs(
    backend: OnnxRuntimeBackend, graph: Graph, feeds: Mapping[str, Buffer], runs: int = 10
) -> list[NodeRun]:
    """Every node of every run, in order, in a session of its own; two runs are left out before.

    Raises BackendError as loading and running do.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = {field.name: getattr(backend, field.name) for field in fields(backend)}
        with _Profiled(**settings, prefix=str(Path(folder, "run"))).load(graph) as engine:
            for _ in range(_WARM_UP + runs):
                engine.run(feeds)
            path = Path(engine.end_profiling())
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    found = [
        NodeRun(
            event["name"].removesuffix("_kernel_time"),
            event["args"].get("op_name", ""),
            event["args"]["provider"],
            float(event["dur"]),
        )
        for event in events
        if event.get("cat") == "Node" and "provider" in event.get("args", {})
    ]
    return found[len(found) * _WARM_UP // (_WARM_UP + runs) :]


@dataclass(frozen=True)
class _Profiled(OnnxRuntimeBackend):
    """Its sessions write down which node ran where, and for how long, below ``prefix``."""

    prefix: str = ""

    def _options(self, ort: Any) -> Any:
        options = super()._options(ort)
        options.enable_profiling = True
        options.profile_file_prefix = self.prefix
        return options
