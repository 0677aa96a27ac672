"""Real plans of TensorRT-RTX, built without a GPU: every graph of the shipped bundle, and refusals.

What such an engine file computes shows on a GPU only; the rest is checked here.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.engines.plans.build import (
    BuiltPlan,
    StagedGraph,
    _timing_cache,
    build_plan,
    check_targets,
    stage_graph,
)
from percoedge.engines.plans.profiles import Profile, profile_for
from percoedge.engines.tensorrt import library as tensorrt_library
from percoedge.engines.tensorrt.library import (
    LIBRARIES,
    Library,
    find_library,
    log_to,
    supported_targets,
)
from percoedge.engines.tiling import TILING, tiling_graph
from percoedge.errors import BackendError, OutputError, UsageError
from percoedge.export.graphs.whole_model import whole_model

TARGETS = (86, 89, 120)
SIZES = [(512, 512), (768, 512), (1920, 1088)]
BATCHES = (1, 4, 8)
KINDS = ("encoder", "entropy", "flow", "decoder")


@pytest.fixture(scope="module")
def rtx() -> Library:
    try:
        return find_library("tensorrt-rtx")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tiny() -> Bundle:
    return Bundle.open("tiny")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Any]:
    with (tmp_path / "build.log").open("w+", encoding="utf-8") as file:
        yield file


@pytest.fixture
def staged(bundle: Bundle, tmp_path: Path) -> StagedGraph:
    """The toy flow in FP16, with data outside of the model."""
    return stage_graph(bundle.read("flow", "fp16"), tmp_path)


TOY = Profile({"n": (1, 1, 2), "h": (1, 4, 8), "w": (1, 4, 8)})


def tiny_profile(tiny: Bundle, kind: str) -> Profile:
    graph = tiny.manifest.graphs[kind]
    specs = (*graph.input_specs, *graph.output_specs)
    return profile_for(kind, specs, tiny.codec, SIZES, BATCHES)


# ---- what is built ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_graph_of_the_shipped_bundle_builds(
    rtx: Library, tiny: Bundle, kind: str, tmp_path: Path, log: Any
) -> None:
    graph = stage_graph(tiny.read(kind, "fp16"), tmp_path)
    plan = tmp_path / "plan"
    built = build_plan(graph, tiny_profile(tiny, kind), rtx, plan, log, targets=TARGETS)
    assert plan.stat().st_size > tiny.size_bytes([kind], "fp16") // 2
    assert "STRONGLY_TYPED" in built.flags and "TF32" not in built.flags
    assert built.weight_bytes and built.activation_bytes


@pytest.mark.parametrize("kind", TILING)
def test_the_graphs_of_tiles_build(
    rtx: Library, tiny: Bundle, kind: str, tmp_path: Path, log: Any
) -> None:
    given = tiling_graph(kind)
    for sizes in (SIZES, []):
        profile = profile_for(kind, (*given.inputs, *given.outputs), tiny.codec, sizes, BATCHES)
        graph, plan = stage_graph(given, tmp_path), tmp_path / "plan"
        build_plan(graph, profile, rtx, plan, log, targets=TARGETS)
        assert plan.stat().st_size


def test_a_graph_is_staged_with_its_data(bundle: Bundle, tmp_path: Path) -> None:
    source = bundle.read("flow", "fp16")
    graph = stage_graph(source, tmp_path)
    assert graph.model.read_bytes() == source.model
    assert (tmp_path / "weights.bin").read_bytes() == source.data["weights.bin"]
    assert graph.sha256 == source.sha256
    assert (graph.kind, graph.precision) == ("flow", "fp16")
    assert (graph.inputs, graph.outputs) == (source.inputs, source.outputs)


def test_progress_rises_and_the_log_is_kept(
    rtx: Library, staged: StagedGraph, tmp_path: Path, log: Any
) -> None:
    shares: list[float] = []
    names: set[str] = set()

    def progress(share: float, name: str) -> None:
        shares.append(share)
        names.add(name)

    build_plan(staged, TOY, rtx, tmp_path / "plan", log, targets=(89,), progress=progress)
    assert shares == sorted(shares) and shares[0] == 0 and 0.8 < shares[-1] <= 1
    assert all(names)
    log.seek(0)
    assert "INFO" in log.read()


class Older:
    """A library or builder in front of the real one that lacks what TensorRT 10.3 lacks."""

    MISSING = ("IProgressMonitor", "IStreamWriter", "build_serialized_network_to_stream")

    def __init__(self, real: Any) -> None:
        self._real = real

    def __getattr__(self, name: str) -> Any:
        if name in self.MISSING:
            raise AttributeError(name)
        if name == "Builder":
            return lambda logger: Older(self._real.Builder(logger))
        return getattr(self._real, name)


def test_a_library_without_streams_and_progress_builds_too(
    rtx: Library, staged: StagedGraph, tmp_path: Path, log: Any
) -> None:
    older = dataclasses.replace(rtx, module=Older(rtx.module))
    new, old = tmp_path / "new", tmp_path / "old"
    build_plan(staged, TOY, rtx, new, log, targets=(89,))
    build_plan(staged, TOY, older, old, log, targets=(89,), progress=lambda share, name: None)
    # not the same bytes: a few numbers in a plan differ from build to build
    assert new.read_bytes()[:4] == old.read_bytes()[:4]
    assert 0.5 < new.stat().st_size / old.stat().st_size < 2


def test_workspace_is_handed_on(
    rtx: Library, staged: StagedGraph, tmp_path: Path, log: Any
) -> None:
    plan = tmp_path / "plan"
    built = build_plan(staged, TOY, rtx, plan, log, targets=(89,), workspace_mib=64)
    assert isinstance(built, BuiltPlan) and plan.stat().st_size


class TimingConfig:
    """A builder's configuration that takes the times of one GPU only."""

    def __init__(self) -> None:
        self.tried: list[bytes] = []

    def create_timing_cache(self, known: bytes) -> bytes:
        return known

    def set_timing_cache(self, times: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.tried.append(times)
        return times in (b"", b"of this GPU")


@pytest.mark.parametrize(
    ("known", "tried"),
    [(b"", [b""]), (b"of this GPU", [b"of this GPU"]), (b"others", [b"others", b""])],
)
def test_times_of_kernels_are_used_again(rtx: Library, known: bytes, tried: list[bytes]) -> None:
    config = TimingConfig()
    assert _timing_cache(Library("tensorrt", "10.3.0", None), config, known) == tried[-1]
    assert config.tried == tried
    assert _timing_cache(rtx, config, known) is None  # it times nothing when it builds


def test_the_level_is_handed_on(
    rtx: Library, staged: StagedGraph, tmp_path: Path, log: Any
) -> None:
    plan = tmp_path / "plan"
    built = build_plan(staged, TOY, rtx, plan, log, targets=(89,), level=0)
    assert built.timing == b"" and plan.stat().st_size


# ---- what is refused ----------------------------------------------------------------------------


def test_a_profile_beyond_what_the_graph_can_do(
    rtx: Library, tiny: Bundle, tmp_path: Path, log: Any
) -> None:
    """The position table of the flow ends at a grid that the builder itself only warns of."""
    graph = stage_graph(tiny.read("flow", "fp16"), tmp_path)
    beyond = Profile({"n": (1, 1, 1), "h": (1, 32, 200), "w": (1, 32, 200)})
    with pytest.raises(BackendError, match=r"every size of n 1\.\.1, h 1\.\.200.*smaller sizes"):
        build_plan(graph, beyond, rtx, tmp_path / "plan", log, targets=(89,))


def test_a_graph_the_library_does_not_know(
    rtx: Library, source_from_nodes: Callable[..., GraphSource], tmp_path: Path, log: Any
) -> None:
    node = onnx.helper.make_node("Nonsense", ["x"], ["y"], domain="x.y")
    graph = stage_graph(source_from_nodes(node, "x.y"), tmp_path)
    with pytest.raises(BackendError, match="cannot read it: .*Nonsense.*export it again"):
        build_plan(graph, Profile({"n": (1, 1, 1)}), rtx, tmp_path / "plan", log, targets=(89,))


def test_a_graph_that_is_not_what_the_manifest_says(
    rtx: Library, staged: StagedGraph, tmp_path: Path, log: Any
) -> None:
    plan = tmp_path / "plan"
    for inputs in (staged.inputs[:-1], (*staged.inputs[:-1], TensorSpec("dt", "float16", (1,)))):
        other = dataclasses.replace(staged, inputs=inputs)
        with pytest.raises(BackendError, match=r"inputs: expected .*x float32 \(\?, 4, \?, \?\)"):
            build_plan(other, TOY, rtx, plan, log, targets=(89,))


def test_a_model_that_names_other_files(bundle: Bundle, tmp_path: Path) -> None:
    source = dataclasses.replace(bundle.read("flow", "fp16"), data={})
    with pytest.raises(BackendError, match="list these files in the manifest"):
        stage_graph(source, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_build_names_the_reason_and_the_log(
    rtx: Library, toy: Any, tmp_path: Path, log: Any
) -> None:
    """Constants of 8 bits are read, but not built unless a dequantisation follows."""
    vector = TensorSpec("x", "float32", ("n",)), TensorSpec("y", "float32", ("n",))
    model = toy.serialise(
        [
            onnx.helper.make_node("Cast", ["c"], ["w"], to=toy.F32),
            onnx.helper.make_node("Add", ["x", "w"], ["y"]),
        ],
        *([(spec.name, toy.F32, spec.shape)] for spec in vector),
        [onnx.numpy_helper.from_array(np.array([3], np.int8), "c")],
    )
    graph = stage_graph(GraphSource("probe", "fp16", model, {}, vector[:1], vector[1:]), tmp_path)
    with pytest.raises(BackendError, match=r"could not build it: .*; see .*build\.log") as caught:
        build_plan(graph, Profile({"n": (1, 1, 1)}), rtx, tmp_path / "plan", log, targets=(89,))
    assert "Quantized constant" in str(caught.value) and "cudaError" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(rtx: Library, staged: StagedGraph, log: Any) -> None:
    older = dataclasses.replace(rtx, module=Older(rtx.module))
    for library in (rtx, older):
        with pytest.raises(OutputError, match="No space left.*make room"):
            build_plan(staged, TOY, library, Path("/dev/full"), log, targets=(89,))


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal to send to oneself")
def test_control_c_stops_a_build(
    rtx: Library, staged: StagedGraph, tmp_path: Path, log: Any
) -> None:
    def interrupt(share: float, name: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    plan, handler = tmp_path / "plan", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        build_plan(staged, TOY, rtx, plan, log, targets=(89,), progress=interrupt)
    assert plan.stat().st_size == 0
    assert signal.getsignal(signal.SIGINT) is handler


def test_targets_the_library_cannot_build_for(rtx: Library) -> None:
    assert set(TARGETS) <= set(supported_targets(rtx))
    check_targets(rtx, supported_targets(rtx))
    with pytest.raises(UsageError, match="expected SM of 80, 86.*got 75, 90"):
        check_targets(rtx, (90, 89, 75))
    without = Library("tensorrt", "10.3.0", None)
    assert supported_targets(without) == ()
    with pytest.raises(UsageError, match="the GPU at hand only"):
        check_targets(without, (89,))


# ---- the library --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.replace("-", "_"), None)  # importing it fails
    with pytest.raises(BackendError, match=rf"the package {name}, cannot.*pip install 'percoedge"):
        find_library(name)


@pytest.mark.parametrize(("version", "accepted"), [("10.3.0", True), ("9.9", False), ("x", False)])
def test_an_old_library(version: str, accepted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = type("Module", (), {"__version__": version})
    monkeypatch.setattr(tensorrt_library, "_import", lambda name: module)
    if accepted:
        assert find_library("tensorrt").version == version
    else:
        with pytest.raises(BackendError, match=f"expected tensorrt 10.3 or newer, got {version}"):
            find_library("tensorrt")


def test_a_name_that_is_no_library() -> None:
    with pytest.raises(UsageError, match="tensorrt, tensorrt-rtx, got 'trt'"):
        find_library("trt")


def test_messages_go_to_the_innermost_sink(rtx: Library) -> None:
    outer: list[str] = []
    inner: list[str] = []
    severity = rtx.module.ILogger.Severity
    with log_to(rtx, lambda name, text: outer.append(f"{name} {text}")) as logger:
        logger.log(severity.WARNING, "one")
        with log_to(rtx, lambda name, text: inner.append(text)) as same:
            assert same is logger
            logger.log(severity.ERROR, "two")
            logger.log(severity.VERBOSE, "never")
        logger.log(severity.INFO, "three")
    logger.log(severity.ERROR, "nobody")
    assert (outer, inner) == (["WARNING one", "INFO three"], ["two"])


# ---- the exact graph ----------------------------------------------------------------------------


def test_products_of_the_exact_graph_stay_in_float32(
    rtx: Library, tiny: Bundle, tmp_path: Path
) -> None:
    """A strongly typed network keeps these types, whatever the builder makes of it."""
    trt = rtx.module
    graph = stage_graph(tiny.read("entropy", "fp16"), tmp_path)
    with log_to(rtx, lambda name, text: None) as logger:
        builder = trt.Builder(logger)
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = trt.OnnxParser(network, logger)
        assert parser.parse_from_file(str(graph.model))
        products = 0
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            if layer.type in (trt.LayerType.MATRIX_MULTIPLY, trt.LayerType.CONVOLUTION):
                products += 1
                tensors = [layer.get_input(n) for n in range(layer.num_inputs)]
                tensors.append(layer.get_output(0))
                types = {tensor.dtype for tensor in tensors if tensor is not None}
                assert types == {trt.DataType.FLOAT}
        assert products


def test_rounding_to_tf32_would_change_nothing_in_the_exact_graph(tiny: Bundle) -> None:
    """TF32 is off; were it on, every factor of every product would survive it: 11 bits suffice."""
    model = whole_model(tiny.read("entropy", "fp16"))
    factors = {
        name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv")
        for name in node.input[:2]
    }
    assert factors
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(factors))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    dice = np.random.default_rng(3)
    tokens = dice.integers(0, tiny.codec.codebook_size + 1, (2, 9, 7), np.int32)
    feeds = {"tokens": tokens, "positions": np.arange(63, dtype=np.int32)}
    for name, value in zip(sorted(factors), session.run(sorted(factors), feeds), strict=True):
        assert value.dtype == np.float32
        assert significant_bits(value) <= 11, name


def significant_bits(values: NDArray[np.float32]) -> int:
    """The most significant bits that any value has, from its first one to its last."""
    whole = (np.frexp(values.astype(np.float64))[0] * 2**24).astype(np.int64)
    whole = whole[whole != 0]
    lowest = np.log2(whole & -whole)
    return int(24 - lowest.min())


def test_significant_bits() -> None:
    assert significant_bits(np.array([0, 1, 127, -0.375], np.float32)) == 7
    assert significant_bits(np.array([2049], np.float32)) == 12
