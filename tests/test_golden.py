"""Golden files decode to the tokens they were made of, on every machine and in every version."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from percoedge import Codec
from percoedge.bitstream.container import unpack
from percoedge.bundles import GoldenStream, golden_stream, token_digest

GOLDEN = Path(__file__).parent / "golden"
DOCUMENT = json.loads((GOLDEN / "vectors.json").read_text())
FILES: dict[str, dict[str, Any]] = DOCUMENT["files"]
# Mean colours of a 4x4 grid may differ by the rounding of float kernels only.
COLOUR_TOLERANCE = 3


@pytest.fixture(scope="module")
def codec() -> Iterator[Codec]:
    with Codec.load("tiny", backend="onnxruntime-cpu") as loaded:
        yield loaded


def test_there_are_enough_of_them_for_the_bundle_that_is_shipped(codec: Codec) -> None:
    assert len(FILES) >= 27
    assert codec.bundle.manifest.fingerprint == DOCUMENT["fingerprint"]


def test_the_doctor_decodes_one_of_them() -> None:
    """tests/golden/make.py writes both: run it when a new bundle is shipped."""
    expected = FILES["demo"]["tokens_sha256"]
    data = (GOLDEN / "demo.pco").read_bytes()
    assert golden_stream() == GoldenStream(data, "tiny", DOCUMENT["fingerprint"], expected)


@pytest.mark.parametrize("name", FILES)
def test_tokens_and_colours(codec: Codec, name: str) -> None:
    record = FILES[name]
    data = (GOLDEN / f"{name}.pco").read_bytes()
    bare = bool(record.get("bare", False))
    assert hashlib.sha256(data).hexdigest() == record["sha256"]
    tokens = codec.decode_tokens(data, bare=bare)
    assert token_digest(tokens) == record["tokens_sha256"]
    image = codec.decode(data, bare=bare)
    assert list(image.size) == record["size"]
    small = np.asarray(image.resize((4, 4), Image.Resampling.BOX)).reshape(-1, 3)
    difference = np.abs(small.astype(int) - np.array(record["colours"]))
    assert difference.max() <= COLOUR_TOLERANCE


@pytest.mark.parametrize("name", FILES)
def test_the_header_says_how_it_was_made(codec: Codec, name: str) -> None:
    record = FILES[name]
    bare = bool(record.get("bare", False))
    stream = unpack((GOLDEN / f"{name}.pco").read_bytes(), bare=bare)
    header = stream.header
    assert [header.width, header.height] == record["size"]
    default = codec.bundle.codec.schedule
    assert (header.schedule or default) == record.get("schedule", default)
    assert header.passes_sent == record.get("passes")
    assert header.caption == record.get("caption", "")
    assert header.seed == record.get("seed")
    expected = None if bare else codec.bundle.fingerprint
    assert stream.fingerprint == expected
