"""Captions as a condition of the flow: token ids, then the text towers of the bundle.

What a caption becomes is all in the bundle: a tokenizer beside each tower, in which the export
set how far to pad and cut, and a graph that joins what the towers give, if there are more of them.
Here buffers are passed on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.engines.contract import Buffer
from percoedge.errors import BackendError, BundleError
from percoedge.runtime.engine_set import EngineSet
from percoedge.runtime.tiling.tiles import batch_parts, slice_of

__all__ = ["TextConditioner"]

_CAPTION_PIXELS = 512 * 512  # what a caption counts for where memory limits how many run together


class TextConditioner:
    """Turns captions into inputs of the flow graph; keeps the tokenizers that it has read."""

    def __init__(self, engines: EngineSet) -> None:
        self._engines = engines
        self._tokenizers: dict[str, Any] = {}

    def condition(self, captions: Sequence[str]) -> dict[str, Buffer]:
        """Inputs of the flow graph for the captions of a batch.

        They are empty where the bundle knows no text; the empty caption is one like others. Raises
        BackendError when the package ``tokenizers`` is missing or a graph fails, and BundleError
        when a file of the bundle does not serve.
        """
        bundle = self._engines.bundle
        if not bundle.codec.captions_condition:
            return {}
        joined: dict[str, Buffer] = {}
        for kind in bundle.manifest.tokenizers:
            with self._engines.clock.timed("text"):
                ids = self._ids(kind, captions)
            joined |= self._run(kind, {"ids": ids})
        return self._run("text_join", joined) if "text_join" in bundle.kinds else joined

    def _run(self, kind: str, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs of a graph for all rows (n) of its feeds; those of one run stay on the device."""
        with self._engines.use(kind) as engine, self._engines.clock.timed("text"):
            count = next(iter(feeds.values())).shape[0]
            outputs = [
                engine.run({n: slice_of(feed, part) for n, feed in feeds.items()}, on_device=True)
                for part in batch_parts(count, _CAPTION_PIXELS, engine.max_batch)
            ]
            if len(outputs) == 1:
                return outputs[0]
            return {
                name: np.concatenate([np.asarray(part[name]) for part in outputs])
                for name in outputs[0]
            }

    def _ids(self, kind: str, captions: Sequence[str]) -> NDArray[np.int32]:
        """Token ids (n,l) of captions, each padded or cut to the length that a tower takes."""
        if kind not in self._tokenizers:
            data = self._engines.bundle.read_tokenizer(kind)
            self._tokenizers[kind] = _load_tokenizer(kind, data)
        # one by one: a batch would start threads, and warn of them when a process forks
        rows = [self._tokenizers[kind].encode(caption).ids for caption in captions]
        if len({len(row) for row in rows}) != 1:
            raise BundleError(
                f"expected the tokenizer of {kind!r} to pad and cut to one length, got "
                f"{sorted({len(row) for row in rows})} tokens; export the bundle again"
            )
        return np.array(rows, np.int32)


def _load_tokenizer(kind: str, data: bytes) -> Any:
    """A tokenizer of the package ``tokenizers`` from its JSON."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise BackendError(
            f"expected the package tokenizers, for this bundle reads captions, cannot import it "
            f"({error}); install it with: pip install 'percoedge[text]'"
        ) from error
    try:
        return Tokenizer.from_str(data.decode("utf-8"))
    except Exception as error:  # the library's errors have no common base
        raise BundleError(
            f"expected a tokenizer of graph {kind!r} that this release of the package tokenizers "
            f"reads: {error}; export the bundle again, or update the package"
        ) from error
