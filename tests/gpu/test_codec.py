"""The codec on a GPU: tokens of golden files, pictures, memory, and what goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from percoedge import Codec
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.contract import Backend
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.engines.tensorrt.cuda import Gpu
from percoedge.errors import BackendError
from percoedge.runtime.cli.main import main
from percoedge.runtime.flow import decode_latent, noise, sample

GOLDEN = Path(__file__).parent.parent / "golden"
DOCUMENT: dict[str, Any] = json.loads((GOLDEN / "vectors.json").read_text())
_MIB = 1 << 20

# Access to an address that nobody has, in a process of its own: the GPU is lost to it.
LOSE = """
import sys
import numpy as np
from percoedge.engines.bundle import Bundle
from percoedge.engines.tensorrt.backend import TensorRtBackend
from percoedge.errors import BackendError

backend = TensorRtBackend(sys.argv[1])
bundle = Bundle.open(sys.argv[2])
decoder = backend.load(bundle.read("decoder", "fp16"))
codec = bundle.codec
cells = codec.stride // codec.latent_stride
feeds = {"x": np.zeros((1, codec.latent_channels, 4 * cells, 4 * cells), np.float32)}
decoder.run(feeds)
(bindings,) = decoder._bindings.values()  # of the one lane
(binding,) = bindings.values()
binding.context.set_tensor_address("x", 1 << 8)
said = set()
for call in (lambda: decoder.run(feeds), lambda: decoder.run(feeds), lambda: backend.load(
    bundle.read("flow", "fp16"))):
    try:
        call()
    except BackendError as error:
        said.add(str(error))
    else:
        said.add("nothing was raised")
decoder.close()
print("\\n".join(said))
"""


def golden_files(bundle: Bundle) -> dict[str, dict[str, Any]]:
    if bundle.manifest.fingerprint != DOCUMENT["fingerprint"]:
        pytest.skip("there are no golden files for this bundle")
    files: dict[str, dict[str, Any]] = DOCUMENT["files"]
    return files


def demo_photo() -> Image.Image:
    return Image.open(shipped_photo()).convert("RGB").resize((512, 512))


def test_golden_files_decode_to_their_tokens(backend: Backend, bundle: Bundle) -> None:
    with Codec(bundle, backend) as codec:
        for name, record in golden_files(bundle).items():
            data = (GOLDEN / f"{name}.pco").read_bytes()
            tokens = codec.decode_tokens(data, bare=bool(record.get("bare", False)))
            digest = hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
            assert digest == record["tokens_sha256"], name


def test_streams_of_the_cpu_are_read(backend: Backend, bundle: Bundle) -> None:
    """Each side's stream decodes to the same tokens on the other, and pictures are alike."""
    photo = demo_photo()
    with Codec(bundle, backend) as gpu, Codec.load(bundle, "onnxruntime-cpu:fp32") as cpu:
        for sender in (gpu, cpu):
            data = sender.encode(photo)
            np.testing.assert_array_equal(gpu.decode_tokens(data), cpu.decode_tokens(data))
            there, here = (np.asarray(codec.decode(data)).astype(int) for codec in (gpu, cpu))
            assert abs(there - here).mean() < 1
            np.testing.assert_array_equal(np.asarray(gpu.decode(data)), there)


def test_a_batch_is_what_each_is_alone(backend: Backend, bundle: Bundle) -> None:
    """More pictures than an engine takes at a time, of one tile and of several, in two threads."""
    photo = demo_photo()
    with Codec(bundle, backend) as codec:
        for side, count in ((256, 19), (512, 9)):
            streams = [
                codec.encode(photo.resize((side, side)).rotate(20 * index))
                for index in range(count)
            ]
            batches = (codec.decode_batch(streams, lanes=lanes) for lanes in (1, 2))
            for stream, *together in zip(streams, *batches, strict=True):
                alone = np.asarray(codec.decode(stream)).astype(int)
                for image in together:
                    assert abs(np.asarray(image) - alone).mean() < 0.5


def test_runs_are_captured(tensorrt: TensorRtBackend, bundle: Bundle) -> None:
    backend = TensorRtBackend(tensorrt.name, tensorrt.cache)
    if backend.captures is None:
        pytest.skip(f"{backend.name} captures CUDA graphs by itself")
    with Codec(bundle, backend) as codec:
        stream = codec.encode(demo_photo())
        codec.decode(stream)
        codec.decode(stream)
        before = dataclasses.replace(backend.captures)
        codec.decode(stream)
    assert backend.captures.refusals == {}
    runs = backend.captures.runs - before.runs
    assert backend.captures.launches - before.launches == runs > 0


def test_low_memory_is_given_back(tensorrt: TensorRtBackend, bundle: Bundle) -> None:
    gpu = Gpu()
    photo = demo_photo()
    free = []
    for low_memory in (True, True, False):  # the first loads what CUDA keeps
        codec = Codec(bundle, TensorRtBackend(tensorrt.name, tensorrt.cache), low_memory=low_memory)
        codec.decode(codec.encode(photo))
        within = gpu.memory_bytes()[0]
        codec.close()
        free.append((within, gpu.memory_bytes()[0]))
    (_, first), (low, second), (high, third) = free
    assert min(second, third) > first - 32 * _MIB
    assert low > high


def test_latents_that_are_not_finite_are_refused(backend: Backend, bundle: Bundle) -> None:
    constants = bundle.codec
    cells = constants.stride // constants.latent_stride
    start = noise(1, constants.latent_channels, 4 * cells, 4 * cells)[None]
    start[0, 0, 1, 1] = np.nan
    tokens = np.zeros((1, 4, 4), np.int32)
    with (
        backend.load(bundle.read("flow", backend.variant)) as flow,
        backend.load(bundle.read("decoder", backend.variant)) as decoder,
    ):
        for _ in range(3):
            end = sample(flow, tokens, start, 2, None, constants)
            with pytest.raises(BackendError, match="expected finite latents"):
                decode_latent(decoder, end, constants)


def test_a_lost_gpu_is_one_error(tensorrt: TensorRtBackend, bundle: Bundle) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", LOSE, tensorrt.name, str(bundle.path)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr
    (said,) = finished.stdout.splitlines()
    assert "nothing runs on the GPU in this process: start the process again" in said


def test_bench_tells_where_the_time_goes(
    tensorrt: TensorRtBackend, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--seconds", "0.5", "--size", "512x512", "--json")
    assert main(["bench", "--bundle", str(bundle.path), "--backend", tensorrt.name, *options]) == 0
    (case,) = json.loads(capsys.readouterr().out)["cases"]
    times_ms = case["device_ms"]
    kinds = [f"compute {kind}" for kind in ("entropy", "cut", "flow", "blend", "decoder")]
    parts = ("host to device", *kinds, "device to host")
    assert all(times_ms[name] > 0 for name in (*parts, "enqueue"))
    busy_ms = sum(times_ms.get(name, 0) for name in (*parts, "device to device"))
    assert sum(times_ms[kind] for kind in kinds) > 0.5 * busy_ms
    assert busy_ms < 1.5 * case["latency_ms"]["p50"]


def test_layers_are_told_apart(tensorrt: TensorRtBackend, bundle: Bundle) -> None:
    """In runs of their own, after which the engine gives what it gave before."""
    codec = bundle.codec
    x = noise(1, codec.latent_channels, 16, 16)[None]
    with tensorrt.load(bundle.read("decoder", "fp16")) as decoder:
        wanted = np.asarray(decoder.run({"x": x})["image"])
        layers = decoder.layers({"x": x})
        assert layers.times_ms and all(time_ms >= 0 for time_ms in layers.times_ms.values())
        assert sum(layers.times_ms.values()) > 0
        assert layers.described["Layers"]
        np.testing.assert_array_equal(np.asarray(decoder.run({"x": x})["image"]), wanted)


def test_what_the_plan_was_not_built_for(tensorrt: TensorRtBackend, bundle: Bundle) -> None:
    with tensorrt.load(bundle.read("decoder", "fp16")) as decoder:
        x = np.zeros((33, bundle.codec.latent_channels, 4, 4), np.float32)
        with pytest.raises(BackendError, match=r"got n 33.*percoedge build .*--batch 1,8,33"):
            decoder.run({"x": x})
