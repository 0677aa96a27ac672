"""Pictures of many tiles: no seams, and the memory of one tile.

The same picture is decoded twice, with tiles that meet at other places. What differs comes from the
tiles alone, so a seam is a step in the difference where tiles of one of the two meet.
"""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from percoedge.bitstream.container import Header, pack
from percoedge.bundles import shipped_photo
from percoedge.engines.bundle import Bundle
from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.selection import select
from percoedge.runtime.codec import Codec
from percoedge.runtime.entropy import EntropyCodec
from percoedge.runtime.flow import decode_latent, noise, sample
from percoedge.runtime.tiling.tiles import context_tiles, overlapping_tiles

pytestmark = pytest.mark.slow


def photo(width: int, height: int) -> Image.Image:
    with Image.open(shipped_photo()) as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return Bundle.open("tiny")


@pytest.fixture(scope="module")
def tokens(bundle: Bundle) -> NDArray[np.int32]:
    with Codec.load(bundle, "onnxruntime-cpu") as codec:
        return codec.tokens(photo(1024, 768))


def decode(
    bundle: Bundle, tokens: NDArray[np.int32], constants: CodecConstants, steps: int
) -> NDArray[np.uint8]:
    backend = select("onnxruntime-cpu")
    cells = constants.stride // constants.latent_stride
    start = noise(0, constants.latent_channels, *(cells * side for side in tokens.shape))[None]
    with backend.load(bundle.read("flow", backend.variant)) as engine:
        latent = sample(engine, tokens[None], start, steps, None, constants)
    with backend.load(bundle.read("decoder", backend.variant)) as engine:
        return decode_latent(engine, latent, constants)[0]


def meetings(length: int, constants: CodecConstants) -> set[int]:
    """Where tiles of the flow or the decoder begin or end inside a row of so many tokens."""
    side, starts = overlapping_tiles(length, constants.flow_tile, constants.flow_overlap)
    ends = {edge for start in starts for edge in (start, start + side)}
    pairs = context_tiles(1, length, constants.decoder_tile, constants.decoder_margin)
    inner = {tile.left for _, tile in pairs}
    return {edge for edge in ends | inner if 0 < edge < length}


def seam(bundle: Bundle, tokens: NDArray[np.int32], steps: int, **changes: int) -> float:
    """Squared steps of the difference where tiles meet, over those between other tokens.

    The larger of rows and columns; 1 means that nothing marks where tiles meet.
    """
    one = msgspec.structs.replace(bundle.codec, **changes)
    two = msgspec.structs.replace(one, flow_tile=22, decoder_tile=22)
    difference = decode(bundle, tokens, one, steps).astype(np.float64)
    difference = (difference - decode(bundle, tokens, two, steps)).mean(axis=2)
    ratios = []
    for picture in (difference, difference.T):
        length = picture.shape[1] // one.stride
        lines = np.arange(1, length) * one.stride
        energy = ((picture[:, lines] - picture[:, lines - 1]) ** 2).mean(axis=0)
        ours, theirs = meetings(length, one), meetings(length, two)
        meeting = [energy[n - 1] for n in ours - theirs]
        others = [energy[n - 1] for n in set(range(1, length)) - ours - theirs]
        assert meeting
        ratios.append(float(np.mean(meeting) / np.mean(others)))
    return max(ratios)


@pytest.mark.parametrize("steps", [1, 4])
def test_tiles_leave_no_seams(bundle: Bundle, tokens: NDArray[np.int32], steps: int) -> None:
    assert seam(bundle, tokens, steps) < 1.5


def test_without_blending_and_context_there_would_be_seams(
    bundle: Bundle, tokens: NDArray[np.int32]
) -> None:
    """What the measure is there to find."""
    assert seam(bundle, tokens, 1, flow_overlap=0, decoder_margin=0) > 30


_DECODE = """
import re, sys
from percoedge import Codec
with Codec.load("tiny", "onnxruntime-cpu") as codec:
    codec.decode(sys.stdin.buffer.read(), steps=1)
with open("/proc/self/status") as status:
    print(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_memory_is_that_of_a_tile_and_of_the_picture(bundle: Bundle) -> None:
    """The smaller picture has a tile with context all around already."""
    height, widths, constants = 1536, (1536, 2560), bundle.codec
    coder = EntropyCodec(None, constants.codebook_size, constants.entropy_tile)
    rng, peaks = np.random.default_rng(0), []
    for width in widths:
        shape = (height // constants.stride, width // constants.stride)
        tokens = rng.integers(0, constants.codebook_size, shape).astype(np.int32)
        header = Header(width=width, height=height, schedule="uniform")
        data = pack(header, coder.encode(tokens, "uniform"), bundle.fingerprint)
        result = subprocess.run(
            [sys.executable, "-c", _DECODE], input=data, capture_output=True, check=True
        )
        peaks.append(1024 * int(result.stdout))
    growth = (peaks[1] - peaks[0]) / (height * (widths[1] - widths[0]))
    assert growth < 20, peaks  # bytes a pixel: pixels three times, and a few latents
