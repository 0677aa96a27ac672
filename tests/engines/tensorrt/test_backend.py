"""TensorRT's refusals: feeds, plans, GPUs that are lost, and what "auto" makes of all that.

Graphs are run for real, on the CPU; what the stand-ins check is everything around them.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tensorrt_stand_in import Place

from percoedge import Codec
from percoedge.bitstream.schedules import pass_count, passes
from percoedge.bundles import shipped_photo
from percoedge.engines import selection as backends
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import fingerprint_of
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.engines.plans.record import PlanRecord
from percoedge.engines.selection import available, select
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tiling import TILING
from percoedge.errors import BackendError, UsageError
from percoedge.runtime.bench.probe import Probe


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


class TestRefusedFeeds:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"z": np.zeros(1)}, "expected 'x', 'tokens', 't', 'dt'; got"),
            ({"x": np.zeros((1, 4, 4, 6))}, "expected float32"),
            ({"x": np.zeros((1, 4, 5, 6), np.float32)}, "expected a multiple of 2"),
            ({"x": [1.0]}, "got list"),
            ({"tokens": np.zeros((1, 2, 2), np.int32)}, "expected 3 because w = 3"),
        ],
    )
    def test_what_breaks_the_specs(
        self, place: Place, bundle: Bundle, change: dict[str, Any], message: str
    ) -> None:
        flow = place.load(bundle, "flow")
        flow.run(latents())
        with pytest.raises(BackendError, match=rf"^graph 'flow' \(fp16, {place.trt.name}\): input"):
            flow.run({**latents(), **change})
        with pytest.raises(BackendError, match=message):
            flow.run({**latents(), **change})

    @pytest.mark.parametrize(
        ("request_", "shape", "command"),
        [
            ({"sizes": ((32, 16),)}, (1, 4, 9), "--sizes 32x16,36x16 --batch 1"),
            ({"sizes": ((32, 16), (30, 14))}, (2, 4, 9), "--sizes 32x16,30x14,36x16 --batch 1,2"),
            ({"sizes": ((32, 16),), "batches": (2, 3)}, (4, 2, 2), "--sizes 32x16 --batch 2,3,4"),
            ({"sizes": ((4, 4),)}, (1, 2, 1), "build toy --backend NAME --batch 1"),
            ({}, (2, 1, 1), "--batch 1,2"),
        ],
    )
    def test_what_the_plan_was_not_built_for(
        self,
        place: Place,
        bundle: Bundle,
        request_: dict[str, Any],
        shape: tuple[int, int, int],
        command: str,
    ) -> None:
        with place.backend.load(place.build(bundle, "flow", **request_)) as flow:
            with pytest.raises(BackendError, match="as it was built for, got n ") as caught:
                flow.run(latents(*shape))
            said = str(caught.value)
            sm = "--sm 89 " if place.trt.name == "tensorrt-rtx" else ""
            wanted = command.replace("NAME", f"{place.trt.name} {sm}".strip())
            assert f"; build for it: percoedge build toy --backend {place.trt.name}" in said
            assert said.endswith(wanted)
            assert place.trt.contexts == 0
            flow.run(latents(1, 1, 1))

    def test_what_no_plan_is_built_for(self, place: Place, bundle: Bundle) -> None:
        with pytest.raises(BackendError, match="no engine file is built for more: cut it"):
            place.load(bundle, "flow").run(latents(1, 33, 1))


class TestFailures:
    def test_a_lost_gpu_says_the_same_from_then_on(self, place: Place, bundle: Bundle) -> None:
        flow, decoder = place.load(bundle, "flow"), place.load(bundle, "decoder")
        out = flow.run(latents(), on_device=True)["x_next"]
        x = np.zeros((1, 4, 4, 6), np.float32)
        decoder.run({"x": x})
        place.gpu.break_down()
        calls: list[Callable[[], object]] = [
            lambda: decoder.run({"x": x}),
            lambda: decoder.run({"x": x}),
            lambda: flow.run(latents()),
            lambda: flow.run(latents(2), on_device=True),
            lambda: np.asarray(out),
            lambda: place.backend.load(place.build(bundle, "encoder")),
        ]
        said = set()
        for call in calls:
            with pytest.raises(
                BackendError, match=r"ILLEGAL_ADDRESS.*start the process again"
            ) as e:
                call()
            said.add(str(e.value))
        assert len(said) == 1
        flow.close()
        decoder.close()
        with pytest.raises(BackendError, match="closed"):
            flow.run(latents())

    def test_what_the_library_refuses(self, place: Place, bundle: Bundle, toy: Any) -> None:
        flow = place.load(bundle, "flow")
        place.trt.broken = True
        with pytest.raises(BackendError, match=r"'flow' .*1\.7\.1 refuses a run.*enqueue failed"):
            flow.run(latents())
        place.trt.broken = False
        out = np.asarray(flow.run(latents())["x_next"])
        np.testing.assert_allclose(out, reference(toy, latents()), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("field", "change", "message"),
        [
            ("inputs", {"name": "picture"}, r"input: expected \['picture'\] .* got \['image'\]"),
            ("inputs", {"dtype": "int8"}, "input 'image': expected int8 .*, got UINT8"),
            ("inputs", {"shape": ("n", "h", 3)}, "input 'image': expected uint8"),
            ("inputs", {"shape": ("n", "h", "w", 4)}, "input 'image': expected uint8"),
            ("outputs", {"dtype": "int64"}, "output 'tokens': expected int64 .*, got INT32"),
        ],
    )
    def test_a_manifest_that_differs_from_the_plan(
        self, place: Place, bundle: Bundle, field: str, change: dict[str, Any], message: str
    ) -> None:
        source = place.build(bundle, "encoder")
        spec = dataclasses.replace(getattr(source, field)[0], **change)
        with pytest.raises(BackendError, match=message + ".*percoedge build toy .*--graph encoder"):
            place.backend.load(dataclasses.replace(source, **{field: (spec,)}))

    def test_outputs_of_another_size_than_the_manifest_says(
        self, place: Place, bundle: Bundle
    ) -> None:
        source = place.build(bundle, "encoder")
        tokens = dataclasses.replace(source.outputs[0], shape=("n", "2*h", "w"))
        engine = place.backend.load(dataclasses.replace(source, outputs=(tokens,)))
        with pytest.raises(BackendError, match="output 'tokens': axis 1 .*"):
            engine.run({"image": np.zeros((1, 8, 8, 3), np.uint8)})


class TestPlans:
    def test_none(self, place: Place, bundle: Bundle) -> None:
        name = place.trt.name
        with pytest.raises(BackendError, match="found none; build it: percoedge build BUNDLE"):
            place.backend.load(bundle.read("flow", "fp16"))
        assert f"found none; build them: percoedge build BUNDLE --backend {name}" in str(
            place.backend.missing()
        )
        place.build(bundle, "flow")
        assert place.backend.missing() is None
        with pytest.raises(BackendError, match="'encoder' .*found none"):
            place.backend.load(bundle.read("encoder", "fp16"))

    def test_the_graph_of_a_plan_is_not_read(self, place: Place, folder: Path, toy: Any) -> None:
        """The manifest tells which graph it is; weights can be gigabytes."""
        bundle = Bundle.open(folder)
        place.build(bundle, "flow")
        for path in folder.glob("flow-*"):
            path.unlink()
        (folder / "weights.bin").unlink()
        engine = place.backend.load(bundle.graph("flow", "fp16"))
        out = np.asarray(engine.run(latents())["x_next"])
        np.testing.assert_allclose(out, reference(toy, latents()), rtol=1e-5, atol=1e-5)

    def test_altered(self, place: Place, bundle: Bundle) -> None:
        source = place.build(bundle, "flow")
        record: PlanRecord = place.backend.find("flow", source.sha256)
        path = place.cache.root / record.plan_name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        with pytest.raises(BackendError, match=r"expected SHA-256 .*altered; build it again") as e:
            place.backend.load(source)
        with pytest.raises(BackendError) as refused:
            place.cache.map(record)
        assert str(e.value) == str(refused.value)

    def test_for_another_gpu(self, make_place: Callable[..., Place], bundle: Bundle) -> None:
        place = make_place("tensorrt", sm=90)
        with pytest.raises(
            BackendError, match=r"on SM 90; .* is for SM 86, 89; build it: percoedge"
        ):
            place.backend.load(place.build(bundle, "flow", (86, 89)))

    def test_rtx_for_another_gpu(self, make_place: Callable[..., Place], bundle: Bundle) -> None:
        """An H100 refuses them all, those built on it too: nothing to build is suggested."""
        place = make_place("tensorrt-rtx", sm=90)
        with pytest.raises(
            BackendError,
            match="on SM 90; .* is for SM 86, 89, 120; it is built for SM 80, 86, 89, 120 only: "
            "take another backend",
        ):
            place.backend.load(place.build(bundle, "flow", (86, 89, 120)))

    def test_what_the_library_says_of_a_plan_that_it_does_not_take(
        self, place: Place, bundle: Bundle
    ) -> None:
        source = place.build(bundle, "flow")
        place.trt.sm = 86
        with pytest.raises(
            BackendError,
            match="loading the engine file built for SM 89 by .* 1.7.1 on SM 89 failed: the engine "
            "plan file is generated on an incompatible device; build it again: percoedge build",
        ):
            place.backend.load(source)

    def test_an_unknown_name(self) -> None:
        with pytest.raises(UsageError, match="expected a backend of tensorrt, tensorrt-rtx, got"):
            TensorRtBackend("tensorrt-lite")


class TestSelection:
    @pytest.fixture(autouse=True)
    def only_a_cpu_besides(self, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        names = (place.trt.name, "onnxruntime-cpu")
        monkeypatch.setattr(backends, "BACKENDS", names)
        monkeypatch.setenv("PERCOEDGE_CACHE", str(place.cache.root))

    def test_auto_needs_a_plan_for_every_graph(self, place: Place) -> None:
        tiny = Bundle.open("tiny")
        for kind in (*tiny.kinds, *TILING):
            assert select(bundle=tiny).name == "onnxruntime-cpu"
            place.build(tiny, kind)
        assert select(bundle=tiny).name == place.trt.name
        assert select().name == "onnxruntime-cpu"

    def test_auto_passes_over_plans_for_another_gpu(self, place: Place) -> None:
        tiny = Bundle.open("tiny")
        place.build_all(tiny, targets=(75, 86))
        assert select(bundle=tiny).name == "onnxruntime-cpu"

    def test_auto_passes_over_bundles_without_the_variant(
        self, place: Place, bundle: Bundle
    ) -> None:
        place.build(bundle, "encoder")
        assert select(bundle=bundle).name == "onnxruntime-cpu"

    def test_the_status_says_how_to_build(self, place: Place, bundle: Bundle) -> None:
        reason = available()[0].reason
        assert reason.endswith(f"build them: percoedge build BUNDLE --backend {place.trt.name}")
        with pytest.raises(BackendError, match="found none; build them: percoedge build"):
            select(place.trt.name)
        place.build(bundle, "encoder")
        assert available()[0].available
        assert select(place.trt.name).name == place.trt.name

    @pytest.mark.parametrize("low_memory", [False, True])
    def test_a_codec_on_it(self, place: Place, low_memory: bool) -> None:
        """All is what the same graphs give on the CPU; the GPU's memory goes back in the end."""
        if low_memory and place.trt.name == "tensorrt-rtx":
            pytest.skip("it makes no difference to the library, and takes its time")
        tiny = Bundle.open("tiny")
        place.build_all(tiny, batches=(2,))
        rng = np.random.default_rng(5)
        photos = [rng.integers(0, 256, (40, 72, 3), np.uint8) for _ in range(2)]
        with Codec(tiny, OnnxRuntimeBackend(precision="fp16")) as cpu:
            streams = [cpu.encode(photo) for photo in photos]
            wanted = [np.asarray(cpu.decode(stream, steps=2)) for stream in streams]
        with Codec.load(tiny, low_memory=low_memory) as codec:
            assert codec.backend.name == place.trt.name
            assert [codec.encode(photo) for photo in photos] == streams
            images = codec.decode_batch(streams, steps=2)
            images += codec.decode_batch(streams, steps=2)
            assert (place.gpu.used_bytes == 0) == low_memory
        for image, want in zip(images, wanted * 2, strict=True):
            difference = np.asarray(image).astype(int) - want.astype(int)
            assert abs(difference).max() <= 1  # two at a time here, one at a time there
        assert (place.gpu.used_bytes, place.gpu.pinned_bytes) == (0, 0)


def test_a_batch_goes_through_in_parts_of_the_plans_maximum(
    make_place: Callable[..., Place],
) -> None:
    """Plans for one image at a time take several, and those for more take as many as they can."""
    place, tiny = make_place("tensorrt"), Bundle.open("tiny")
    rng = np.random.default_rng(5)
    photos = [rng.integers(0, 256, (40, 72, 3), np.uint8) for _ in range(5)]
    with Codec(tiny, OnnxRuntimeBackend(precision="fp16")) as cpu:
        streams = [cpu.encode(photo) for photo in photos]
        wanted = [np.asarray(cpu.decode(stream, steps=1)).astype(int) for stream in streams]
    for most, runs in ((1, 5), (2, 3), (8, 1)):
        place.build_all(tiny, batches=(most,), sizes=((72, 40),))
        probe = Probe(place.backend)
        with Codec(tiny, probe) as codec:
            images = codec.decode_batch(streams, steps=1)
        calls = [call.kind for call in probe.calls]
        assert (calls.count("flow"), calls.count("decoder")) == (runs, runs)
        for image, want in zip(images, wanted, strict=True):
            assert abs(np.asarray(image) - want).max() <= 1


def captured(backend: TensorRtBackend) -> tuple[int, int]:
    """How many runs there were so far, and how many of them were captured graphs."""
    captures = backend.captures
    assert captures is not None
    return captures.runs, captures.launches


@pytest.mark.parametrize("steps", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_decode_waits_for_the_passes_and_the_image(
    make_place: Callable[..., Place], steps: int
) -> None:
    """Of 512x512 on four tiles: all behind the tokens is queued at once, from captured graphs."""
    place, tiny = make_place("tensorrt"), Bundle.open("tiny")
    place.build_all(tiny, batches=(1,))
    photo = Image.open(shipped_photo()).convert("RGB").resize((512, 512))
    with Codec(tiny, OnnxRuntimeBackend(precision="fp16")) as cpu:
        stream = cpu.encode(photo)
        wanted = np.asarray(cpu.decode(stream, steps=steps)).astype(int)
    with Codec(tiny, place.backend) as codec:
        counts = []
        for _ in range(2):
            assert abs(np.asarray(codec.decode(stream, steps=steps)) - wanted).mean() < 0.1
            counts.append(captured(place.backend))
        (runs, launches), (more_runs, more_launches) = counts
        second = more_launches - launches, more_runs - runs
        syncs = place.gpu.syncs
        with place.backend.trace() as times_ms:
            codec.decode(stream, steps=steps)
            waited = place.gpu.syncs - syncs
    assert waited == pass_count(tiny.codec.schedule) + 1
    assert second == (8 + 3 * steps + 1,) * 2  # all of them, from the second image on
    assert captured(place.backend) == (more_runs + second[0], more_launches + second[0])
    assert times_ms["device to host"] == 8 + 2  # weights of each pass, the image, the latents


def test_an_image_of_many_tiles_waits_three_times_a_pass(
    make_place: Callable[..., Place],
) -> None:
    """Of entropy coding as many tiles as 4096x4096 has, 16, and of pixels 49, but smaller ones."""
    place, tiny = make_place("tensorrt"), Bundle.open("tiny")
    smaller = {"entropy_tile": 4, "flow_tile": 8, "flow_overlap": 2, "decoder_tile": 2}
    constants = msgspec.structs.replace(tiny.codec, **smaller, decoder_margin=1)
    digest = fingerprint_of(tiny.manifest.language, constants)
    manifest = msgspec.structs.replace(tiny.manifest, codec=constants, fingerprint=digest)
    tiles = Bundle(manifest, tiny._storage, tiny.path)
    place.build_all(tiles, batches=(1, 8), sizes=((256, 256),))
    photo = Image.open(shipped_photo()).convert("RGB").resize((256, 256))
    with Codec(tiles, OnnxRuntimeBackend(precision="fp16")) as cpu:
        stream = cpu.encode(photo)
    with Codec(tiles, place.backend) as codec:
        for _ in range(3):
            syncs, place.trt.batches = place.gpu.syncs, defaultdict(list)
            codec.decode(stream, steps=1)
            waited = place.gpu.syncs - syncs
    # Of tiles this small one of eight passes has no cells; with it, it would be 3 times 8.
    with_cells = sum(len(cells) > 0 for cells in passes(tiny.codec.schedule, 4, 4))
    assert place.trt.batches["entropy"] == [8] * 2 * with_cells
    assert place.trt.batches["decoder"] == [8] * 6 + [1]
    assert waited == 2 * with_cells + 7


def test_a_batch_of_tiled_images_is_cut_to_what_every_plan_takes(
    make_place: Callable[..., Place],
) -> None:
    """The flow's plan takes more tiles than the others take images."""
    place, tiny = make_place("tensorrt"), Bundle.open("tiny")
    place.build_all(tiny, batches=(1, 2), sizes=((304, 128),))
    rng = np.random.default_rng(5)
    photos = [rng.integers(0, 256, (128, 304, 3), np.uint8) for _ in range(3)]
    with Codec(tiny, OnnxRuntimeBackend(precision="fp16")) as cpu:
        streams = [cpu.encode(photo) for photo in photos]
        wanted = [np.asarray(cpu.decode(stream, steps=1)).astype(int) for stream in streams]
    probe = Probe(place.backend)
    with Codec(tiny, probe) as codec:
        images = codec.decode_batch(streams, steps=1)
    sizes = {
        kind: [c.sizes["n"] for c in probe.calls if c.kind == kind] for kind in ("flow", "blend")
    }
    assert sizes == {"flow": [4, 2], "blend": [2, 1]}  # of two tiles each
    for image, want in zip(images, wanted, strict=True):
        assert abs(np.asarray(image) - want).mean() < 0.1
