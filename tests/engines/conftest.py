"""A tiny bundle made with the onnx package: every trait of a real one, a few hundred bytes each.

encoder  uint8 image -> int32 tokens            no weights, one file for both variants
flow     float32 x, tokens, t, dt -> x_next     FP16-stored weights, external, shared by variants
decoder  float32 x -> uint8 image               no weights, below a folder of its own
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tensorrt_stand_in import Place, StandInTensorRt

from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import GraphSource, TensorSpec
from percoedge.engines.tensorrt import backend as tensorrt_backend
from percoedge.engines.tensorrt import cuda
from percoedge.engines.tensorrt import library as tensorrt_library

F16, F32, I32, U8 = TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT8
CONSTANTS = CodecConstants(
    stride=4,
    codebook_size=256,
    latent_channels=4,
    latent_stride=2,
    schedule="qlds-8",
    steps=4,
    guidance=1.0,
    entropy_tile=64,
    flow_tile=32,
    flow_overlap=4,
    flow_batch=1,
    decoder_tile=32,
    encoder_margin=2,
    decoder_margin=2,
    captions_condition=False,
)
WEIGHTS = np.random.default_rng(7).integers(-8, 9, (4, 4, 1, 1)).astype(np.float16) / 8


def serialise(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Sequence[int | str]]],
    outputs: Sequence[tuple[str, int, Sequence[int | str]]],
    initializers: Sequence[TensorProto] = (),
    domain: str = "",
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*spec) for spec in inputs],
        [helper.make_tensor_value_info(*spec) for spec in outputs],
        initializers,
    )
    opsets = [helper.make_opsetid("", 20)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def external_tensor(name: str, array: NDArray[Any], location: str) -> TensorProto:
    tensor = numpy_helper.from_array(array, name)
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def constant(name: str, values: Sequence[float], dtype: str = "int64") -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def encoder_model() -> bytes:
    return serialise(
        [
            helper.make_node("Slice", ["image", "start", "end", "axes", "step"], ["corner"]),
            helper.make_node("Squeeze", ["corner", "last"], ["flat"]),
            helper.make_node("Cast", ["flat"], ["tokens"], to=I32),
        ],
        [("image", U8, ("n", "height", "width", 3))],
        [("tokens", I32, ("n", "h", "w"))],
        [
            constant("start", [0, 0, 0]),
            constant("end", [1 << 30, 1 << 30, 1]),
            constant("axes", [1, 2, 3]),
            constant("step", [4, 4, 1]),
            constant("last", [3]),
        ],
    )


def flow_model(work: int, location: str = "weights.bin") -> bytes:
    """x + dt * (W x + mean(tokens) + t), the convolution in element type ``work``."""
    return serialise(
        [
            helper.make_node("Cast", ["weights"], ["w"], to=work),
            helper.make_node("Cast", ["x"], ["x_in"], to=work),
            helper.make_node("Conv", ["x_in", "w"], ["y_out"]),
            helper.make_node("Cast", ["y_out"], ["y"], to=F32),
            helper.make_node("Cast", ["tokens"], ["tokens_float"], to=F32),
            helper.make_node("ReduceMean", ["tokens_float"], ["mean"], keepdims=0),
            helper.make_node("Add", ["y", "mean"], ["y_mean"]),
            helper.make_node("Add", ["y_mean", "t"], ["y_t"]),
            helper.make_node("Mul", ["y_t", "dt"], ["change"]),
            helper.make_node("Add", ["x", "change"], ["x_next"]),
        ],
        [
            ("x", F32, ("n", 4, "2*h", "2*w")),
            ("tokens", I32, ("n", "h", "w")),
            ("t", F32, (1,)),
            ("dt", F32, (1,)),
        ],
        [("x_next", F32, ("n", 4, "2*h", "2*w"))],
        [external_tensor("weights", WEIGHTS, location)],
    )


def decoder_model() -> bytes:
    return serialise(
        [
            helper.make_node("Slice", ["x", "start", "end", "axes"], ["rgb"]),
            helper.make_node(
                "Resize", ["rgb", "", "scales"], ["big"], mode="nearest", nearest_mode="floor",
                coordinate_transformation_mode="asymmetric",
            ),
            helper.make_node("Clip", ["big", "low", "high"], ["clipped"]),
            helper.make_node("Cast", ["clipped"], ["bytes"], to=U8),
            helper.make_node("Transpose", ["bytes"], ["image"], perm=[0, 2, 3, 1]),
        ],
        [("x", F32, ("n", 4, "2*h", "2*w"))],
        [("image", U8, ("n", "height", "width", 3))],
        [
            constant("start", [0]),
            constant("end", [3]),
            constant("axes", [1]),
            constant("scales", [1, 1, 2, 2], "float32"),
            numpy_helper.from_array(np.array(0, np.float32), "low"),
            numpy_helper.from_array(np.array(255, np.float32), "high"),
        ],
    )  # fmt: skip


def flow_reference(
    x: NDArray[np.float32], tokens: NDArray[np.int32], t: float, dt: float
) -> NDArray[np.float32]:
    mixed = np.einsum("oi,nihw->nohw", WEIGHTS[:, :, 0, 0].astype(np.float32), x)
    return np.asarray(x + np.float32(dt) * (mixed + np.float32(tokens.mean() + t)), np.float32)


IMAGE = TensorSpec("image", "uint8", ("n", "4*h", "4*w", 3))
TOKENS = TensorSpec("tokens", "int32", ("n", "h", "w"))
LATENT = TensorSpec("x", "float32", ("n", 4, "2*h", "2*w"))
SCALARS = (TensorSpec("t", "float32", (1,)), TensorSpec("dt", "float32", (1,)))
NEXT = TensorSpec("x_next", "float32", LATENT.shape)


@pytest.fixture
def constants() -> CodecConstants:
    return CONSTANTS


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle that tests must not alter."""
    root = tmp_path_factory.mktemp("bundle")
    (root / "decoder").mkdir()
    (root / "encoder.onnx").write_bytes(encoder_model())
    (root / "flow-fp32.onnx").write_bytes(flow_model(F32))
    (root / "flow-fp16.onnx").write_bytes(flow_model(F16))
    (root / "weights.bin").write_bytes(WEIGHTS.tobytes())
    (root / "decoder/model.onnx").write_bytes(decoder_model())
    write_manifest(
        root,
        name="toy",
        family="tiny",
        language="1" * 64,
        codec=CONSTANTS,
        graphs={
            "encoder": GraphFiles(
                (IMAGE,), (TOKENS,), dict.fromkeys(("fp32", "fp16"), ("encoder.onnx",))
            ),
            "flow": GraphFiles(
                (LATENT, TOKENS, *SCALARS),
                (NEXT,),
                {
                    "fp32": ("flow-fp32.onnx", "weights.bin"),
                    "fp16": ("flow-fp16.onnx", "weights.bin"),
                },
            ),
            "decoder": GraphFiles(
                (LATENT,), (IMAGE,), dict.fromkeys(("fp32", "fp16"), ("decoder/model.onnx",))
            ),
        },
        licence="CC0-1.0",
        provenance={"made": ["for", "tests"]},
    )
    return root


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the sound bundle, to be spoilt."""
    target = tmp_path / "toy"
    shutil.copytree(pristine, target)
    return target


@pytest.fixture
def bundle(pristine: Path) -> Bundle:
    return Bundle.open(pristine)


@pytest.fixture
def toy() -> Any:
    """What the models are made with, for test modules, which import nothing from one another."""
    return SimpleNamespace(
        F32=F32,
        I32=I32,
        WEIGHTS=WEIGHTS,
        encoder_model=encoder_model,
        flow_model=flow_model,
        flow_reference=flow_reference,
        serialise=serialise,
    )


@pytest.fixture
def source_from_nodes() -> Callable[..., GraphSource]:
    """Make a GraphSource of one node over float32 vectors x -> y."""

    def make(node: onnx.NodeProto, domain: str = "", axis: int | str = "n") -> GraphSource:
        vector = (axis,)
        model = serialise([node], [("x", F32, vector)], [("y", F32, vector)], domain=domain)
        specs = [TensorSpec(name, "float32", vector) for name in "xy"]
        return GraphSource("probe", "fp32", model, {}, (specs[0],), (specs[1],))

    return make


@pytest.fixture
def make_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Place]]:
    """Make a machine with a GPU and TensorRT, neither of which is there."""
    made: list[StandInTensorRt] = []

    def make(name: str = "tensorrt", sm: int = 89) -> Place:
        place = Place(name, tmp_path / "plans", sm)
        monkeypatch.setattr(cuda, "_import_cuda", lambda: (place.gpu.core, place.gpu.bindings))
        monkeypatch.setattr(tensorrt_backend, "find_library", lambda _: place.trt.library)
        monkeypatch.setattr(tensorrt_library, "_LOGGERS", {})  # of libraries that are not there
        made.append(place.trt)
        return place

    yield make
    assert [trt.faults for trt in made] == [[]] * len(made)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def place(request: pytest.FixtureRequest, make_place: Callable[..., Place]) -> Place:
    return make_place(request.param)
