"""Weights from local files into modules that were built without any.

Nothing is fetched, and of pickled files nothing is made but tensors and plain containers. Files are
mapped, not read, so that a checkpoint takes memory only where its numbers have to be converted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
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
    return read_json(folder / "config.json")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, or of those in a folder (of an index, or the only one).

    That is a safetensors file, or the .bin file of PyTorch where there is none. A folder's
    ``.fp16`` files are taken where it has others too. Raises BundleError.
    """
    tensors: dict[str, Tensor] = {}
    for file in [path] if path.suffix == ".safetensors" else _files_of(path):
        if file.suffix != ".safetensors":
            tensors |= unpickled(file)
            continue
        try:
            tensors |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise BundleError(
                f"{file}: expected a safetensors file: {error}; fetch it again"
            ) from error
    return tensors


def unpickled(path: Path) -> dict[str, Any]:
    """The table that a file of ``torch.save`` holds. Raises BundleError for any other."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise BundleError(
            f"{path}: expected a checkpoint of torch.save that holds tensors only: {reason}; fetch "
            "it again from its authors"
        ) from error
    if not isinstance(state, dict):
        raise BundleError(f"{path}: expected tensors by name, got {type(state).__name__}")
    return state


def _files_of(folder: Path) -> list[Path]:
    """The files of a folder that make up one checkpoint."""
    for end in ("safetensors", "bin"):
        halves = [sorted(folder.glob(f"*.{name}")) for name in (end, f"{end}.index*.json")]
        files, indices = ([p for p in found if ".fp16." in p.name] or found for found in halves)
        if indices:
            parts: dict[str, str] = read_json(indices[0]).get("weight_map", {})
            return [folder / name for name in sorted(set(parts.values()))]
        if files:
            break
    if len(files) != 1:
        raise BundleError(
            f"{folder}: expected one .safetensors or .bin file or an index of several, got "
            f"{', '.join(file.name for file in files) or 'none'}; leave one there"
        )
    return files


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a folder that diffusers wrote. Raises BundleError."""
    try:
        table: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(
            f"expected {path}, in the layout of diffusers: {error}; name the directory that holds "
            f"{path.parent.name} and the other parts of the model"
        ) from error
    if not isinstance(table, dict):
        raise BundleError(f"{path}: expected a table, got {type(table).__name__}; fetch it again")
    return table


def file_digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
    chosen = {name: tensors[name] for name in expected if name in tensors}
    for name, tensor in chosen.items():
        _check(where, name, tensor, expected[name])
    missing = [name for name in expected.keys() - tensors.keys() if not name.endswith(optional)]
    strange = [name for name in tensors.keys() - expected.keys() if not name.endswith(optional)]
    if missing or strange:
        raise BundleError(
            f"{where}: expected the tensors of {type(module).__name__}; missing: "
            f"{_some(missing)}; unknown: {_some(strange)}; check that it is of this kind"
        )
    for name, tensor in chosen.items():
        if tensor.is_floating_point():
            chosen[name] = tensor.to(dtype)
            if tensor.dtype != dtype and not bool(chosen[name].isfinite().all()):
                raise BundleError(f"{where}: expected numbers that fit {dtype}, {name} has larger")
    module.load_state_dict(chosen, strict=False, assign=True)


def _check(where: object, name: str, given: object, expected: Tensor) -> None:
    floats = expected.is_floating_point()
    if not isinstance(given, Tensor) or given.is_floating_point() != floats:
        kind = given.dtype if isinstance(given, Tensor) else type(given).__name__
        raise BundleError(
            f"{where}: expected {name} as a tensor of {'floats' if floats else 'integers'}, got "
            f"{kind}"
        )
    if given.shape != expected.shape:
        shapes = f"{tuple(expected.shape)}, got {tuple(given.shape)}"
        if sorted(given.shape) == sorted(expected.shape):
            shapes += ", which is transposed"
        raise BundleError(
            f"{where}: expected {name} of {shapes}; check the configuration and the rate"
        )
    if not bool(given.isfinite().all()):
        raise BundleError(
            f"{where}: expected finite numbers in {name}, got NaN or infinity; fetch the file again"
        )


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
