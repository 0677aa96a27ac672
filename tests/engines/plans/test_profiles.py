"""Ranges of shapes: what follows from sizes of pictures, batches, and the codec's tiles."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
import pytest

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec
from percoedge.engines.plans.profiles import Profile, profile_for
from percoedge.errors import BackendError, UsageError

IMAGE = TensorSpec("image", "uint8", ("n", "4*h", "4*w", 3))
TOKENS = TensorSpec("tokens", "int32", ("n", "h", "w"))
LATENT = TensorSpec("x", "float32", ("n", 4, "2*h", "2*w"))
KNOB = TensorSpec("t", "float32", (1,))
POSITIONS = TensorSpec("positions", "int32", ("p",))
WEIGHTS = TensorSpec("weights", "int32", ("n", "p", 256))


def test_sizes_become_grids_of_tokens(constants: CodecConstants) -> None:
    # stride 4, flow tile 32: 64x48 px are 12 rows of 16 tokens
    profile = profile_for("flow", (LATENT, TOKENS, KNOB), constants, [(64, 48), (100, 30)], (2, 4))
    assert profile.ranges == {"n": (1, 2, 4), "h": (1, 12, 12), "w": (1, 16, 25)}
    assert profile.shapes(LATENT) == ((1, 4, 2, 2), (2, 4, 24, 32), (4, 4, 24, 50))
    assert profile.shapes(KNOB) == ((1,), (1,), (1,))


def test_sizes_are_rounded_up_to_whole_tokens(constants: CodecConstants) -> None:
    assert profile_for("flow", (TOKENS,), constants, [(5, 4)]).ranges["w"] == (1, 2, 2)


def test_axes_of_the_flow_count_multiples_of_tokens(constants: CodecConstants) -> None:
    coarse: Any = msgspec.structs.replace(constants, flow_multiple=8)
    grid = TensorSpec("tokens", "int32", ("n", "8*h", "8*w"))
    # stride 4: 100x30 px are 8 rows of 25 tokens, filled up to 8x32
    profile = profile_for("flow", (grid,), coarse, [(64, 64), (100, 30)])
    assert profile.shapes(grid) == ((1, 8, 8), (1, 16, 16), (1, 16, 32))
    assert profile_for("flow", (grid,), coarse).shapes(grid)[2] == (1, 32, 32)
    assert profile_for("decoder", (TOKENS,), coarse, [(100, 30)]).ranges["w"] == (1, 32, 32)


@pytest.mark.parametrize(
    ("kind", "side"),
    # entropy_tile 64, flow_tile 32, margins of 2 around the tiles of encoder and decoder
    [("encoder", 68), ("entropy", 64), ("flow", 32), ("flow_guided", 32), ("decoder", 36)],
)
def test_beyond_a_tile_the_range_is_that_of_the_tile(
    constants: CodecConstants, kind: str, side: int
) -> None:
    beyond = profile_for(kind, (TOKENS,), constants, [(16384, 16384)])
    assert beyond.ranges["h"] == beyond.ranges["w"] == (1, side, side)
    flat = profile_for(kind, (TOKENS,), constants, [(16384, 40)])
    assert (flat.ranges["h"], flat.ranges["w"]) == ((1, 10, 10), (1, side, side))


def test_wide_margins_make_wide_tiles_of_the_encoder(constants: CodecConstants) -> None:
    wide: Any = msgspec.structs.replace(constants, encoder_margin=20)
    assert profile_for("encoder", (TOKENS,), wide).ranges["h"][2] == 140
    assert profile_for("entropy", (TOKENS,), wide).ranges["h"][2] == 64


def test_without_sizes_every_picture_fits(constants: CodecConstants) -> None:
    profile = profile_for("flow", (TOKENS,), constants)
    assert profile.ranges == {"n": (1, 1, 1), "h": (1, 32, 32), "w": (1, 32, 32)}
    coarse: Any = msgspec.structs.replace(constants, stride=32)
    assert profile_for("flow", (TOKENS,), coarse).ranges["h"] == (1, 16, 32)  # 512 px


def test_the_flow_takes_several_tiles_of_each_picture(constants: CodecConstants) -> None:
    together: Any = msgspec.structs.replace(constants, flow_batch=4)
    small, large = (128, 128), (132, 8)  # a tile is 32 tokens of 4 px
    for kind, sizes, batches in (
        ("flow", (), (1, 4, 12)),
        ("flow", (small,), (1, 1, 3)),
        ("flow", (small, large), (1, 1, 12)),
        ("flow_guided", (large, small), (1, 4, 12)),
        ("decoder", (large,), (1, 1, 3)),
    ):
        assert profile_for(kind, (TOKENS,), together, sizes, (1, 3)).ranges["n"] == batches


def test_positions_reach_from_one_cell_to_all(constants: CodecConstants) -> None:
    specs = (TOKENS, POSITIONS, WEIGHTS)
    profile = profile_for("entropy", specs, constants, [(40, 40), (80, 40)])
    assert profile.ranges["p"] == (1, 25, 200)


def test_a_graph_without_a_grid_has_a_batch_alone(constants: CodecConstants) -> None:
    ids = TensorSpec("ids", "int32", ("n", 77))
    assert profile_for("clip_l", (ids,), constants, [(64, 64)], (3,)).ranges == {"n": (1, 3, 3)}


def test_axes_nobody_knows_are_refused(constants: CodecConstants) -> None:
    with pytest.raises(BackendError, match="'text': expected axes of n, got l, n"):
        profile_for("text", (TensorSpec("ids", "int32", ("n", "l")),), constants)


@pytest.mark.parametrize("size", [(0, 8), (8, -1)])
def test_sizes_no_image_can_have_are_refused(
    constants: CodecConstants, size: tuple[int, int]
) -> None:
    with pytest.raises(UsageError, match="at least 1 pixel"):
        profile_for("flow", (TOKENS,), constants, [size])


@pytest.mark.parametrize("batches", [(), (0,), (1, 1025)])
def test_batches_out_of_range_are_refused(
    constants: CodecConstants, batches: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match="batches of 1 to 1024"):
        profile_for("flow", (TOKENS,), constants, (), batches)


def test_tensors_beyond_32_bits_are_refused(constants: CodecConstants) -> None:
    # 1024 pictures of 272x272x3 bytes are fine; 4096 positions times 1024 of K = 256 are too
    profile_for("encoder", (IMAGE,), constants, (), (1024,))
    specs = (TOKENS, POSITIONS, dataclasses.replace(WEIGHTS, shape=("n", "p", 1024)))
    with pytest.raises(UsageError, match="'weights', got 1024 x 4096 x 1024"):
        profile_for("entropy", specs, constants, (), (1024,))


def test_each_batch_has_a_profile() -> None:
    profile = Profile({"n": (1, 2, 8), "h": (1, 4, 9)})
    assert profile.tuned(False) == (profile,)
    assert [one.ranges for one in profile.tuned(True)] == [
        {"n": (1, 2, 2), "h": (1, 4, 9)},
        {"n": (1, 8, 8), "h": (1, 4, 9)},
    ]
    for same in (Profile({"n": (1, 8, 8)}), Profile({"h": (1, 4, 9)})):
        assert same.tuned(True) == (same,)


def test_what_is_covered() -> None:
    profile = Profile({"n": (1, 1, 2), "h": (2, 4, 8)})
    assert profile.covers({"n": 2, "h": 2}) and profile.covers({"h": 8})
    assert not profile.covers({"n": 3, "h": 2})
    assert not profile.covers({"n": 1, "h": 1})
    assert not profile.covers({"w": 1})
    assert str(profile) == "n 1..2, h 2..8"


@pytest.mark.parametrize("sizes", [(0, 1, 1), (2, 1, 3), (1, 4, 3)])
def test_a_range_must_ascend(sizes: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="smallest <= typical <= largest for 'h'"):
        Profile({"h": sizes})


def test_profiles_survive_json() -> None:
    profile = Profile({"n": (1, 1, 2)})
    assert msgspec.json.decode(msgspec.json.encode(profile), type=Profile) == profile
    with pytest.raises(msgspec.ValidationError, match="smallest"):
        msgspec.json.decode(b'{"ranges":{"n":[2,1,2]}}', type=Profile)
