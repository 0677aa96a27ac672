"""Engines run one graph each: the contract, bundles of graphs, and the backends that run them.

The loops of the codec are in percoedge.runtime. Of the codec only its constants are here, which
manifests hold and engine files are built for. Importing this package imports no library that runs
graphs.
"""

from __future__ import annotations

from percoedge.engines.bundle import Bundle, GraphFiles, write_manifest
from percoedge.engines.bundle.manifest import CodecConstants, Manifest
from percoedge.engines.contract import (
    Backend,
    Buffer,
    DeviceBuffer,
    Engine,
    Graph,
    GraphSource,
    TensorSpec,
)
from percoedge.engines.selection import BACKENDS, BackendStatus, available, select

__all__ = [
    "BACKENDS",
    "Backend",
    "BackendStatus",
    "Buffer",
    "Bundle",
    "CodecConstants",
    "DeviceBuffer",
    "Engine",
    "GraphFiles",
    "Graph",
    "GraphSource",
    "Manifest",
    "TensorSpec",
    "available",
    "select",
    "write_manifest",
]
