"""The bundles that come with percoedge: each a directory here that holds a ``manifest.json``.

Beside them lie a photo, for the demo and for calibration, and a golden stream with the digest of
its tokens, for ``percoedge doctor``; tests/golden/make.py writes both again for a new bundle.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from percoedge.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "EARLIER_BUNDLES",
    "GoldenStream",
    "golden_stream",
    "shipped_bundles",
    "shipped_photo",
    "token_digest",
]

EARLIER_BUNDLES = {"dd9612dd": ("tiny", "0.1.0")}
"""Bundles shipped before, by fingerprint: name, and the release that reads their streams."""


@dataclass(frozen=True)
class GoldenStream:
    """A stream and what must be read from it on every machine.

    data: the .pco file, made with the default options of bundle ``bundle``.
    fingerprint: of that bundle, hexadecimal.
    tokens_sha256: `token_digest` of its tokens.
    """

    data: bytes
    bundle: str
    fingerprint: str
    tokens_sha256: str


def shipped_bundles() -> dict[str, Path]:
    """Map the name of every shipped bundle to its directory, sorted by name."""
    here = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(here.glob("*/manifest.json"))}


def shipped_photo() -> Path:
    """The photo that comes with percoedge. Raises InputError when it was left out."""
    path = Path(__file__).parent / "demo.jpg"
    if not path.is_file():
        raise InputError(f"expected the demo's photo {path}, found nothing; name a photo of yours")
    return path


def golden_stream() -> GoldenStream:
    """The golden stream that comes with percoedge. Raises InputError when it was left out."""
    path = Path(__file__).parent / "golden.pco"
    try:
        expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        return GoldenStream(path.read_bytes(), **expected)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"expected a golden stream {path} with its digest, got {error}; install percoedge again"
        ) from error


def token_digest(tokens: NDArray[np.int32]) -> str:
    """SHA-256 (hexadecimal) of tokens (h,w) as little-endian int32, row by row."""
    return hashlib.sha256(tokens.astype("<i4").tobytes()).hexdigest()
