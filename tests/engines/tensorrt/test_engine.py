"""TensorRT's executor on a GPU made of numpy memory: results, lifetimes, order, and memory.

Graphs are run for real, on the CPU; what the stand-ins check is everything around them.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tensorrt_stand_in import Place

from percoedge.engines.bundle import Bundle
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.tensorrt import device
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.binding import TensorRtBuffer
from percoedge.engines.tensorrt.engine import TensorRtEngine
from percoedge.engines.tensorrt.library import LIBRARIES, find_library
from percoedge.errors import BackendError
from percoedge.runtime.bench.alone import graphs_alone
from percoedge.runtime.bench.case import Case, Limits
from percoedge.runtime.bench.measure import measure_on
from percoedge.runtime.codec import Codec


def latents(n: int = 1, h: int = 2, w: int = 3, seed: int = 0) -> dict[str, Any]:
    """Feeds of the flow graph whose sums are exact in half precision."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(-8, 9, (n, 4, 2 * h, 2 * w)).astype(np.float32),
        "tokens": rng.integers(0, 4, (n, h, w)).astype(np.int32),
        "t": np.array([0.5], np.float32),
        "dt": np.array([0.25], np.float32),
    }


def reference(toy: Any, feeds: dict[str, Any]) -> NDArray[np.float32]:
    result: NDArray[np.float32] = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
    return result


class TestResults:
    def test_every_shape_and_every_run_of_it(self, place: Place, bundle: Bundle, toy: Any) -> None:
        with place.load(bundle, "flow") as flow:
            for seed in range(4):
                for n, h, w in ((1, 2, 3), (2, 1, 1), (4, 5, 4), (1, 3, 2)):
                    feeds = latents(n, h, w, seed)
                    out = flow.run(feeds)["x_next"]
                    assert isinstance(out, np.ndarray)
                    np.testing.assert_allclose(out, reference(toy, feeds), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("kind", ["encoder", "decoder"])
    def test_bytes_and_integers(self, place: Place, bundle: Bundle, kind: str) -> None:
        rng = np.random.default_rng(1)
        feeds = {
            "encoder": {"image": rng.integers(0, 256, (2, 8, 12, 3)).astype(np.uint8)},
            "decoder": {"x": rng.normal(90, 90, (2, 4, 4, 6)).astype(np.float32)},
        }[kind]
        want = OnnxRuntimeBackend(threads=1).load(bundle.read(kind, "fp32")).run(feeds)
        with place.load(bundle, kind) as engine:
            for _ in range(3):
                got = engine.run(feeds)
                for name in want:
                    np.testing.assert_array_equal(np.asarray(got[name]), want[name])

    def test_the_profile_is_the_one_for_the_batch(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        """With --each-batch small batches take the first; else there is one for all."""
        for each_batch, wanted in ((True, [0, 0, 1, 1]), (False, [0] * 4)):
            place.trt.used_profiles.clear()
            source = place.build(bundle, "flow", batches=(2, 4), each_batch=each_batch)
            with place.backend.load(source) as flow:
                for n in (1, 2, 3, 4):
                    out = flow.run(latents(n))["x_next"]
                    np.testing.assert_allclose(out, reference(toy, latents(n)), atol=1e-5)
                with pytest.raises(BackendError, match="expected n 1..4"):
                    flow.run(latents(5))
            assert place.trt.used_profiles == wanted

    def test_strided_feeds(self, place: Place, bundle: Bundle, toy: Any) -> None:
        feeds = latents()
        want = reference(toy, feeds)
        feeds["x"] = np.asfortranarray(feeds["x"])
        feeds["tokens"] = np.repeat(feeds["tokens"], 2, axis=2)[:, :, ::2]
        out = place.load(bundle, "flow").run(feeds)["x_next"]
        np.testing.assert_allclose(np.asarray(out), want, rtol=1e-5, atol=1e-5)


class TestBuffers:
    def test_a_loop_stays_on_the_gpu_and_keeps_what_is_held(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        flow, decoder = place.load(bundle, "flow"), place.load(bundle, "decoder")
        feeds = latents()
        held, wanted = [], []
        want = feeds["x"]
        for _ in range(6):
            feeds["x"] = flow.run(feeds, on_device=True)["x_next"]
            want = toy.flow_reference(want, feeds["tokens"], 0.5, 0.25)
            held.append(feeds["x"])
            wanted.append(want)
        image = decoder.run({"x": feeds["x"]})["image"]
        assert place.gpu.fetches == 1  # the image
        for buffer, want in zip(held, wanted, strict=True):
            assert isinstance(buffer, TensorRtBuffer)
            assert (buffer.dtype.name, buffer.shape) == ("float32", (1, 4, 4, 6))
            np.testing.assert_allclose(np.asarray(buffer), want, rtol=1e-5, atol=1e-5)
        pixels = np.clip(wanted[-1][:, :3], 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(image, pixels.repeat(2, axis=1).repeat(2, axis=2))

    def test_feeds_may_change_when_the_call_is_over(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        flow = place.load(bundle, "flow")
        results = []
        for seed in range(5):
            feeds = latents(seed=seed)
            want = reference(toy, feeds)
            results.append((flow.run(feeds, on_device=True)["x_next"], want))
            for feed in feeds.values():
                feed[:] = 0
        for out, want in results:
            np.testing.assert_allclose(np.asarray(out), want, rtol=1e-5, atol=1e-5)

    def test_what_is_fetched_ahead_waits_for_no_later_run(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        flow = place.load(bundle, "flow")
        for ahead in (True, False):
            feeds = latents(seed=int(ahead))
            place.backend.gpu.wait()
            first = flow.run(feeds, on_device=True)["x_next"]
            if ahead:
                first.begin_fetch()  # type: ignore[union-attr]
            flow.run(latents(seed=5), on_device=True)
            before = place.gpu.clock_ms
            for _ in range(2):  # the second time it is copied anew
                np.testing.assert_allclose(
                    np.asarray(first), reference(toy, feeds), rtol=1e-5, atol=1e-5
                )
                if ahead:
                    assert place.gpu.clock_ms - before < 20  # a graph takes 10, a copy 1
                    break
            else:
                assert place.gpu.clock_ms - before > 20

    def test_a_fetch_that_nobody_waits_for(self, place: Place, bundle: Bundle, toy: Any) -> None:
        """Its copy to the host may still be queued when the buffer is gone."""
        flow = place.load(bundle, "flow")
        for _ in range(2):
            flow.run(latents(), on_device=True)["x_next"].begin_fetch()  # type: ignore[union-attr]
        gc.collect()
        feeds = latents(2)
        out = flow.run(feeds)["x_next"]
        np.testing.assert_allclose(np.asarray(out), reference(toy, feeds), rtol=1e-5, atol=1e-5)

    def test_outputs_outlive_later_runs_and_the_engine(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        flow = place.load(bundle, "flow")
        want = reference(toy, latents())
        host = np.asarray(flow.run(latents())["x_next"])
        device = flow.run(latents(), on_device=True)["x_next"]
        host += 0  # it is the caller's to write to
        for seed in range(1, 5):
            flow.run(latents(seed=seed))
        flow.close()
        del flow
        gc.collect()
        np.testing.assert_allclose(host, want, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(np.asarray(device), want, rtol=1e-5, atol=1e-5)
        assert np.asarray(device, np.float64).dtype == np.float64

    def test_buffers_of_another_backend_go_through_the_host(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        other = TensorRtBackend(place.backend.name, place.cache)
        here, there = place.load(bundle, "flow"), other.load(place.build(bundle, "flow"))
        ort = OnnxRuntimeBackend(threads=1).load(bundle.read("flow", "fp32"))
        feeds = latents()
        want = feeds["x"]
        for engine in (here, there, ort, here):
            feeds["x"] = engine.run(feeds, on_device=True)["x_next"]
            want = toy.flow_reference(want, feeds["tokens"], 0.5, 0.25)
        np.testing.assert_allclose(np.asarray(feeds["x"]), want, rtol=1e-5, atol=1e-5)

    def test_threads_may_share_an_engine(self, place: Place, bundle: Bundle, toy: Any) -> None:
        flow, results = place.load(bundle, "flow"), {}

        def work(seed: int) -> None:
            for _ in range(10):
                out = flow.run(latents(seed=seed), on_device=seed % 2 == 0)["x_next"]
                results[seed] = np.array(out)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 4
        for seed, out in results.items():
            np.testing.assert_allclose(
                out, reference(toy, latents(seed=seed)), rtol=1e-5, atol=1e-5
            )


class TestTimes:
    """On the stand-in's clock a copy takes 1 ms, a graph 10."""

    def test_a_chain(self, place: Place, bundle: Bundle) -> None:
        flow, decoder = place.load(bundle, "flow"), place.load(bundle, "decoder")
        feeds = latents()
        with place.backend.trace() as times_ms:
            for _ in range(3):
                feeds["x"] = flow.run(feeds, on_device=True)["x_next"]
            decoder.run({"x": feeds["x"]})
        assert times_ms.pop("enqueue") > 0
        assert times_ms == {
            "host to device": 3,  # all of the first run's, then tokens, t and dt
            "compute flow": 30,
            "compute decoder": 10,
            "device to device": 3 + 3,  # results out of the way, and in again
            "device to host": 1,
        }

    def test_layers(self, place: Place, bundle: Bundle) -> None:
        """In runs that are not captured, beside those that are, and with nothing left behind."""
        flow = place.load(bundle, "flow")
        assert isinstance(flow, TensorRtEngine)
        feeds = latents()
        wanted = [np.asarray(flow.run(feeds)["x_next"]).copy() for _ in range(3)][-1]
        gc.collect()
        used, launches = place.gpu.used_bytes, place.gpu.launches
        layers = flow.layers(feeds, runs=3)
        assert layers.times_ms == {"first": 4, "second": 6}
        assert layers.described["Layers"] == ["first", "second"]
        assert (place.gpu.used_bytes, place.gpu.launches) == (used, launches)
        np.testing.assert_array_equal(np.asarray(flow.run(feeds)["x_next"]), wanted)
        with pytest.raises(BackendError, match="expected n 1..4"):
            flow.layers(latents(n=5))

    def test_graphs_alone(self, place: Place, bundle: Bundle) -> None:
        place.build(bundle, "flow", batches=(4,))
        (record,) = graphs_alone(bundle, place.backend, {"flow": latents()}, seconds=0)
        assert record["compute_ms"] == {"p50": 10, "p99": 10}
        assert record["host_to_device_ms"]["p50"] == record["device_to_host_ms"]["p50"] == 1
        assert record["enqueue_ms"]["p50"] > 0
        assert record["layers"] == {"first": 4, "second": 6}
        assert set(record["engine"]) == {"Layers", "Bindings"}
        assert record["runs_per_s"] > 0

    def test_percoedge_bench(self, place: Place, bundle: Bundle) -> None:
        for kind in ("encoder", "flow", "decoder"):
            place.build(bundle, kind, batches=(4,))
        photo = np.zeros((20, 28, 3), np.uint8)
        case = Case("toy", place.backend.name, 28, 20, 1, 3, None)
        with Codec(bundle, place.backend) as codec:
            stream = codec.encode(photo, schedule="uniform")
        result = measure_on(bundle, place.backend, case, Limits(0, 0, 2), stream)
        times_ms = result["device_ms"]
        assert times_ms.pop("idle") < 0  # of a real clock, which this GPU's is not
        assert times_ms.pop("enqueue") > 0
        computed = {name: times_ms[f"compute {name}"] for name in ("flow", "decoder")}
        assert computed == {"flow": 30, "decoder": 10}
        assert {graph["graph"]: graph["time_ms"] for graph in result["graphs"]} == computed
        assert times_ms["device to host"] == 2  # latent, image
        assert "flow, waiting" in result["stages_ms"]
        assert result["gpu"] == {"multiprocessors": 128}
        ceiling = result["ceiling"]  # of an RTX 4090
        assert ceiling["float_ops_per_s"] == pytest.approx(330e12, rel=0.01)
        assert ceiling["bytes_per_s"] == pytest.approx(1008e9, rel=0.01)
        assert ceiling["source"].startswith("computed: 128 multiprocessors at 2520 MHz")


class TestCudaGraphs:
    def test_captured_at_the_second_run_of_a_shape(
        self, make_place: Callable[..., Place], bundle: Bundle
    ) -> None:
        place = make_place("tensorrt")
        flow = place.load(bundle, "flow")
        for n in (1, 2):
            for seed in range(5):
                flow.run(latents(n, seed=seed))
        assert place.trt.contexts == 2
        assert place.trt.runs == 2 * 2  # one as it is, one to be captured
        assert place.gpu.launches == 2 * 4
        captures = place.backend.captures
        assert captures is not None and captures.refusals == {}
        assert (captures.runs, captures.launches) == (10, 8)

    def test_rtx_captures_by_itself_and_keeps_its_kernels(
        self, make_place: Callable[..., Place], bundle: Bundle
    ) -> None:
        place = make_place("tensorrt-rtx")
        flow = place.load(bundle, "flow")
        for _ in range(3):
            flow.run(latents())
        assert (place.trt.runs, place.gpu.launches) == (3, 0)
        assert place.trt.config.cuda_graph_strategy == "whole"
        assert place.trt.config.dynamic_shapes_kernel_specialization_strategy == "eager"

    def test_rtx_compiles_a_shape_once_in_a_lifetime(
        self, make_place: Callable[..., Place], bundle: Bundle
    ) -> None:
        place = make_place("tensorrt-rtx")
        source = place.build(bundle, "flow")
        for compiled in (2, 2, 3):
            with place.backend.load(source) as flow:
                for h in range(1, 1 + compiled):
                    flow.run(latents(1, h))
            assert place.trt.compiled == compiled

    @pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: b"?" + d[1:], lambda d: b""])
    def test_kept_kernels_that_are_damaged_are_compiled_again(
        self, make_place: Callable[..., Place], bundle: Bundle, damage: Callable[[bytes], bytes]
    ) -> None:
        place = make_place("tensorrt-rtx")
        source = place.build(bundle, "flow")
        for compiled in (1, 2):
            with place.backend.load(source) as flow:
                flow.run(latents())
            assert place.trt.compiled == compiled
            (kept,) = place.cache.root.glob("*.kernels")
            kept.write_bytes(damage(kept.read_bytes()))
        place.build(bundle, "flow", sizes=((32, 32),))  # another plan takes the place of the first
        assert list(place.cache.root.glob("*.kernels")) == []

    def test_work_that_cannot_be_captured_runs_as_it_is(
        self, make_place: Callable[..., Place], bundle: Bundle, toy: Any
    ) -> None:
        place = make_place("tensorrt")
        place.gpu.capturable = False
        flow = place.load(bundle, "flow")
        for seed in range(4):
            feeds = latents(seed=seed)
            out = np.asarray(flow.run(feeds)["x_next"])
            np.testing.assert_allclose(out, reference(toy, feeds), rtol=1e-5, atol=1e-5)
        assert place.gpu.launches == 0
        captures = place.backend.captures
        assert captures is not None and (captures.runs, captures.launches) == (4, 0)
        ((where, reason),) = captures.refusals.items()
        assert where.startswith("graph 'flow'") and "CAPTURE_INVALIDATED" in reason
        said = "captured 0 of 4 runs; graph 'flow' (fp16, tensorrt) cannot be captured: CUDA_ERROR"
        assert str(captures).startswith(said)

    def test_shared_memory_that_grows_is_captured_anew(
        self, make_place: Callable[..., Place], bundle: Bundle, toy: Any
    ) -> None:
        place = make_place("tensorrt")
        flow = place.load(bundle, "flow")
        for size in (1, 1, 1, 4, 1, 1, 1, 4, 4):
            feeds = latents(size, size, size)
            out = np.asarray(flow.run(feeds)["x_next"])
            np.testing.assert_allclose(out, reference(toy, feeds), rtol=1e-5, atol=1e-5)
        assert place.gpu.launches == 2 + 3 + 2  # each shape runs as it is once, whatever its memory


class TestMemory:
    def test_closing_gives_everything_back(self, place: Place, bundle: Bundle) -> None:
        flow, decoder = place.load(bundle, "flow"), place.load(bundle, "decoder")
        out = flow.run(latents(), on_device=True)["x_next"]
        flow.run(latents(2))
        decoder.run({"x": out})
        with_both = place.gpu.used_bytes
        flow.close()
        between = place.gpu.used_bytes
        assert 0 < between < with_both
        decoder.close()
        decoder.close()
        assert place.gpu.used_bytes == 512  # the buffer that is held
        del out
        gc.collect()
        assert (place.gpu.used_bytes, place.gpu.pinned_bytes) == (0, 0)
        with pytest.raises(BackendError, match="'flow' .* is closed; load it again"):
            flow.run(latents())

    def test_closing_waits_for_what_is_queued(self, place: Place, bundle: Bundle, toy: Any) -> None:
        for runs in (1, 3):
            with place.load(bundle, "flow") as flow:
                for _ in range(runs):
                    out = flow.run(latents(), on_device=True)["x_next"]
            del flow
            want = reference(toy, latents())
            np.testing.assert_allclose(np.asarray(out), want, rtol=1e-5, atol=1e-5)

    def test_an_engine_that_nobody_closes(self, place: Place, bundle: Bundle) -> None:
        """Its contexts go before what they share; the fixture asks for faults."""
        flow = place.load(bundle, "flow")
        flow.run(latents())
        place.backend.gpu.wait()
        del flow
        gc.collect()
        with place.load(bundle, "flow") as flow:
            flow.run(latents())

    def test_shapes_unused_for_longest_are_let_go(
        self, place: Place, bundle: Bundle, toy: Any
    ) -> None:
        flow = place.load(bundle, "flow")
        sizes = [(h, w) for h in range(1, 7) for w in range(1, 7)]
        results = []
        for h, w in sizes + sizes[:3]:
            feeds = latents(1, h, w)
            results.append((flow.run(feeds, on_device=True)["x_next"], reference(toy, feeds)))
        for out, want in results:
            np.testing.assert_allclose(np.asarray(out), want, rtol=1e-5, atol=1e-5)
        assert place.trt.contexts == len(sizes) + 3

    def test_what_is_open_at_the_end_of_the_process_is_closed(
        self, place: Place, bundle: Bundle
    ) -> None:
        flow, decoder = place.load(bundle, "flow"), place.load(bundle, "decoder")
        flow.run(latents(), on_device=True)
        gc.collect()
        device._close(weakref.ref(place.backend._open()), os.getpid() + 1)  # that of a copy
        assert place.gpu.used_bytes > 0
        device._close(weakref.ref(place.backend._open()), os.getpid())
        assert (place.gpu.used_bytes, place.gpu.kept_bytes) == (0, 0)
        for engine in (flow, decoder):
            with pytest.raises(BackendError, match="is closed"):
                engine.run({})

    def test_too_little_for_the_plan(self, place: Place, bundle: Bundle) -> None:
        place.gpu.total_bytes = 10
        source = place.build(bundle, "flow")
        with pytest.raises(BackendError, match=r"'flow' .*of free GPU memory.*--low-memory"):
            place.backend.load(source)

    def test_too_little_for_a_picture(self, place: Place, bundle: Bundle, toy: Any) -> None:
        place.gpu.total_bytes = 300_000
        flow = place.load(bundle, "flow")
        with pytest.raises(BackendError, match=r"expected .* MiB of free GPU memory.*smaller"):
            flow.run(latents(4, 32, 32))
        feeds = latents()
        out = np.asarray(flow.run(feeds)["x_next"])
        np.testing.assert_allclose(out, reference(toy, feeds), rtol=1e-5, atol=1e-5)


# Every name of the libraries that is used when a plan is run.
_NAMES = {
    "Runtime": "deserialize_cuda_engine",
    "ICudaEngine": "create_execution_context num_io_tensors get_tensor_name get_tensor_mode "
    "get_tensor_dtype get_tensor_shape create_engine_inspector",
    "IExecutionContext": "set_input_shape get_tensor_shape set_tensor_address set_device_memory "
    "update_device_memory_size_for_shapes execute_async_v3 profiler nvtx_verbosity "
    "set_optimization_profile_async",
    "IProfiler": "report_layer_time",
    "EngineInspector": "execution_context get_engine_information",
    "LayerInformationFormat": "JSON",
    "ProfilingVerbosity": "LAYER_NAMES_ONLY DETAILED",
    "TensorIOMode": "INPUT OUTPUT",
    "DataType": "BOOL UINT8 INT8 INT32 INT64 HALF FLOAT",
    "ExecutionContextAllocationStrategy": "USER_MANAGED",
}
_RTX_NAMES = {
    "ICudaEngine": "create_runtime_config",
    "IRuntimeConfig": "set_execution_context_allocation_strategy cuda_graph_strategy "
    "dynamic_shapes_kernel_specialization_strategy create_runtime_cache set_runtime_cache",
    "IRuntimeCache": "serialize deserialize",
    "CudaGraphStrategy": "WHOLE_GRAPH_CAPTURE DISABLED",
    "DynamicShapesKernelSpecializationStrategy": "EAGER",
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_names_of_the_real_libraries(name: str) -> None:
    try:
        module = find_library(name).module
    except BackendError as error:
        pytest.skip(str(error))
    for names in (_NAMES, _RTX_NAMES if name == "tensorrt-rtx" else {}):
        for owner, attributes in names.items():
            for attribute in attributes.split():
                assert hasattr(getattr(module, owner), attribute), f"{owner}.{attribute}"
    assert module.DataType.HALF.name == "HALF"
