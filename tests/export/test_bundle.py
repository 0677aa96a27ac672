"""A whole bundle exported from a micro family, run by the runtime."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from percoedge import Codec
from percoedge.engines.bundle import Bundle
from percoedge.engines.comparison import example_feeds
from percoedge.engines.selection import select
from percoedge.export.bundle import export_bundle
from percoedge.export.checks.parity import check_parity
from percoedge.export.config import Config, load_config
from percoedge.export.graphs.modules import graph_plans
from percoedge.export.models.percov2.family import Family
from percoedge.runtime.images.metrics import psnr_db

pytestmark = pytest.mark.slow

_IN_INTEGERS = ("encoder", "flow", "flow_guided", "decoder")


@pytest.fixture(scope="module")
def bundle(family: Family, config: Config, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle")
    return export_bundle(family, config, out, name="micro", licence="Apache-2.0")


def test_every_graph_agrees_with_pytorch(family: Family, config: Config, bundle: Bundle) -> None:
    rows = check_parity(family, config, bundle)
    assert {(row.graph, row.b) for row in rows} == {
        (kind, f"onnxruntime-cpu {variant}")
        for kind in ("encoder", "entropy", "flow", "flow_guided", "decoder")
        for variant in ("fp32", "fp16", "int8")
    }
    assert [row for row in rows if not row.ok] == []


def test_a_changed_weight_is_found(family: Family, config: Config, bundle: Bundle) -> None:
    other = copy.deepcopy(family)
    with torch.no_grad():
        for parameter in other.vae.decoder.parameters():
            parameter.mul_(1.05)
    failed = {row.graph for row in check_parity(other, config, bundle) if not row.ok}
    assert failed == {"decoder"}


@pytest.mark.parametrize("optimization", ["off", "basic", "extended"])
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_integers_do_not_rest_on_what_the_runtime_fuses(
    bundle: Bundle, kind: str, optimization: str
) -> None:
    graph = bundle.read(kind, "int8")
    feeds = example_feeds(graph.inputs, {"n": 2, "h": 4, "w": 6}, bundle.codec.codebook_size)
    results = []
    for level in ("all", optimization):
        with select("onnxruntime-cpu", optimization=level).load(graph) as engine:
            (result,) = engine.run(feeds).values()
            results.append(np.asarray(result))
    np.testing.assert_array_equal(*results)


def test_graphs_in_integers_hold_no_weights_of_their_own(bundle: Bundle) -> None:
    for kind in _IN_INTEGERS:
        variants = bundle.manifest.graphs[kind].variants
        assert variants["int8"].data == variants["fp32"].data
        assert variants["int8"].model.size < (100_000 if kind == "encoder" else 20_000)
        model = onnx.load_from_string(bundle.read(kind, "int8").model)
        operators = {node.op_type for node in model.graph.node}
        in_bytes = "MultiHeadAttention" if kind.startswith("flow") else "QLinearConv"
        assert in_bytes in operators
        assert not {"Relu", "Softmax"} & operators


@pytest.mark.parametrize("kind", ["flow", "flow_guided"])
@pytest.mark.parametrize("grid", [(1, 1), (1, 2), (3, 1), (4, 4), (31, 7), (32, 32)])
def test_the_flow_runs_on_odd_and_even_grids(
    family: Family, config: Config, bundle: Bundle, kind: str, grid: tuple[int, int]
) -> None:
    """The crop of the position table is where exported integer divisions go wrong."""
    plan = graph_plans(config)[kind]
    module = plan.build(family, torch.float32)
    sizes = {"n": 1, "h": grid[0], "w": grid[1]}
    feeds = example_feeds(plan.inputs, sizes, config.codec.codebook_size)
    with torch.no_grad():
        expected = module(**{name: torch.from_numpy(feed) for name, feed in feeds.items()}).numpy()
    with select("onnxruntime-cpu").load(bundle.read(kind, "fp32")) as engine:
        (result,) = engine.run(feeds).values()
    np.testing.assert_allclose(np.asarray(result), expected, atol=1e-4)


def test_guidance_of_one_changes_nothing(config: Config, bundle: Bundle) -> None:
    backend = select("onnxruntime-cpu")
    inputs = graph_plans(config)["flow_guided"].inputs
    feeds = example_feeds(inputs, {"n": 2, "h": 3, "w": 4}, config.codec.codebook_size)
    feeds["guidance"] = np.ones(1, np.float32)
    with backend.load(bundle.read("flow_guided", "fp32")) as engine:
        guided = np.asarray(engine.run(feeds)["x_next"])
    del feeds["guidance"]
    with backend.load(bundle.read("flow", "fp32")) as engine:
        plain = np.asarray(engine.run(feeds)["x_next"])
    np.testing.assert_allclose(guided, plain, atol=1e-5)


def test_variants_share_their_weights_in_half_precision(bundle: Bundle) -> None:
    graphs = bundle.manifest.graphs
    for kind in ("encoder", "flow", "decoder"):
        fp32, fp16 = (graphs[kind].variants[name] for name in ("fp32", "fp16"))
        assert fp32.data == fp16.data
    assert graphs["flow"].variants["fp32"].data == graphs["flow_guided"].variants["fp16"].data
    stored = sum({r.file: r.size for r in bundle.manifest.files if "weights" in r.file}.values())
    model = onnx.load_from_string(bundle.read("flow", "fp32").model)
    large = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert large and all(t.data_type != TensorProto.FLOAT for t in large)
    assert stored < 1 << 20


def test_the_manifest_states_what_graphs_cost(bundle: Bundle) -> None:
    costs = {kind: graph.cost for kind, graph in bundle.manifest.graphs.items()}
    flow, guided, decoder = costs["flow"], costs["flow_guided"], costs["decoder"]
    assert flow is not None and guided is not None and decoder is not None
    assert None not in costs.values()
    assert guided.macs == {term: 2 * factor for term, factor in flow.macs.items()}
    assert 0 < flow.int8_macs["n*h*w"] < flow.macs["n*h*w"]
    stored = sum(record.size for record in bundle.manifest.graphs["decoder"].variants["fp32"].data)
    assert 2 * decoder.weights == pytest.approx(stored, rel=0.2)  # small ones lie in the model


def test_models_carry_no_traces_of_the_machine(bundle: Bundle) -> None:
    for kind in bundle.kinds:
        for variant in ("fp32", "fp16"):
            model = bundle.read(kind, variant).model
            assert b"site-packages" not in model
            assert b".py" not in model


def test_the_fp16_graph_is_typed_and_keeps_its_islands(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.read("flow", "fp16").model)
    assert {o.version for o in model.opset_import if not o.domain} == {20}
    halves = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT16}
    assert len(halves) > 10
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    assert kinds == {
        "x": TensorProto.FLOAT,
        "tokens": TensorProto.INT32,
        "t": TensorProto.FLOAT,
        "dt": TensorProto.FLOAT,
    }


@pytest.mark.parametrize("size", [(16, 16), (50, 33), (200, 90)])
def test_the_runtime_decodes_the_tokens_it_encoded(bundle: Bundle, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
    with Codec.load(bundle.path) as codec:
        data = codec.encode(photo)
        tokens = codec.tokens(photo)
        np.testing.assert_array_equal(codec.decode_tokens(data), tokens)
        image = codec.decode(data)
        other = codec.decode_batch([data, data])[1]
    assert image.size == size
    np.testing.assert_allclose(np.asarray(other, np.int16), np.asarray(image, np.int16), atol=3)
    with Codec.load(bundle.path, "onnxruntime-cpu:fp32") as codec:
        np.testing.assert_array_equal(codec.decode_tokens(data), tokens)
        assert psnr_db(np.asarray(codec.decode(data)), np.asarray(image)) > 36


def test_the_runtime_guides_in_integers_as_in_floats(bundle: Bundle) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 33, 3), np.uint8)
    pictures = {}
    with Codec.load(bundle.path) as codec:
        data = codec.encode(photo)
    for name in ("onnxruntime-cpu:int8", "onnxruntime-cpu:fp32"):
        with Codec.load(bundle.path, name) as codec:
            for guidance in (1, 2):
                pictures[name, guidance] = np.asarray(codec.decode(data, guidance=guidance))
            batch = codec.decode_batch([data, data], guidance=2)
        np.testing.assert_allclose(np.asarray(batch[1], int), pictures[name, 2], atol=3)
        assert not np.array_equal(pictures[name, 1], pictures[name, 2])
    assert psnr_db(pictures["onnxruntime-cpu:fp32", 2], pictures["onnxruntime-cpu:int8", 2]) > 36


def test_a_family_is_guided_where_its_configuration_says_so() -> None:
    kinds = {name: set(graph_plans(load_config(name))) for name in ("tiny", "sd3-medium")}
    assert "flow_guided" in kinds["sd3-medium"] - kinds["tiny"]
    with pytest.raises(ValueError, match=r"codec.guidance 1 where flow.guided is false, got 3\.0"):
        load_config("tiny", codec={"guidance": 3.0})
