"""The shapes an engine is built for: from sizes of pictures to one range for every symbolic axis.

An engine of TensorRT works within ranges that are fixed when it is built. They follow from how the
codec runs a graph: pictures become grids of tokens, and grids beyond a tile become tiles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec, split_axis
from percoedge.engines.tiling import TILING
from percoedge.errors import BackendError, UsageError

__all__ = ["MAX_BATCH", "Profile", "profile_for"]

MAX_BATCH = 1024

_MAX_ELEMENTS = (1 << 31) - 1  # of one tensor: TensorRT counts them in 32 bits
_TUNED_SIDE = 512  # pixels, where no size is given
_LARGEST_SIDE = 16384  # pixels, as in the stream format
_WHOLE_SIDE = 2048  # pixels, likewise, of pictures that go through a graph in one piece
_FLOWS = ("flow", "flow_guided")
_MOST_SHARED = 4  # tiles along an axis that share a cell; 2 nearly always

Shape = tuple[int, ...]
Range = tuple[int, int, int]


@dataclass(frozen=True)
class Profile:
    """Smallest, typical and largest size of every symbol in the shapes of a graph.

    The engine runs every size within a range and is fastest at the typical one. Raises UsageError
    unless 1 <= smallest <= typical <= largest.
    """

    ranges: Mapping[str, Range]

    def __post_init__(self) -> None:
        for symbol, (low, typical, high) in self.ranges.items():
            if not 1 <= low <= typical <= high:
                raise UsageError(
                    f"expected 1 <= smallest <= typical <= largest for {symbol!r}, got "
                    f"{low}, {typical}, {high}"
                )

    def __str__(self) -> str:
        return ", ".join(f"{s} {low}..{high}" for s, (low, _, high) in self.ranges.items())

    def tuned(self, each_batch: bool) -> tuple[Profile, ...]:
        """What the library is to be given: this, fastest at the typical batch ("n").

        With ``each_batch`` one for batches up to the typical one, and one that is fastest at the
        largest.
        """
        low, typical, high = self.ranges.get("n", (1, 1, 1))
        if not each_batch or typical == high:
            return (self,)
        batches = (low, typical, typical), (low, high, high)
        small, large = (Profile({**self.ranges, "n": batch}) for batch in batches)
        return small, large

    def shapes(self, spec: TensorSpec) -> tuple[Shape, Shape, Shape]:
        """Smallest, typical and largest shape of a tensor; raises KeyError for another symbol."""
        low, typical, high = (
            spec.shape_at({symbol: sizes[which] for symbol, sizes in self.ranges.items()})
            for which in range(3)
        )
        return low, typical, high

    def covers(self, sizes: Mapping[str, int]) -> bool:
        """Whether symbols of these sizes, as ``check_tensors`` returns them, can be run."""
        return all(
            symbol in self.ranges and self.ranges[symbol][0] <= size <= self.ranges[symbol][2]
            for symbol, size in sizes.items()
        )


def profile_for(
    kind: str,
    specs: Sequence[TensorSpec],
    codec: CodecConstants,
    sizes: Sequence[tuple[int, int]] = (),
    batches: Sequence[int] = (1,),
) -> Profile:
    """The ranges in which the codec runs a graph.

    ``specs``: the graph's inputs and outputs. ``sizes``: width and height of pictures in pixels;
    every picture up to the largest width and the largest height is covered, and the first is the
    typical one. None at all: every picture, typically 512x512, but of at most 2048 pixels a side
    where a graph takes pictures in one piece. ``batches``: likewise, from 1 up.
    Raises UsageError for a size or batch out of range, and BackendError for a graph whose axes the
    codec does not know.
    """
    symbols = {split_axis(a)[1] for spec in specs for a in spec.shape if isinstance(a, str)}
    ranges = {"n": _batch_range(batches)}
    grids = [_grid(size, codec) for size in sizes]
    side = _largest_side(kind, codec, _LARGEST_SIDE if sizes else _WHOLE_SIDE)
    if kind in _FLOWS:  # of each picture that is more than a tile it takes some tiles together
        together = [codec.flow_batch if max(grid) > codec.flow_tile else 1 for grid in grids]
        typical, most = (together[0], max(together)) if grids else (codec.flow_batch,) * 2
        ranges["n"] = (1, typical * ranges["n"][1], most * ranges["n"][2])
    if side is not None:
        many = codec.flow_multiple if kind in _FLOWS else 1  # tokens that a symbol stands for
        typical = -(-_TUNED_SIDE // codec.stride)
        first = grids[0] if grids else (typical, typical)
        for symbol, index in (("h", 0), ("w", 1)):
            high = min(side, max((grid[index] for grid in grids), default=side)) // many
            ranges[symbol] = (1, max(1, min(first[index] // many, high)), high)
        (_, h, h_high), (_, w, w_high) = ranges["h"], ranges["w"]
        # Positions of one pass: every cell at most, a quarter in the largest pass of most schedules
        ranges["p"] = (1, -(-h * w // 4), h_high * w_high)
    if kind in TILING:
        ranges |= _tiling_ranges(codec, grids, ranges["n"])
    if not symbols <= ranges.keys():
        raise BackendError(
            f"graph {kind!r}: expected axes of {', '.join(ranges)}, got "
            f"{', '.join(sorted(symbols))}; this version of percoedge does not know how large "
            "they become: install a newer one"
        )
    profile = Profile({symbol: ranges[symbol] for symbol in ranges if symbol in symbols})
    for spec in specs:
        _check_elements(kind, spec, profile)
    return profile


def _tiling_ranges(
    codec: CodecConstants, grids: Sequence[tuple[int, int]], batch: Range
) -> dict[str, Range]:
    """Latents from one flow tile to the largest image; tiles are those of flow and decoder."""
    cells = codec.stride // codec.latent_stride
    typical = -(-_TUNED_SIDE // codec.stride)
    first = grids[0] if grids else (typical, typical)
    largest = -(-_LARGEST_SIDE // codec.stride)
    whole = [max((grid[i] for grid in grids), default=largest) * cells for i in range(2)]
    tile = max(
        codec.flow_tile, _with_margin(codec.decoder_tile, codec.decoder_margin, codec.flow_tile)
    )
    side = (1, codec.flow_tile * cells, tile * cells)
    return {
        "c": (codec.latent_channels,) * 3,
        "t": (1, codec.flow_batch * batch[1], codec.flow_batch * batch[2]),
        **{"y": side, "x": side, "k": (1, 2, _MOST_SHARED)},
        **{axis: (1, first[i] * cells, whole[i]) for i, axis in enumerate("ab")},
    }


def _largest_side(kind: str, codec: CodecConstants, whole_side: int) -> int | None:
    """Largest side in tokens of what the codec gives to a graph; None for one without a grid.

    ``whole_side``: largest side in pixels of pictures that go through in one piece.
    """
    whole = -(-whole_side // codec.stride)
    return {
        "encoder": _with_margin(codec.encoder_tile, codec.encoder_margin, whole),
        "entropy": codec.entropy_tile,
        **dict.fromkeys(_FLOWS, codec.flow_tile),
        "decoder": _with_margin(codec.decoder_tile, codec.decoder_margin, whole),
    }.get(kind)


def _with_margin(tile: int, margin: int | None, whole: int) -> int:
    return whole if margin is None else tile + 2 * margin


def _grid(size: tuple[int, int], codec: CodecConstants) -> tuple[int, int]:
    """Rows and columns of the tokens that cover a picture, filled up as the flow wants them."""
    width, height = size
    if min(size) < 1:
        raise UsageError(f"expected sizes of at least 1 pixel a side, got {width}x{height}")
    many = codec.flow_multiple
    rows, columns = (-(-pixels // (codec.stride * many)) * many for pixels in (height, width))
    return rows, columns


def _batch_range(batches: Sequence[int]) -> Range:
    if not batches or not all(1 <= batch <= MAX_BATCH for batch in batches):
        got = ", ".join(map(str, batches)) or "none"
        raise UsageError(f"expected batches of 1 to {MAX_BATCH}, got {got}")
    return 1, batches[0], max(batches)


def _check_elements(kind: str, spec: TensorSpec, profile: Profile) -> None:
    largest = profile.shapes(spec)[2]
    if prod(largest) > _MAX_ELEMENTS:
        raise UsageError(
            f"graph {kind!r}: expected at most {_MAX_ELEMENTS} elements in {spec.name!r}, got "
            f"{' x '.join(map(str, largest))}; ask for smaller batches or sizes"
        )
