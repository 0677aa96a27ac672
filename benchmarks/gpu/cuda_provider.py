"""Part "onnxruntime": its CUDA provider. Exact tokens, every graph against the CPU, what is left
to the CPU, where the time goes, and what options of the provider change."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_calls import call_times
from benchmarks.gpu.backends import BATCHES, differences, feeds_for
from benchmarks.gpu.record import Options, Record, Skipped
from percoedge import Codec
from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.onnxruntime.layers import node_runs

_NAME = "onnxruntime-cuda"
_GOLDEN = Path(__file__).parent.parent.parent / "tests" / "golden"
_ROUNDS, _NODE_RUNS = 50, 10
_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "default": {},
    "TF32": {"use_tf32": "1"},
    "channels last": {"prefer_nhwc": "1"},
    "exhaustive search": {"cudnn_conv_algo_search": "EXHAUSTIVE"},
    "channels last, exhaustive search": {
        "prefer_nhwc": "1",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
    },
}


def onnxruntime(record: Record, options: Options) -> None:
    """Skipped where the provider does not start; what fails does not stop the next."""
    backend = OnnxRuntimeBackend(_NAME)
    if (reason := backend.missing()) is not None:
        raise Skipped(f"needs {_NAME}: {reason}")
    bundle = Bundle.open(options.bundle)
    for name, tf32 in {"TF32 off": "0", "TF32 on": "1"}.items():
        on = OnnxRuntimeBackend(_NAME, provider_options={"use_tf32": tf32})
        record.attempt(f"golden tokens/{name}", golden_tokens, bundle, on)
    for kind in bundle.kinds:
        record.attempt(f"graphs/{kind}", _compare, bundle, backend, kind)
    for kind in bundle.kinds:
        record.attempt(f"nodes/{kind}", _nodes, bundle, backend, kind)
    for name, chosen in _OPTIONS.items():  # searching last, as it may take longer than there is
        other = OnnxRuntimeBackend(_NAME, provider_options=chosen)
        for kind in bundle.kinds:
            record.attempt(f"options/{name}/{kind}", _times, bundle, other, kind)


def golden_tokens(bundle: Bundle, backend: Any) -> dict[str, Any]:
    """How many golden files decode to their tokens; names of those that do not."""
    document = json.loads((_GOLDEN / "vectors.json").read_text())
    if bundle.manifest.fingerprint != document["fingerprint"]:
        raise Skipped("needs golden files for this bundle")
    wrong = []
    with Codec(bundle, backend) as codec:
        for name, told in document["files"].items():
            data = (_GOLDEN / f"{name}.pco").read_bytes()
            tokens = codec.decode_tokens(data, bare=bool(told.get("bare", False)))
            digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
            if digest != told["tokens_sha256"]:
                wrong.append(name)
    return {"files": len(document["files"]), "wrong": wrong}


def _sizes(bundle: Bundle, kind: str, batch: int = 1) -> dict[str, int]:
    """As in a decode of so many pictures of 512x512."""
    sizes = {"n": batch, "h": 32, "w": 32, "p": 128, "l": 77}
    if kind.startswith("flow"):
        sizes |= {"n": 4 * batch, "h": bundle.codec.flow_tile, "w": bundle.codec.flow_tile}
    return sizes


def _compare(bundle: Bundle, backend: OnnxRuntimeBackend, kind: str) -> dict[str, Any]:
    graph = bundle.graph(kind, backend.variant)
    feeds: dict[str, Any] = dict(feeds_for(bundle, graph, _sizes(bundle, kind)))
    with backend.load(graph) as engine:
        got = engine.run(feeds)
        again = engine.run(feeds)
    with OnnxRuntimeBackend().load(bundle.graph(kind, "fp32")) as cpu:
        wanted = cpu.run(feeds)
    same = all(np.array_equal(np.asarray(got[name]), np.asarray(again[name])) for name in got)
    return {"runs_are_the_same": same, "against_fp32_on_the_cpu": differences(got, wanted)}


def _nodes(bundle: Bundle, backend: OnnxRuntimeBackend, kind: str) -> dict[str, Any]:
    """Nodes by provider, and the operators that took most of a run of the host's time."""
    graph = bundle.graph(kind, backend.variant)
    feeds: dict[str, Any] = dict(feeds_for(bundle, graph, _sizes(bundle, kind)))
    nodes: dict[str, Counter[str]] = {}
    spent_us: Counter[str] = Counter()
    for node in node_runs(backend, graph, feeds, _NODE_RUNS):
        provider = node.provider.removesuffix("ExecutionProvider")
        nodes.setdefault(provider, Counter())[node.operator] += 1
        spent_us[f"{node.operator} ({provider})"] += round(node.host_us)
    return {
        "nodes": {provider: found.total() // _NODE_RUNS for provider, found in nodes.items()},
        "left_to_the_cpu": {op: n // _NODE_RUNS for op, n in nodes.get("CPU", {}).items()},
        "copies_between_them": sum(
            count // _NODE_RUNS
            for found in nodes.values()
            for operator, count in found.items()
            if operator.startswith("Memcpy")
        ),
        "host_us_of_ten_runs": dict(spent_us.most_common(12)),
    }


def _times(bundle: Bundle, backend: OnnxRuntimeBackend, kind: str) -> dict[str, Any]:
    found = {}
    graph = bundle.graph(kind, backend.variant)
    with backend.load(graph) as engine:
        for batch in BATCHES:
            feeds: dict[str, Any] = dict(feeds_for(bundle, graph, _sizes(bundle, kind, batch)))
            found[f"batch {batch}"] = call_times(engine, feeds, _ROUNDS)
    return found
