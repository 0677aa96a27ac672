"""Bundles: the graphs of one codec with their manifest, in a directory or a .zip."""

from __future__ import annotations

from percoedge.engines.bundle.bundle import Bundle, StoredGraph
from percoedge.engines.bundle.write import GraphFiles, pack_zip, write_manifest

__all__ = ["Bundle", "GraphFiles", "StoredGraph", "pack_zip", "write_manifest"]
