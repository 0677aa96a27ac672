"""Tokens <-> range-coded bytes: the passes of the masked image model around one range coder.

The token grid is cut into tiles that are contexts of their own; for every pass, for every tile, the
entropy graph turns what is known into integer weights of the cells of that pass. All arithmetic
here and in the graph is in integers, so every machine decodes the same tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

from percoedge.bitstream.rangecoder import CutDecoder, TokenDecoder, TokenEncoder
from percoedge.bitstream.schedules import pass_count, pass_table, passes
from percoedge.engines.contract import Buffer, Engine
from percoedge.errors import StreamError, UsageError, naming
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.tiling.tiles import Tile, grid_tiles

__all__ = ["DecodedTokens", "EntropyCodec", "Tokens", "entropy_codec"]

Tokens = NDArray[np.int32]

# Second half of Philox's 128-bit key: sampled tokens and the noise of the flow share no bits.
_SAMPLING_STREAM = 1 << 64

# Zero bytes put back at the end, to see whether a stream is whole (FORMAT.md, section 8).
_TRIMMED = b"\0" * 4


@dataclass(frozen=True)
class DecodedTokens:
    """Tokens (h,w) after a pass; ``known`` of them were read from the stream, others sampled."""

    tokens: Tokens
    known: int


class EntropyCodec:
    """Codes token grids of one bundle.

    ``engine`` runs the entropy graph (None will do for the schedule "uniform", which uses no
    model); ``codebook_size`` K, also the id of a masked token; ``tile`` cells a side.
    """

    def __init__(self, engine: Engine | None, codebook_size: int, tile: int) -> None:
        self.engine = engine
        self._size = codebook_size
        self._tile = tile

    def encode(self, tokens: Tokens, schedule: str, passes_sent: int | None = None) -> bytes:
        """Code the first ``passes_sent`` passes (None: all) of a grid (h,w)."""
        *_, data = islice(self.encode_progressive(tokens, schedule), passes_sent)
        return data

    def encode_progressive(self, tokens: Tokens, schedule: str) -> Iterator[bytes]:
        """Yield the code of the first pass of a grid (h,w), of the first two, and so on to all.

        Each is what ``encode`` gives, never shorter than the one before it. Every pass is coded
        once, when it is asked for.
        """
        coder = TokenEncoder()
        state = np.full_like(tokens, self._size)
        for contexts in self._by_pass(tokens.shape, schedule):
            for tile, cells, weights in self._weighted(schedule, state[None], contexts):
                symbols = tokens[tile.slices].ravel()[cells]
                coder.encode(symbols, weights[0])
                _put(state[tile.slices], cells, symbols)
            yield coder.finish()

    def decode(
        self,
        streams: Sequence[bytes],
        shape: tuple[int, int],
        schedule: str,
        names: Sequence[str] | None = None,
    ) -> NDArray[np.int32]:
        """Decode whole streams of one grid shape and schedule together: int32 (n,h,w).

        Raises StreamError for bytes that no encoder makes, with the name of their stream.
        """
        names = names or [""] * len(streams)
        coders = [TokenDecoder(data) for data in streams]
        state = np.full((len(streams), *shape), self._size, np.int32)
        for contexts in self._by_pass(shape, schedule):
            for tile, cells, weights in self._weighted(schedule, state, contexts):
                for name, grid, coder, rows in zip(names, state, coders, weights, strict=True):
                    count = len(cells) if rows.ndim == 1 else None
                    with naming(name, StreamError):
                        symbols = coder.decode(rows, count)
                    _put(grid[tile.slices], cells, symbols)
        return state

    def decode_partial(
        self,
        data: bytes,
        shape: tuple[int, int],
        schedule: str,
        *,
        passes_sent: int | None = None,
        passes: int | None = None,
        cut: bool | None = False,
        seed: int = 0,
    ) -> Tokens:
        """Decode a grid (h,w) of which a part is missing: that part is sampled from the model.

        ``passes_sent``: how many passes the stream holds; ``passes``: how many of these to use,
        None for all. ``cut``: whether the bytes end early; tokens that they do not settle are
        sampled. None where nobody knows: then the bytes are whole if they can be (FORMAT.md,
        section 8), which takes a second decode if they cannot. Sampling draws from
        ``seed`` with integers only, so it too is the same everywhere. Raises StreamError for bytes
        that no encoder makes.
        """
        if passes is not None:
            passes = min(passes, pass_count(schedule) if passes_sent is None else passes_sent)
        # Whether bytes are whole shows at their end only; else what comes later is not read.
        needed = passes_sent if cut is None or passes is None else passes
        state = self._read(data, shape, schedule, needed, cut)
        if passes is not None:
            state[self._pass_numbers(shape, schedule) >= passes] = self._size
        return self._completed(state, schedule, seed)

    def decode_progressive(
        self,
        data: bytes,
        shape: tuple[int, int],
        schedule: str,
        *,
        passes_sent: int | None = None,
        cut: bool | None = False,
        seed: int = 0,
    ) -> Iterator[DecodedTokens]:
        """Yield the grid after each pass that reads tokens, those of later passes sampled.

        The arguments are those of ``decode_partial``, whose result is the last grid yielded. All
        that the stream holds is read first.
        """
        state = self._read(data, shape, schedule, passes_sent, cut)
        numbers = self._pass_numbers(shape, schedule)
        numbers_read = numbers[state != self._size]
        for number in np.unique(numbers_read) if len(numbers_read) else [0]:
            seen = np.where(numbers <= number, state, self._size).astype(np.int32)
            known = int((seen != self._size).sum())
            yield DecodedTokens(self._completed(seen, schedule, seed), known)

    def _pass_numbers(self, shape: tuple[int, int], schedule: str) -> NDArray[np.uint8]:
        """The pass of every token of a grid, from 0."""
        numbers = np.empty(shape, np.uint8)
        for tile in grid_tiles(*shape, self._tile):
            numbers[tile.slices] = pass_table(schedule, *tile.shape)
        return numbers

    def _read(
        self,
        data: bytes,
        shape: tuple[int, int],
        schedule: str,
        passes_sent: int | None,
        cut: bool | None,
    ) -> Tokens:
        """The grid (h,w) that a stream holds, MASK where it holds nothing."""
        if cut is None:
            whole = self._read_if_whole(data, shape, schedule, passes_sent)
            if whole is not None:
                return whole
        coder = CutDecoder(data) if cut is not False else TokenDecoder(data)
        state = np.full(shape, self._size, np.int32)
        for view, cells, weights in self._contexts(state, schedule, passes_sent):
            if isinstance(coder, CutDecoder):
                symbols, certain = coder.decode(weights)
            else:
                symbols, certain = coder.decode(weights), len(cells)
            _put(view, cells, symbols)
            if certain < len(cells):
                break
        return state

    def _read_if_whole(
        self, data: bytes, shape: tuple[int, int], schedule: str, passes_sent: int | None
    ) -> Tokens | None:
        """The grid of a stream if nothing speaks against its being whole, else None.

        The rule is that of FORMAT.md, section 8.
        """
        if data.endswith(b"\0"):
            return None
        coder, proof = TokenDecoder(data), CutDecoder(data + _TRIMMED)
        run: set[int] = (
            set()
        )  # what tokens that are not settled are: one and the same, or it is cut
        state = np.full(shape, self._size, np.int32)
        for view, cells, weights in self._contexts(state, schedule, passes_sent):
            try:
                symbols = coder.decode(weights)
                _, settled = proof.decode(weights)
            except StreamError:
                return None
            run.update(symbols[settled:].tolist())
            if len(run) > 1 or (run and not data):
                return None
            _put(view, cells, symbols)
        return state

    def _contexts(
        self, state: Tokens, schedule: str, passes_sent: int | None
    ) -> Iterator[tuple[Tokens, NDArray[np.int32], NDArray[np.int32]]]:
        """For each pass and tile: view of ``state``, flat cells (p,) in it, weights (p,K) of these.

        The weights see what the caller has written to the views before.
        """
        for contexts in islice(self._by_pass(state.shape, schedule), passes_sent):
            for tile, cells, weights in self._weighted(schedule, state[None], contexts):
                table = np.broadcast_to(weights[0], (len(cells), self._size))
                yield state[tile.slices], cells, table

    def _completed(self, state: Tokens, schedule: str, seed: int) -> Tokens:
        """A copy with every masked token sampled, pass by pass."""
        filled = state.copy()
        if not (filled == self._size).any():
            return filled
        random = np.random.Philox(key=_SAMPLING_STREAM | seed)
        for tile, cells in chain.from_iterable(self._by_pass(state.shape, schedule)):
            view = filled[tile.slices]
            missing = cells[view.ravel()[cells] == self._size]
            if not len(missing):
                continue
            ((_, _, weights),) = self._weighted(schedule, filled[None], [(tile, missing)])
            table = np.broadcast_to(weights[0], (len(missing), self._size))
            sums = np.cumsum(table, axis=1, dtype=np.uint64)
            # 32 random bits scaled to 0..total-1: sums are at most 2^32, products below 2^64
            bits = random.random_raw(len(missing)) >> np.uint64(32)
            drawn = bits * sums[:, -1] >> np.uint64(32)
            chosen = (sums <= drawn[:, None]).sum(axis=1)
            _put(view, missing, chosen)
        return filled

    def _by_pass(
        self, shape: tuple[int, ...], schedule: str
    ) -> Iterator[list[tuple[Tile, NDArray[np.int32]]]]:
        """For each pass in a list: tile, and flat cells of the pass in the tile, in coding order.

        No cells are empty; small grids have passes without any.
        """
        tiles = grid_tiles(shape[0], shape[1], self._tile)
        cells_of = {tile.shape: passes(schedule, *tile.shape) for tile in tiles}
        for number in range(pass_count(schedule)):
            contexts = [(tile, cells_of[tile.shape][number]) for tile in tiles]
            yield [(tile, cells) for tile, cells in contexts if len(cells)]

    def _weighted(
        self,
        schedule: str,
        state: NDArray[np.int32],
        contexts: Sequence[tuple[Tile, NDArray[np.int32]]],
    ) -> Iterator[tuple[Tile, NDArray[np.int32], NDArray[np.int32]]]:
        """The contexts of one pass, each with its weights for n grids (n,h,w): (n,p,K).

        Those are (n,K) of ones for "uniform". Contexts see nothing of each other, so that the graph
        takes as many of one shape at a time as its engine likes; where it is a device, it works on
        the next ones while the caller works with these.
        """
        if schedule == "uniform":
            for tile, cells in contexts:
                yield tile, cells, np.ones((len(state), self._size), np.int32)
            return
        if self.engine is None:
            raise UsageError("expected the entropy engine for every schedule but 'uniform'")
        most = max(1, (self.engine.max_batch or 1) // len(state))
        ahead = self.engine.max_batch is not None and len(contexts) > most
        left = list(range(len(contexts)))
        runs: list[tuple[list[int], Buffer]] = []  # contexts, and weights of all their grids
        done: dict[int, NDArray[np.int32]] = {}
        for number, (tile, cells) in enumerate(contexts):
            while number not in done:
                while left and len(runs) < (2 if ahead else 1):
                    shape = contexts[left[0]][0].shape
                    alike = [each for each in left if contexts[each][0].shape == shape][:most]
                    left = [each for each in left if each not in alike]
                    views = [state[(slice(None), *contexts[each][0].slices)] for each in alike]
                    feeds = {"tokens": np.concatenate(views), "positions": contexts[alike[0]][1]}
                    result = self.engine.run(feeds, on_device=ahead)["weights"]
                    if not isinstance(result, np.ndarray):
                        result.begin_fetch()  # before the next run is queued
                    runs.append((alike, result))
                alike, weights = runs.pop(0)
                done |= zip(alike, np.split(np.asarray(weights), len(alike)), strict=True)
            yield tile, cells, done.pop(number)


def _put(grid: Tokens, cells: NDArray[np.int32], symbols: NDArray[np.int32]) -> None:
    """Set the flat cells of a grid (h,w)."""
    grid[np.unravel_index(cells, grid.shape)] = symbols


@contextlib.contextmanager
def entropy_codec(engines: EngineSet, schedule: str) -> Iterator[EntropyCodec]:
    """The codec of a bundle's tokens; "uniform" needs no engine, and none is loaded for it."""
    codec = engines.bundle.codec
    use = contextlib.nullcontext() if schedule == "uniform" else engines.use("entropy")
    with use as engine:
        yield EntropyCodec(engine, codec.codebook_size, codec.entropy_tile)
