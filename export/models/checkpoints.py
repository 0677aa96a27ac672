"""Weights from local safetensors files into modules that were built without any.

Nothing is fetched and nothing is unpickled. Tensors of safetensors files are mapped, not read, so
that a checkpoint takes memory only where its numbers have to be converted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from percoedge.errors import BundleError


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Modules made inside have parameters without memory (on the meta device), but real buffers."""
    register = nn.Module.register_parameter

    def register_without(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    nn.Module.register_parameter = register_without
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a part of a pipeline. Raises BundleError."""
    return _read_json(folder / "config.json")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or of those in a folder (of an index, or the only one).

    A folder's ``.fp16`` files are taken where it has others too. Raises BundleError.
    """
    files = [path] if path.suffix == ".safetensors" else _files_of(path)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise BundleError(
                f"{file}: expected a safetensors file: {error}; fetch it again"
            ) from error
    return tensors


def _files_of(folder: Path) -> list[Path]:
    """The safetensors files of a folder that make up one checkpoint."""
    halves = [sorted(folder.glob(f"*.{end}")) for end in ("safetensors", "safetensors.index*.json")]
    files, indices = ([p for p in paths if ".fp16." in p.name] or paths for paths in halves)
    if indices:
        parts: dict[str, str] = _read_json(indices[0]).get("weight_map", {})
        return [folder / name for name in sorted(set(parts.values()))]
    if len(files) != 1:
        raise BundleError(
            f"{folder}: expected one .safetensors file or an index of several, got "
            f"{', '.join(file.name for file in files) or 'none'}; leave one there, and convert "
            ".bin files with diffusers or transformers"
        )
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"expected {path}, in the layout of diffusers: {error}; name the directory that holds "
            "transformer, vae, text_encoder and so on"
        ) from error
    return table


def fill(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    dtype: torch.dtype,
    where: object,
    optional: tuple[str, ...] = (),
) -> None:
    """Make ``tensors`` the weights of a module, converted to ``dtype`` where they are floats.

    ``where`` names their source in errors; names that end in one of ``optional`` may be missing or
    too many. Raises BundleError when names or shapes differ or a number does not fit.
    """
    expected = module.state_dict()
    missing = [name for name in expected.keys() - tensors.keys() if not name.endswith(optional)]
    strange = [name for name in tensors.keys() - expected.keys() if not name.endswith(optional)]
    if missing or strange:
        raise BundleError(
            f"{where}: expected the tensors of {type(module).__name__}; missing: "
            f"{_some(missing)}; unknown: {_some(strange)}; check that it is of this kind"
        )
    chosen = {name: tensors[name] for name in expected if name in tensors}
    for name, tensor in chosen.items():
        if tensor.shape != expected[name].shape:
            raise BundleError(
                f"{where}: expected {name} of {tuple(expected[name].shape)}, got "
                f"{tuple(tensor.shape)}; check the configuration and the rate"
            )
        if tensor.is_floating_point():
            chosen[name] = tensor.to(dtype)
            if tensor.dtype != dtype and not bool(chosen[name].isfinite().all()):
                raise BundleError(f"{where}: expected numbers that fit {dtype}, {name} has larger")
    module.load_state_dict(chosen, strict=False, assign=True)


def fill_at_random(module: nn.Module, dtype: torch.dtype, seed: int = 0) -> None:
    """Give a module weights that keep activations of about one size; norms and biases are plain."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, parameter in module.named_parameters():
        if parameter.ndim < 2:
            fresh = torch.full(parameter.shape, float(name.endswith("weight")))
        else:
            fresh = torch.randn(parameter.shape, generator=generator)
            fresh *= parameter[0].numel() ** -0.5
        weights[name] = fresh.to(dtype)
    module.load_state_dict(weights, strict=False, assign=True)


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:3]) or "none"
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
