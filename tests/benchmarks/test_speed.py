"""The race against PyTorch, on one small picture; and that both sides do the same work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="without the exporter: pip install '.[export]'")

from benchmarks import speed  # noqa: E402
from benchmarks.engine_calls import Recorder, engine_times  # noqa: E402
from benchmarks.torch_codec import TorchCodec  # noqa: E402
from percoedge import Codec  # noqa: E402
from percoedge.engines.bundle import Bundle  # noqa: E402
from percoedge.engines.selection import select  # noqa: E402


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """PyTorch's number of threads, which the command sets, as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


@pytest.mark.slow
def test_every_side_runs_every_race(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = ["onnxruntime-cpu", "eager"]
    options = ["--device", "cpu", "--sides", ",".join(sides), "--size", "32"]
    options += ["--steps", "1,2", "--rounds", "2", "--cold", "1", "--command-sizes", "48x32"]
    options += ["--threads", "1"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *options])
    speed.main()
    found = json.loads(capsys.readouterr().out)
    races = [
        "encode",
        "tokens",
        *(f"{what}, {n} steps" for what in ("decode", "render") for n in (1, 2)),
    ]
    for race in races:
        assert list(found[race]["times"]) == list(found[race]["first_ms"]) == sides
        assert list(found[race]["times_as_fast"]) == ["onnxruntime-cpu"]
    assert {"flow", "decoder"} < found["stages"]["onnxruntime-cpu"].keys()
    calls = found["engines"]["onnxruntime-cpu"]["calls"]
    assert calls.keys() == {"entropy", "flow", "decoder"}
    one, two = (found["rates"][f"{n} steps"] for n in (1, 2))
    assert 0 < one["gflop"] < two["gflop"] and one["share_of_ceiling"].keys() == set(sides)
    assert [row["command"] for row in found["commands"]] == ["encode", "decode"]
    assert {(row["width"], row["height"]) for row in found["commands"]} == {(48, 32)}


def test_pytorch_reads_what_it_wrote(pixels: np.ndarray) -> None:
    codec = TorchCodec("tiny")
    data = codec.encode(pixels)
    with torch.inference_mode():
        wanted = codec._encoder(torch.from_numpy(pixels[None]))
    np.testing.assert_array_equal(codec.tokens(data, (2, 3)), wanted.numpy())
    image = codec.decode(data, (2, 3), 2)
    assert (image.shape, image.dtype) == ((1, 32, 48, 3), np.uint8)


def test_a_recorder_notes_the_calls_of_a_decode(pixels: np.ndarray) -> None:
    bundle, backend = Bundle.open("tiny"), select("onnxruntime-cpu", threads=1)
    with Codec(bundle, backend) as codec:
        data = codec.encode(pixels)
        wanted = np.asarray(codec.decode(data, steps=3))
    recorder = Recorder(backend)
    with Codec(bundle, recorder) as codec:
        np.testing.assert_array_equal(np.asarray(codec.decode(data, steps=3)), wanted)
    kinds = [kind for kind, *_ in recorder.calls]
    assert kinds.count("flow") == 3 and kinds[-1] == "decoder"
    found = engine_times(backend, bundle, data, steps=3, decode_ms=1e6, rounds=2)
    assert found["calls"].keys() == set(kinds) and 0.9 < found["python_share"] <= 1


def test_a_size_between_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["speed.py", "--device", "cpu", "--size", "40"])
    with pytest.raises(SystemExit, match="multiples of 16, got 40"):
        speed.main()
