"""A published checkpoint into a network: nothing is unpickled but tensors, nothing is passed over.

The authors' own loader prints what does not fit and goes on with random numbers; here it is an
error that names the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from percoedge.errors import BundleError
from percoedge.export.models.checkpoints import fill, unpickled, without_weights
from percoedge.export.models.cod_lite.config import Config
from percoedge.export.models.cod_lite.network import Network

_CONTAINERS = ("module", "state_dict")  # of DeepSpeed and of Lightning
_PREFIX = "net."
_TRAINING_ONLY = (
    "real_denoiser.",
    "fake_denoiser.",
    "dmd_trainer.",
    "codec_trainer.",
    "disc.",
)
_COMPILED = "_orig_mod."
_UNMERGED = ("lora_", "base_layer", "modules_to_save")


def load_network(path: Path, config: Config) -> Network:
    """The network of a checkpoint, in float32 and with every tensor accounted for.

    Raises BundleError when the file is not such a checkpoint, and naming the tensor that is
    missing, unknown, of another shape, no float or not finite.
    """
    tensors = _tensors_of(_contained(unpickled(path)), path)
    with without_weights():
        network = Network(config)
    fill(network, tensors, torch.float32, path)
    return network.eval()


def _contained(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Tensors by name, out of the container that they may lie in."""
    for key in _CONTAINERS:
        if isinstance(state.get(key), dict):
            return state[key]  # type: ignore[no-any-return]
    return state


def _tensors_of(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """The tensors of the codec, without the prefix; those that only training needs are left."""
    names = {name.replace(_COMPILED, ""): name for name in map(str, state)}
    unmerged = [name for name in names if any(part in name for part in _UNMERGED)]
    if unmerged:
        raise BundleError(
            f"{path}: expected a network with its LoRA merged, got {unmerged[0]}; take the "
            "checkpoint of the last stage"
        )
    tensors = {n.removeprefix(_PREFIX): state[key] for n, key in names.items() if _ours(n)}
    if not tensors:
        first = next(iter(names), "no tensor")
        raise BundleError(
            f"{path}: expected tensors named {_PREFIX}*, got {first} and others; take a "
            "CoD_Lite_bpp_*.pt file, not the pre-trained model of many steps"
        )
    strange = [n for n in names if not _ours(n) and not n.startswith(_TRAINING_ONLY)]
    if strange:
        raise BundleError(
            f"{path}: expected tensors of {_PREFIX}* and of its training, got {strange[0]}; this "
            "is another network"
        )
    return tensors


def _ours(name: str) -> bool:
    return name.startswith(_PREFIX)
