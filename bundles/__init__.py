"""The bundles that come with percoedge: each a directory here that holds a ``manifest.json``."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped_bundles"]


def shipped_bundles() -> dict[str, Path]:
    """Map the name of every shipped bundle to its directory, sorted by name."""
    here = Path(__file__).parent
    return {path.parent.name: path.parent for path in sorted(here.glob("*/manifest.json"))}
