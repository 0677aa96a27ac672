"""Threads on one GPU: a stream, memory and bindings for each, and the engines for all."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorrt_stand_in import Place

from percoedge import Codec
from percoedge.bitstream.schedules import passes
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Engine
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.tensorrt.device import MAX_LANES
from percoedge.errors import BackendError
from percoedge.runtime.cli.main import main
from percoedge.serving.settings import ServiceSettings
from percoedge.serving.work import DecodeTask, Outcome, Worker

PASSES = sum(len(cells) > 0 for cells in passes("qlds-8", 3, 5))  # some have no cells


def latents(h: int = 2, w: int = 3, seed: int = 0) -> dict[str, Any]:
    """Feeds of the flow graph whose sums are exact in half precision."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.integers(-8, 9, (1, 4, 2 * h, 2 * w)).astype(np.float32),
        "tokens": rng.integers(0, 4, (1, h, w)).astype(np.int32),
        "t": np.array([0.5], np.float32),
        "dt": np.array([0.25], np.float32),
    }


def latents_of(n: int) -> dict[str, Any]:
    """Feeds for a batch."""
    one = latents()
    return {**one, **{name: np.repeat(one[name], n, axis=0) for name in ("x", "tokens")}}


def together(toy: Any, flow: Engine, threads: int, h: int = 2, w: int = 3) -> list[NDArray[Any]]:
    """Two steps of the flow in each of so many threads at once; what the first one left."""
    started, ended = threading.Barrier(threads), threading.Barrier(threads)
    errors: list[BaseException] = []
    left: list[NDArray[Any]] = []

    def work(seed: int) -> None:
        try:
            feeds = latents(h, w, seed)
            want = feeds["x"]
            started.wait()
            for _ in range(2):
                feeds["x"] = flow.run(feeds, on_device=True)["x_next"]
                want = toy.flow_reference(want, feeds["tokens"], 0.5, 0.25)
            got = np.asarray(feeds["x"])
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
            left.append(got)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.wait()  # all have had their lanes until here

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return left


def streams(place: Place) -> int:
    """How many streams there was work in since this was last asked."""
    used = len(place.gpu.queued)
    place.gpu.queued.clear()
    return used


@pytest.mark.parametrize("threads", [1, 2, MAX_LANES, MAX_LANES + 2])
def test_each_thread_has_a_stream(place: Place, bundle: Bundle, toy: Any, threads: int) -> None:
    """The plan is loaded once; contexts, and memory that they work in, are those of a lane."""
    with place.load(bundle, "flow") as flow:
        streams(place)
        lanes = min(threads, MAX_LANES)
        for _ in range(2):  # lanes of threads that ended are those of the next ones
            assert len(together(toy, flow, threads)) == threads
            assert streams(place) == lanes
            assert place.trt.contexts == lanes
        assert len(place.trt.scratches) == lanes
        assert place.trt.loaded == 1


def test_one_stream_where_memory_is_shared(
    make_place: Callable[..., Place], bundle: Bundle, toy: Any
) -> None:
    place = make_place()
    place.gpu.integrated = True
    with place.load(bundle, "flow") as flow:
        streams(place)
        together(toy, flow, 3)
        assert streams(place) == place.trt.contexts == 1


def test_from_one_thread_to_another_it_goes_over_the_host(
    place: Place, bundle: Bundle, toy: Any
) -> None:
    flow = place.load(bundle, "flow")
    feeds = latents()
    want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
    want = toy.flow_reference(want, feeds["tokens"], 0.5, 0.25)
    feeds["x"] = flow.run(feeds, on_device=True)["x_next"]
    results = []
    thread = threading.Thread(target=lambda: results.append(np.array(flow.run(feeds)["x_next"])))
    thread.start()
    thread.join()
    np.testing.assert_allclose(results[0], want, rtol=1e-5, atol=1e-5)


def test_too_little_memory_for_several(place: Place, bundle: Bundle, toy: Any) -> None:
    """What does not fit several times is run in one stream, for good."""
    flow = place.load(bundle, "flow")
    together(toy, flow, 1, 16, 16)
    place.gpu.total_bytes = place.gpu.used_bytes * 5 // 2
    for _ in range(2):
        assert len(together(toy, flow, 4, 16, 16)) == 4
    streams(place)
    assert len(together(toy, flow, 4)) == 4
    assert streams(place) == 1
    place.gpu.total_bytes = place.gpu.used_bytes
    with pytest.raises(BackendError, match="MiB of free GPU memory"):
        flow.run(latents(16, 8))
    flow.close()
    assert (place.gpu.used_bytes, place.gpu.pinned_bytes) == (0, 0)


def test_no_room_for_a_stream(
    place: Place, bundle: Bundle, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that there are have to do."""
    with place.load(bundle, "flow") as flow:
        streams(place)
        monkeypatch.setattr(place.gpu.core, "DeviceMemoryResource", None)  # of one more
        assert len(together(toy, flow, 3)) == 3
        assert streams(place) == 1


def test_closing_lets_others_finish(place: Place, bundle: Bundle, toy: Any) -> None:
    flow = place.load(bundle, "flow")
    ended: list[str] = []

    def work() -> None:
        feeds = latents()
        want = toy.flow_reference(feeds["x"], feeds["tokens"], 0.5, 0.25)
        try:
            while True:
                got = np.asarray(flow.run(feeds)["x_next"])
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
        except BackendError as error:
            ended.append(str(error))

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    while place.trt.contexts < 3 and all(worker.is_alive() for worker in workers):
        pass
    flow.close()
    for worker in workers:
        worker.join()
    assert len(ended) == 3 and all("is closed" in said for said in ended)


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_everything_at_once(place: Place, bundle: Bundle, toy: Any, eager_switches: None) -> None:
    """Shapes, engines and lanes come and go: nobody waits for ever, and nothing is mixed up."""
    flow = place.load(bundle, "flow")
    decoder = place.build(bundle, "decoder")
    feeds = {seed: latents(seed % 3 + 1, 2, seed) for seed in range(6)}
    wanted = {
        seed: toy.flow_reference(one["x"], one["tokens"], 0.5, 0.25) for seed, one in feeds.items()
    }
    for one in feeds.values():
        flow.run(one)
    place.gpu.total_bytes = place.gpu.used_bytes * 7 // 2
    left: list[Any] = []
    errors: list[BaseException] = []

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        try:
            for _ in range(12):
                seed = int(rng.integers(6))
                out = flow.run(feeds[seed], on_device=bool(rng.integers(2)))["x_next"]
                np.testing.assert_allclose(np.asarray(out), wanted[seed], rtol=1e-5, atol=1e-5)
                match rng.integers(6):
                    case 0:
                        with place.backend.load(decoder) as engine:
                            engine.run({"x": out})
                    case 1:
                        assert flow.layers(feeds[seed], 1).times_ms  # type: ignore[attr-defined]
                    case 2:
                        flow.run(feeds[seed], on_device=True)["x_next"].begin_fetch()  # type: ignore[union-attr]
                    case 3:
                        left.append(flow.run(feeds[0], on_device=True)["x_next"])
                        got = np.asarray(left.pop())  # perhaps of another thread's lane
                        np.testing.assert_allclose(got, wanted[0], rtol=1e-5, atol=1e-5)
                    case 4:
                        with pytest.raises(BackendError, match="expected n 1..4"):
                            flow.run(latents_of(5))
                        str(place.backend.captures)
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(MAX_LANES + 2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive(), "threads wait for each other"
    if errors:
        raise errors[0]
    flow.close()
    left.clear()
    if place.backend.captures is not None:
        assert place.backend.captures.refusals == {}


@pytest.fixture(scope="module")
def photos() -> tuple[list[bytes], list[NDArray[Any]]]:
    """Streams, and what they are decoded to on a CPU."""
    rng = np.random.default_rng(5)
    with Codec.load("tiny", OnnxRuntimeBackend(precision="fp16")) as cpu:
        streams = [cpu.encode(rng.integers(0, 256, (40, 72, 3), np.uint8)) for _ in range(8)]
        return streams, [np.asarray(cpu.decode(each, steps=1)).astype(int) for each in streams]


class TestThroughput:
    """Eight images of one size, by plans for up to two, in two lanes: four runs of each graph."""

    @pytest.fixture
    def busy(
        self, make_place: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Place]:
        place, tiny = make_place("tensorrt"), Bundle.open("tiny")
        place.build_all(tiny, batches=(1, 2), sizes=((72, 40),))
        place.build(tiny, "encoder")
        monkeypatch.setenv("PERCOEDGE_CACHE", str(place.cache.root))
        yield place
        assert len(place.gpu.queued) == 2
        runs = {"entropy": 4 * PASSES, "flow": 4, "decoder": 4}
        assert {k: Counter(sizes) for k, sizes in place.trt.batches.items()} == {
            kind: {2: number} for kind, number in runs.items()
        }

    def test_decode_batch(self, busy: Place, photos: Any) -> None:
        with Codec.load("tiny", busy.backend) as codec:
            images = codec.decode_batch(photos[0], steps=1, lanes=2)
        for image, want in zip(images, photos[1], strict=True):
            assert abs(np.asarray(image) - want).max() <= 1

    def test_a_folder(self, busy: Place, photos: Any, tmp_path: Path) -> None:
        for number, stream in enumerate(photos[0]):
            (tmp_path / f"{number}.pco").write_bytes(stream)
        command = ["decode", str(tmp_path), "--out", str(tmp_path / "images"), "--steps", "1"]
        assert main([*command, "--backend", "tensorrt", "--jobs", "2"]) == 0
        for number, want in enumerate(photos[1]):
            with Image.open(tmp_path / "images" / f"{number}.png") as image:
                assert abs(np.asarray(image) - want).max() <= 1

    def test_the_service(self, busy: Place, photos: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("fastapi", reason="without the service: pip install '.[serve]'")
        pytest.importorskip("prometheus_client", reason="pip install '.[serve]'")
        from percoedge.serving.service import Service

        monkeypatch.setattr(Worker, "warm_up", lambda self: None)  # whose runs would be counted
        service = Service(ServiceSettings())
        assert (service.settings.lanes, service.settings.in_process) == (2, True)

        async def serve() -> list[Outcome]:
            await service.start()
            tasks = [DecodeTask(stream, steps=1) for stream in photos[0]]
            outcomes = await asyncio.gather(*(service.run("decode", task) for task in tasks))
            await service.stop()
            return outcomes

        for outcome, want in zip(asyncio.run(serve()), photos[1], strict=True):
            image = Image.open(BytesIO(outcome.body))
            assert abs(np.asarray(image) - want).max() <= 1
        assert busy.trt.loaded == 3
