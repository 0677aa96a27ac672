"""Choosing a backend, with providers that are there, absent, or listed but broken."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import numpy as np
import onnxruntime
import pytest

from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.engines.onnxruntime import backend as onnxruntime_backend
from percoedge.engines.onnxruntime.backend import PROVIDERS, OnnxRuntimeBackend
from percoedge.engines.onnxruntime.engine import OnnxRuntimeEngine
from percoedge.engines.selection import BACKENDS, available, select
from percoedge.engines.tensorrt.library import LIBRARIES
from percoedge.errors import BackendError, UsageError


def install(monkeypatch: pytest.MonkeyPatch, listed: list[str], working: list[str]) -> list[Any]:
    """Put a stand-in for onnxruntime in place; returns the provider lists of its sessions."""
    sessions: list[Any] = []

    class Session:
        def __init__(self, model: bytes, options: Any, providers: Any, **kwargs: Any) -> None:
            assert kwargs == {"enable_fallback": 0}
            sessions.append(providers)
            self.names = [name for name, _ in providers if name in working]

        def get_providers(self) -> list[str]:
            return self.names

    options = types.SimpleNamespace(add_session_config_entry=lambda key, value: None)
    ort = types.SimpleNamespace(
        __version__="1.0",
        InferenceSession=Session,
        SessionOptions=lambda: options,
        GraphOptimizationLevel=types.SimpleNamespace(ORT_ENABLE_ALL=99),
        get_available_providers=lambda: listed,
    )
    monkeypatch.setattr(onnxruntime_backend, "import_onnxruntime", lambda: ort)
    return sessions


CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def test_auto_takes_the_cpu_where_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = install(monkeypatch, [CPU], [CPU])
    assert (select().name, select().variant) == ("onnxruntime-cpu", "int8")
    assert sessions == []


def test_a_variant_may_follow_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [CUDA, CPU], [CUDA, CPU])
    for name in ("onnxruntime-cpu", "onnxruntime-cuda"):
        backend = select(f"{name}:fp32", threads=2)
        assert (backend.name, backend.variant) == (name, "fp32")
    with pytest.raises(UsageError, match="expected a precision of fp32, fp16, int8, got 'fp8'"):
        select("onnxruntime-cpu:fp8")
    for name in ("auto", "tensorrt"):
        with pytest.raises(
            UsageError, match=f"expected a named backend with a variant, got '{name}'"
        ):
            select(f"{name}:fp32")


def test_auto_takes_a_gpu_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = install(monkeypatch, [*PROVIDERS.values()], [*PROVIDERS.values()])
    assert (select().name, select().variant) == ("onnxruntime-cuda", "fp16")
    assert [name for name, _ in sessions[0]] == [CUDA, CPU]
    assert sessions[0][0][1]["use_tf32"] == "0"


def test_auto_passes_over_a_gpu_that_is_listed_but_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [CUDA, CPU], [CPU])
    assert select().name == "onnxruntime-cpu"
    with pytest.raises(BackendError, match=f"expected {CUDA} to start, got .*driver or libraries"):
        select("onnxruntime-cuda")
    reasons = {status.name: (status.available, status.reason) for status in available()}
    assert tuple(reasons) == BACKENDS
    assert reasons["onnxruntime-cpu"] == (True, "")
    assert "to start" in reasons["onnxruntime-cuda"][1]


def test_a_provider_that_is_absent_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, [CPU], [CPU])
    with pytest.raises(
        BackendError, match=r"expected CUDAExecutionProvider in this onnxruntime 1.0, .*cuda,cudnn"
    ):
        select("onnxruntime-cuda")


def test_without_onnxruntime_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="pip install onnxruntime"):
        select()


@pytest.mark.parametrize(
    "arguments",
    [
        {"name": "abacus"},
        {"threads": 0},
        {"optimization": "most"},
        {"provider_options": {"device_id": "0"}},
        {"name": "onnxruntime-cuda", "provider_options": {"enable_cuda_graph": "1"}},
        {"name": "tensorrt-rtx", "provider_options": {"device_id": "0"}},
    ],
)
def test_arguments_out_of_domain(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^expected .*, got "):
        select(**arguments)


def test_provider_options_reach_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = install(monkeypatch, [CUDA, CPU], [CUDA, CPU])
    select("onnxruntime-cuda", provider_options={"use_tf32": "1", "device_id": "1"})
    options = sessions[0][0][1]
    assert (options["use_tf32"], options["device_id"]) == ("1", "1")


def test_outputs_are_left_on_the_gpu_that_runs_the_graph() -> None:
    bound = []

    class Binding:
        def bind_output(self, *place: Any) -> None:
            bound.append(place)

        def get_outputs(self) -> list[Any]:
            array = np.zeros(3, np.float32)
            return [onnxruntime.OrtValue.ortvalue_from_numpy(array)]

    output = types.SimpleNamespace(name="y", type="tensor(float)", shape=[3])
    session = types.SimpleNamespace(
        get_inputs=lambda: [],
        get_outputs=lambda: [output],
        io_binding=Binding,
        run_with_iobinding=lambda binding: None,
    )
    source = GraphSource("probe", "fp16", b"", {}, (), (TensorSpec("y", "float32", (3,)),))
    for options, device in (({}, 0), ({"device_id": "1"}, 1)):
        backend = OnnxRuntimeBackend("onnxruntime-cuda", provider_options=options)
        engine = OnnxRuntimeEngine(session, source, "", backend.place)
        engine.run({}, on_device=True)
        engine.run({})
        assert bound[-2:] == [("y", "cuda", device), ("y", "cpu", 0)]


def test_every_provider_and_every_library_is_a_backend() -> None:
    assert set(BACKENDS) == {*PROVIDERS, *LIBRARIES}
    with pytest.raises(UsageError, match="expected a backend of"):
        OnnxRuntimeBackend("abacus")


def test_importing_engines_imports_no_runtime() -> None:
    code = (
        "import sys, percoedge.engines, percoedge.engines.fake\n"
        "bad = {'onnxruntime', 'onnx', 'torch', 'tensorrt', 'cuda'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    path = [entry for entry in sys.path if entry]
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
