"""The command line in an empty directory, and files for it."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

import pytest
from PIL import Image

from percoedge.engines.bundle import Bundle
from percoedge.runtime.cli.main import main
from percoedge.runtime.codec import Codec
from tests.runtime.cli.command_line import (
    Result,
    Run,
    picture,
)


@pytest.fixture
def run(
    capsysbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Run:
    """Run the command line in an empty directory, `stdin` being the bytes of standard input."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main([str(argument) for argument in arguments])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return call


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(picture()).save(path)
    return path


@pytest.fixture(scope="module")
def stream() -> bytes:
    with Codec.load("tiny") as codec:
        return codec.encode(picture(), caption="a hill")


@pytest.fixture
def pco(tmp_path: Path, stream: bytes) -> Path:
    path = tmp_path / "given.pco"
    path.write_bytes(stream)
    return path


@pytest.fixture
def bundle_copy(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    shutil.copytree(Bundle.open("tiny").path, target)
    return target
