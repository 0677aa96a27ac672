"""ONNX Runtime on the CPU: results, buffers, memory, and every way in which a graph can fail."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import helper

from percoedge.engines import memory
from percoedge.engines.bundle import Bundle, pack_zip
from percoedge.engines.contract import Engine, GraphSource, TensorSpec
from percoedge.engines.onnxruntime import backend as onnxruntime_backend
from percoedge.engines.onnxruntime.backend import OPTIMIZATIONS, OnnxRuntimeBackend
from percoedge.engines.onnxruntime.engine import OrtBuffer
from percoedge.errors import BackendError, PercoedgeError

BACKEND = OnnxRuntimeBackend(threads=1)
SourceFromNodes = Callable[..., GraphSource]


def load(bundle: Bundle, kind: str, variant: str = "fp32") -> Engine:
    return BACKEND.load(bundle.read(kind, variant))


def latents(n: int = 1, h: int = 2, w: int = 3, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Feeds of the flow graph whose sums are exact in half precision."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(-8, 9, (n, 4, 2 * h, 2 * w)).astype(np.float32),
        "tokens": rng.integers(0, 4, (n, h, w)).astype(np.int32),
        "t": np.array([0.5], np.float32),
        "dt": np.array([0.25], np.float32),
    }


class TestResults:
    @pytest.mark.parametrize("variant", ["fp32", "fp16"])
    @pytest.mark.parametrize("optimization", OPTIMIZATIONS)
    @pytest.mark.parametrize("threads", [None, 2])
    def test_variants_share_half_precision_weights(
        self, bundle: Bundle, toy: Any, variant: str, optimization: str, threads: int | None
    ) -> None:
        backend = OnnxRuntimeBackend(threads=threads, optimization=optimization)
        with backend.load(bundle.read("flow", variant)) as engine:
            for n, h, w in ((1, 2, 3), (2, 1, 1), (1, 5, 4)):
                feeds = latents(n, h, w)
                out = engine.run(feeds)["x_next"]
                want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
                np.testing.assert_allclose(np.asarray(out), want, rtol=1e-6, atol=1e-6)

    def test_bytes_in_integers_out(self, bundle: Bundle) -> None:
        image = np.random.default_rng(1).integers(0, 256, (2, 8, 12, 3)).astype(np.uint8)
        tokens = load(bundle, "encoder").run({"image": image})["tokens"]
        assert isinstance(tokens, np.ndarray)
        assert (tokens.dtype.name, tokens.shape) == ("int32", (2, 2, 3))
        np.testing.assert_array_equal(tokens, image[:, ::4, ::4, 0])

    def test_an_archive_runs_like_the_directory(self, bundle: Bundle, tmp_path: Path) -> None:
        pack_zip(bundle, tmp_path / "toy.zip")
        packed = Bundle.open(tmp_path / "toy.zip")
        outs = [load(b, "flow").run(latents())["x_next"] for b in (bundle, packed)]
        np.testing.assert_array_equal(outs[0], outs[1])

    def test_strided_and_foreign_feeds(self, bundle: Bundle, toy: Any) -> None:
        feeds = latents()
        want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
        feeds["x"] = np.asfortranarray(feeds["x"])
        feeds["tokens"] = np.repeat(feeds["tokens"], 2, axis=2)[:, :, ::2]
        out = load(bundle, "flow").run(feeds)["x_next"]
        np.testing.assert_allclose(np.asarray(out), want, rtol=1e-6)


class TestBuffers:
    def test_a_chain_stays_on_the_device(self, bundle: Bundle, toy: Any) -> None:
        with load(bundle, "flow") as flow, load(bundle, "decoder") as decoder:
            feeds: dict[str, Any] = latents()
            want, tokens = feeds["x"], feeds["tokens"]
            for _ in range(3):
                out = flow.run(feeds, on_device=True)["x_next"]
                assert isinstance(out, OrtBuffer)
                assert (out.dtype.name, out.shape) == ("float32", (1, 4, 4, 6))
                feeds["x"] = out
                want = toy.flow_reference(want, tokens, 0.5, 0.25)
            image = decoder.run({"x": feeds["x"]})["image"]
        np.testing.assert_allclose(np.asarray(feeds["x"]), want, rtol=1e-5)
        pixels = np.clip(want[:, :3], 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(image, pixels.repeat(2, axis=1).repeat(2, axis=2))

    def test_outputs_outlive_the_engine_and_later_runs(self, bundle: Bundle) -> None:
        engine = load(bundle, "flow")
        out = engine.run(latents())["x_next"]
        device = engine.run(latents(), on_device=True)["x_next"]
        before = np.array(out)
        for seed in range(1, 5):
            engine.run(latents(seed=seed))
        engine.close()
        del engine
        gc.collect()
        np.testing.assert_array_equal(out, before)
        np.testing.assert_array_equal(np.asarray(device), before)

    def test_outputs_share_no_memory_with_feeds(self, source_from_nodes: SourceFromNodes) -> None:
        engine = BACKEND.load(source_from_nodes(helper.make_node("Identity", ["x"], ["y"])))
        x = np.ones(4, np.float32)
        out = np.asarray(engine.run({"x": x})["y"])
        x[:] = 7
        np.testing.assert_array_equal(out, np.ones(4))

    def test_a_buffer_converts_as_numpy_asks(self, source_from_nodes: SourceFromNodes) -> None:
        engine = BACKEND.load(source_from_nodes(helper.make_node("Neg", ["x"], ["y"])))
        buffer = engine.run({"x": np.ones(2, np.float32)}, on_device=True)["y"]
        shared, copied = np.asarray(buffer), np.array(buffer, copy=True)
        assert np.shares_memory(shared, np.asarray(buffer))
        assert not np.shares_memory(shared, copied)
        assert np.asarray(buffer, np.float64).dtype == np.float64
        shared[:] = 5
        np.testing.assert_array_equal(copied, [-1, -1])

    def test_threads_may_share_an_engine(self, bundle: Bundle, toy: Any) -> None:
        engine, results = load(bundle, "flow"), {}

        def work(seed: int) -> None:
            for _ in range(20):
                results[seed] = np.asarray(engine.run(latents(seed=seed))["x_next"])

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, out in results.items():
            feeds = latents(seed=seed)
            want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
            np.testing.assert_allclose(out, want, rtol=1e-6)


class TestRefusedFeeds:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"z": np.zeros(1)}, "expected 'x', 'tokens', 't', 'dt'; got"),
            ({"x": np.zeros((1, 4, 4, 6))}, "expected float32"),
            ({"x": np.zeros((4, 4, 6), np.float32)}, "reshape it to 4 axes"),
            ({"x": np.zeros((1, 4, 5, 6), np.float32)}, "expected a multiple of 2"),
            ({"tokens": np.zeros((1, 2, 2), np.int32)}, "expected 3 because w = 3"),
            ({"t": np.zeros(2, np.float32)}, "axis 0 .* expected 1, got 2"),
        ],
    )
    def test_what_breaks_the_specs(
        self, bundle: Bundle, change: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(BackendError, match=rf"^graph 'flow' \(fp32, .*cpu\): input.*{message}"):
            load(bundle, "flow").run({**latents(), **change})

    def test_a_closed_engine(self, bundle: Bundle) -> None:
        with load(bundle, "encoder") as engine:
            engine.close()
        with pytest.raises(BackendError, match="is closed; load it again"):
            engine.run({"image": np.zeros((1, 4, 4, 3), np.uint8)})


class TestFailures:
    """Errors are ours, name the graph, keep the runtime's text; nothing is printed."""

    @pytest.fixture(autouse=True)
    def silent(self, capfd: pytest.CaptureFixture[str]) -> Any:
        yield
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("model", [b"", b"not a model", bytes(100), b"ORTM" * 20])
    def test_no_model(self, bundle: Bundle, model: bytes) -> None:
        source = dataclasses.replace(bundle.read("encoder", "fp32"), model=model)
        with pytest.raises(BackendError, match="'encoder' .*: onnxruntime .* cannot load it: .*"):
            BACKEND.load(source)

    def test_custom_operators(self, source_from_nodes: SourceFromNodes) -> None:
        source = source_from_nodes(helper.make_node("Run", ["x"], ["y"], domain="evil"), "evil")
        with pytest.raises(BackendError, match="'probe' .*cannot load it: .*evil:Run"):
            BACKEND.load(source)

    def test_data_that_the_manifest_does_not_list(
        self, bundle: Bundle, pristine: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(pristine)  # where a runtime would find weights.bin by itself
        source = dataclasses.replace(bundle.read("flow", "fp32"), data={})
        with pytest.raises(BackendError, match=r"got \['weights\.bin'\]; list these files"):
            BACKEND.load(source)

    @pytest.mark.parametrize("location", ["/etc/hostname", "../weights.bin", "sub/../weights.bin"])
    def test_data_elsewhere(self, bundle: Bundle, toy: Any, location: str) -> None:
        source = bundle.read("flow", "fp32")
        source = dataclasses.replace(source, model=toy.flow_model(toy.F32, location))
        with pytest.raises(BackendError, match="list these files in the manifest"):
            BACKEND.load(source)

    def test_data_too_short(self, bundle: Bundle) -> None:
        source = dataclasses.replace(bundle.read("flow", "fp32"), data={"weights.bin": b"short"})
        with pytest.raises(BackendError, match="cannot load it"):
            BACKEND.load(source)

    def test_a_failure_while_running(self, toy: Any) -> None:
        f32, i32, spec = toy.F32, toy.I32, TensorSpec
        model = toy.serialise(
            [helper.make_node("Gather", ["table", "index"], ["y"])],
            [("table", f32, ("k",)), ("index", i32, ("m",))],
            [("y", f32, ("m",))],
        )
        inputs = (spec("table", "float32", ("k",)), spec("index", "int32", ("m",)))
        source = GraphSource("look-up", "fp32", model, {}, inputs, (spec("y", "float32", ("m",)),))
        feeds = {"table": np.zeros(3, np.float32), "index": np.array([9], np.int32)}
        with BACKEND.load(source) as engine:
            with pytest.raises(BackendError, match=r"'look-up' .* failed: .*bounds.*table \(3,\)"):
                engine.run(feeds)
            feeds["index"][0] = 2
            engine.run(feeds)

    @pytest.mark.parametrize(
        ("field", "change", "message"),
        [
            ("inputs", {"name": "picture"}, r"input: expected \['picture'\] .* got \['image'\]"),
            ("inputs", {"dtype": "int8"}, "input 'image': expected int8 .*, got uint8"),
            ("inputs", {"shape": ("n", "h", 3)}, r"got uint8 \('n', 'height', 'width', 3\)"),
            ("inputs", {"shape": ("n", "h", "w", "c")}, "expected uint8"),
            ("outputs", {"dtype": "int64"}, "output 'tokens': expected int64 .*, got int32"),
        ],
    )
    def test_a_manifest_that_differs_from_the_graph(
        self, bundle: Bundle, field: str, change: dict[str, Any], message: str
    ) -> None:
        source = bundle.read("encoder", "fp32")
        spec = dataclasses.replace(getattr(source, field)[0], **change)
        with pytest.raises(BackendError, match=message):
            BACKEND.load(dataclasses.replace(source, **{field: (spec,)}))  # type: ignore[arg-type]

    def test_outputs_of_another_size_than_the_manifest_says(self, bundle: Bundle) -> None:
        source = bundle.read("encoder", "fp32")
        image = dataclasses.replace(source.inputs[0], shape=("n", "h", "w", 3))
        engine = BACKEND.load(dataclasses.replace(source, inputs=(image,)))
        with pytest.raises(BackendError, match="output 'tokens': axis 1 .* expected 8 because h"):
            engine.run({"image": np.zeros((1, 8, 8, 3), np.uint8)})

    def test_a_provider_that_is_absent(self, bundle: Bundle) -> None:
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has it")
        with pytest.raises(
            BackendError, match="expected CUDAExecutionProvider in this onnxruntime"
        ):
            OnnxRuntimeBackend("onnxruntime-cuda").load(bundle.read("flow", "fp16"))

    def test_options_that_the_provider_does_not_know(self, bundle: Bundle) -> None:
        backend = OnnxRuntimeBackend(provider_options={"no_such_option": "1"})
        try:
            backend.load(bundle.read("encoder", "fp32")).close()
        except PercoedgeError as error:
            assert isinstance(error, BackendError)  # the CPU provider may ignore it

    def test_too_little_memory(self, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        source = bundle.read("flow", "fp32")
        monkeypatch.setattr(memory, "available_bytes", lambda: 1 << 20)
        with pytest.raises(BackendError, match="loading graph 'flow' .*expected .* got 1 MiB"):
            BACKEND.load(source)


class TestMemory:
    def test_engines_let_go_of_their_source(self, bundle: Bundle) -> None:
        source = bundle.read("flow", "fp32")
        gone = weakref.ref(source)
        engine = BACKEND.load(source)
        del source
        gc.collect()
        assert gone() is None
        engine.run(latents())

    def test_data_is_copied_out_of_the_source(self, bundle: Bundle) -> None:
        source = bundle.read("flow", "fp32")
        weights: Any = bytearray(source.data["weights.bin"])
        for optimization in OPTIMIZATIONS:
            spare = dataclasses.replace(source, data={"weights.bin": weights})
            engine = OnnxRuntimeBackend(optimization=optimization).load(spare)
            before = np.array(engine.run(latents())["x_next"])
            weights[:] = bytes(len(weights))
            np.testing.assert_array_equal(engine.run(latents())["x_next"], before)
            weights[:] = source.data["weights.bin"]

    def test_releases_without_data_from_memory(
        self, bundle: Bundle, toy: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """ONNX Runtime 1.23 has no call for it in Python: the option object is narrowed here."""
        folders: list[str] = []

        class Narrow:
            def __init__(self, options: Any) -> None:
                self._options = options

            def add_session_config_entry(self, key: str, value: str) -> None:
                folders.append(value)
                assert (Path(value) / "weights.bin").read_bytes() == toy.WEIGHTS.tobytes()
                self._options.add_session_config_entry(key, value)

        real = onnxruntime_backend.with_data
        monkeypatch.setattr(
            onnxruntime_backend, "with_data", lambda options, data: real(Narrow(options), data)
        )
        feeds = latents()
        out = load(bundle, "flow").run(feeds)["x_next"]
        want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
        np.testing.assert_allclose(np.asarray(out), want, rtol=1e-6)
        assert folders
        assert not Path(folders[0]).exists()


def test_cuda_libraries_are_found_wherever_they_are_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cu13/lib/libcudart.so.13", "cudnn/lib/libcudnn.so.9", "nccl/lib/libnccl.so.2"):
        (tmp_path / "nvidia" / name).parent.mkdir(parents=True)
        (tmp_path / "nvidia" / name).touch()
    monkeypatch.syspath_prepend(tmp_path)
    asked: list[str | None] = []
    ort = SimpleNamespace(preload_dlls=lambda directory=None: asked.append(directory))
    onnxruntime_backend.preload(ort)
    here = [str(tmp_path / "nvidia" / name / "lib") for name in ("cu13", "cudnn")]
    assert [folder for folder in asked if folder in here] == here
    assert str(tmp_path / "nvidia/nccl/lib") not in asked
    assert asked[-1] is None
