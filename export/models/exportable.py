"""What every family of models gives to the export: the one interface of ``export.models.<family>``.

A family reads a configuration off a checkpoint, loads the checkpoint strictly, and returns this
record. What is in it goes into the bundle; the runtime never learns of families.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from percoedge.engines.bundle.manifest import CodecConstants
from percoedge.engines.contract import TensorSpec


@dataclass(frozen=True)
class GraphPlan:
    """How to export one graph: its module, its border, and the file its weights go to.

    ``build`` makes the module out of that of the family, in a type of floats. ``parts``: submodules
    of the family that compute in the graph's precision. ``bounds`` caps symbolic axes (inclusive).
    Graphs with the same ``weights`` share that file. ``traced``: sizes of the symbolic axes when it
    is traced. ``guarded``: see ``trace``. ``pixel_bytes``: see ``Graph`` of the manifest.
    ``whole``: cells a side of what the graph fills up inside; costs are those of grids of such.
    ``int8``: beginnings of the names of linear layers that multiply bytes in a variant for CPUs.
    """

    build: Callable[[Any, torch.dtype], nn.Module]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: str
    parts: tuple[str, ...]
    bounds: dict[str, int] = field(default_factory=dict)
    # odd and unequal, so that nothing is baked in
    traced: Mapping[str, int] = field(default_factory=lambda: {"n": 2, "h": 5, "w": 7})
    guarded: bool = True
    pixel_bytes: int | None = None
    whole: int = 1
    int8: tuple[str, ...] = ()


@dataclass(frozen=True)
class Exportable:
    """A codec read from a checkpoint, on the CPU and in float32.

    ``module`` holds the weights that ``plans`` (by kind of graph) build graphs of. ``language``:
    see ``Manifest.language``. ``name``: of the bundle unless the user gives another.
    ``provenance``: where the weights come from. ``tokenizers``: JSON by the text graph that takes
    its ids.
    """

    family: str
    name: str
    module: nn.Module
    plans: Mapping[str, GraphPlan]
    codec: CodecConstants
    language: str
    licence: str
    provenance: Mapping[str, Any]
    tokenizers: Mapping[str, str] = field(default_factory=dict)


class FamilySource(Protocol):
    """A module of a family that reads its checkpoints for the command line."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add what says where the checkpoint lies."""
        ...

    def load(self, args: argparse.Namespace) -> Exportable:
        """Read the checkpoint. Raises BundleError naming the file and what is wrong with it."""
        ...


def codebook_language(codebook: Tensor) -> str:
    """SHA-256 (hex) of shape and values of a codebook (K,c): tokens that are coded uniformly."""
    digest = hashlib.sha256(repr(tuple(codebook.shape)).encode("ascii"))
    digest.update(np.ascontiguousarray(codebook.detach().numpy(), "<f4").tobytes())
    return digest.hexdigest()


@contextmanager
def in_precision(family: nn.Module, parts: Sequence[str], dtype: torch.dtype) -> Iterator[None]:
    """Submodules of a family converted in place, and back at the end: there is no room for copies.

    What FP16 does to numbers stays.
    """
    modules = [family.get_submodule(name) for name in parts]
    given = [next(module.parameters()).dtype for module in modules]
    for module in modules:
        module.to(dtype)
    try:
        yield
    finally:
        for module, before in zip(modules, given, strict=True):
            module.to(before)
