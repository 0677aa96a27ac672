"""What the public functions take: streams and numbers of many types; all else is a UsageError."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from percoedge import Bundle, Codec
from percoedge.bitstream.schedules import SCHEDULES
from percoedge.engines.fake import FakeBackend
from percoedge.engines.onnxruntime.backend import OnnxRuntimeBackend
from percoedge.errors import InputError, StreamError, UsageError


@pytest.fixture(scope="module")
def codec(fake_bundle: Bundle, fakes: Any) -> Codec:
    return Codec.load(fake_bundle, fakes.backend())


@pytest.fixture(scope="module")
def photo(fakes: Any) -> Any:
    return fakes.photo(20, 30)


@pytest.fixture(scope="module")
def stream(codec: Codec, photo: Any) -> bytes:
    return codec.encode(photo)


# ---- streams ------------------------------------------------------------------------------------

SOURCES: dict[str, Callable[[Path], Any]] = {
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "str": str,
    "Path": lambda path: path,
    "BytesIO": lambda path: io.BytesIO(path.read_bytes()),
    "file": lambda path: path.open("rb"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_of_a_stream(codec: Codec, stream: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "photo.pco"
    path.write_bytes(stream)
    source = SOURCES[kind]
    image = codec.decode(stream).tobytes()
    assert codec.decode(source(path)).tobytes() == image
    assert [each.tobytes() for each in codec.decode_batch([source(path)])] == [image]
    assert list(codec.decode_progressive(source(path)))[-1].image.tobytes() == image
    assert (codec.decode_tokens(source(path)) == codec.decode_tokens(stream)).all()
    assert codec.info(source(path)) == codec.info(stream)


def test_files_that_cannot_be_read_are_input_errors(codec: Codec, tmp_path: Path) -> None:
    closed = io.BytesIO(b"\x50\xc0")
    closed.close()
    for source in (tmp_path / "none.pco", str(tmp_path), closed):
        with pytest.raises(InputError, match="cannot read"):
            codec.decode(source)
    (tmp_path / "endless.pco").symlink_to("/dev/zero")
    with pytest.raises((InputError, StreamError), match="expected"):
        codec.decode(tmp_path / "endless.pco")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "got PNG; is it the right file"),
        (b"P5\n2 2\n255\n....", "got PPM; is it"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer; .*'git lfs pull'"),
        (b"404: not found", "got text; is it"),
        (b"\0\1\2", "got 00 01"),
    ],
)
def test_what_is_given_for_a_stream_is_called_by_its_name(
    codec: Codec, data: bytes, words: str
) -> None:
    for read in (codec.decode, codec.info, partial(codec.decode, cut=True)):
        with pytest.raises(StreamError, match=f"expected a .pco file.*{words}"):
            read(data)


def test_no_name_is_no_path(codec: Codec) -> None:
    for read in (codec.encode, codec.decode):
        with pytest.raises(UsageError, match="expected the path of a file, got ''"):
            read("")


# ---- numbers ------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(codec: Codec, photo: Any, stream: bytes) -> None:
    small = codec.encode(photo, passes=np.int64(2), seed=np.uint32(7))
    assert small == codec.encode(photo, passes=2, seed=7)
    assert small == codec.encode(photo, max_bytes=np.int64(len(small)), seed=7)
    options: dict[str, Any] = {"steps": np.int64(3), "seed": np.int16(5), "guidance": np.float32(1)}
    expected = codec.decode(stream, steps=3, seed=5)
    assert codec.decode(stream, **options, cut=np.bool_(False)).tobytes() == expected.tobytes()
    assert codec.decode(stream, max_pixels=np.int64(600)).size == (30, 20)
    backend = Codec.load("tiny", "onnxruntime-cpu", threads=np.int64(1)).backend
    assert isinstance(backend, OnnxRuntimeBackend) and backend.threads == 1


# ---- what is refused ----------------------------------------------------------------------------

NOTHING: tuple[Any, ...] = (None, object(), 3, 1.5)
NO_INT: tuple[Any, ...] = (
    True,
    "2",
    1.5,
    b"1",
    [1],
    np.bool_(True),
    np.float64(2),
    (x for x in ""),
)
NO_FLAG: tuple[Any, ...] = (None, 0, 1, "yes", [])
NO_STREAM: tuple[Any, ...] = (
    *NOTHING,
    [b"x"],
    (x for x in ""),
    np.zeros(4, np.uint8),
    io.StringIO(),
)

REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    "load": {
        "bundle": (*NOTHING, b"tiny", ["tiny"]),
        "backend": (*NOTHING, b"auto", "cpu", FakeBackend),
        "threads": (*NO_INT, 0, -1, 100_000),
        "low_memory": NO_FLAG,
    },
    "init": {"bundle": (*NOTHING, "tiny"), "backend": (*NOTHING, "auto"), "low_memory": NO_FLAG},
    "encode": {
        "image": (*NOTHING, (x for x in ""), [1]),
        "caption": (None, b"x", 3, ["x"]),
        "schedule": (3, b"var", ["var"], "zigzag", np.int64(1)),
        "passes": (*NO_INT, 0, 5),
        "max_bytes": (*NO_INT, 0, -1),
        "seed": (*NO_INT, -1, 1 << 32),
        "bare": NO_FLAG,
    },
    "tokens": {"image": (*NOTHING, (x for x in ""))},
    "decode": {
        "data": NO_STREAM,
        "steps": (*NO_INT, 0, 256),
        "guidance": (True, "1", 1j, [1.0], float("nan"), 17, 10**400),
        "seed": (*NO_INT, -1),
        "bare": NO_FLAG,
        "cut": NO_FLAG,
        "max_pixels": (*NO_INT, None, 0),
    },
    "decode_batch": {"streams": (*NOTHING, b"x", "x", [None], [3]), "lanes": (0, 100_000)},
    "decode_tokens": {"data": NO_STREAM, "bare": NO_FLAG, "cut": NO_FLAG, "max_pixels": (None,)},
    "decode_progressive": {"data": NO_STREAM, "steps": (True,), "bare": NO_FLAG, "cut": NO_FLAG},
    "info": {"data": NO_STREAM, "bare": NO_FLAG, "cut": NO_FLAG},
    "load_engines": {"kinds": (*NOTHING, "entropy", [None])},
    "open": {"name_or_path": (*NOTHING, b"tiny", ["tiny"])},
}


@pytest.mark.parametrize(
    ("function", "name", "value"),
    [
        pytest.param(function, name, value, id=f"{function}-{name}-{type(value).__name__}-{at}")
        for function, table in REFUSED.items()
        for name, values in table.items()
        for at, value in enumerate(values)
    ],
)
def test_wrong_types_and_values_are_usage_errors(
    codec: Codec, photo: Any, stream: bytes, function: str, name: str, value: Any
) -> None:
    call: Callable[..., Any] = {
        "load": Codec.load,
        "init": Codec,
        "open": Bundle.open,
    }.get(function) or getattr(codec, function)
    required: dict[str, Any] = {
        "init": {"bundle": codec.bundle, "backend": codec.backend},
        "encode": {"image": photo},
        "tokens": {"image": photo},
        "decode_batch": {"streams": [stream]},
        "load_engines": {"kinds": []},
    }.get(function, {"data": stream} if function.startswith(("decode", "info")) else {})
    with pytest.raises(UsageError, match=r"expected .*got"):
        call(**{**required, name: value})


# ---- copies -------------------------------------------------------------------------------------


class OwnBackend(FakeBackend):
    """A backend of a caller that can be pickled."""

    def __init__(self) -> None:
        super().__init__({})


def test_a_codec_is_pickled_by_its_arguments(fake_bundle: Bundle, fakes: Any) -> None:
    given = Codec.load("tiny", "onnxruntime-cpu", threads=1, low_memory=True)
    again = pickle.loads(pickle.dumps(given))
    assert again.bundle.path == given.bundle.path
    assert (again.backend.name, again.backend.threads) == ("onnxruntime-cpu", 1)
    assert again.__reduce__()[1][1:] == ("onnxruntime-cpu", 1, True)
    own = pickle.loads(pickle.dumps(Codec.load(fake_bundle, OwnBackend())))
    assert isinstance(own.backend, OwnBackend)
    assert own.bundle.manifest == fake_bundle.manifest
    with pytest.raises(UsageError, match="backend that can be pickled"):
        pickle.dumps(Codec.load(fake_bundle, fakes.backend(flow=lambda feeds: {})))


def test_a_copy_has_engines_of_its_own(codec: Codec, stream: bytes) -> None:
    image = codec.decode(stream).tobytes()
    other = copy.deepcopy([codec])[0]
    other.close()
    assert other.decode(stream).tobytes() == image
    other.close()
    assert codec.decode(stream).tobytes() == image


def test_another_process_gets_a_codec() -> None:
    codec = Codec.load("tiny", "onnxruntime-cpu", threads=1)
    stream = codec.encode(np.full((32, 48, 3), 90, np.uint8), schedule=SCHEDULES[1])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        image = pool.apply(codec.decode, (stream,), {"steps": 1})
    assert image.size == (48, 32)
