"""The weights of a bundle, read back into PyTorch: to go on training where nobody kept the run.

Reads the FP32 topologies that ``percoedge.export.bundle`` wrote. Float weights come back as the
bundle stores them, in half precision; the entropy model as the very integers of its graph.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from percoedge.engines.bundle import Bundle
from percoedge.errors import BundleError
from percoedge.export.config import Config
from percoedge.export.exact.integers import (
    EXPONENTS,
    LOGIT_EXPONENT,
    NORM_EXPONENT,
    STREAM_EXPONENT,
    IntegerLayer,
    IntegerMim,
)
from percoedge.export.exact.read import integers_of
from percoedge.export.graphs.whole_model import whole_model
from percoedge.export.models.mim import Mim, QuantLayer
from percoedge.export.models.percov2.family import Family

Arrays = dict[str, NDArray[Any]]


def family_from_bundle(bundle: Bundle, config: Config) -> Family:
    """The family of a bundle that was exported with ``config``; on the CPU, in evaluation mode.

    Raises BundleError when the bundle's graphs are not those of the configuration.
    """
    family = Family(config)
    state = family.state_dict()
    found: Arrays = {}
    for kind in ("encoder", "flow", "decoder"):
        found |= _weights(bundle, kind)
    codebook = found.pop("codebook")
    found["quantizer.codebook"] = codebook
    found |= _projection(codebook, found.pop("table"))
    for name in state:
        if name.startswith("mim.") or name in _KEPT:
            continue
        if name not in found or found[name].shape != tuple(state[name].shape):
            got = found[name].shape if name in found else "nothing"
            raise BundleError(
                f"{bundle.path}: expected {name} of shape {tuple(state[name].shape)}, got {got}; "
                "give the configuration that the bundle was exported with"
            )
        state[name].copy_(torch.from_numpy(found[name]))
    _restore(family.mim, integers_of(bundle))
    return family.eval()


# What training counts and no graph needs.
_KEPT = ("quantizer.usage", "quantizer.spread.num_batches_tracked")


def _weights(bundle: Bundle, kind: str) -> Arrays:
    """Constants of a graph under the names of the family's parameters."""
    model = whole_model(bundle.read(kind, "fp32"))
    values = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float32)
        for tensor in model.graph.initializer
    }
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
    users = {name: node for node in model.graph.node for name in node.input}
    for node in model.graph.node:
        if node.op_type != "MatMul" or node.input[1] not in values:
            continue
        weight = values[node.input[1]].T
        added = users[node.output[0]]
        bias = next((name for name in added.input if name.endswith(".bias")), None)
        if bias is not None:  # the exporter transposes linear weights and gives them new names
            values[bias.removesuffix("bias") + "weight"] = np.ascontiguousarray(weight)
        else:  # the codes' cosines with the codebook
            values["codebook"] = np.ascontiguousarray(weight)
    return values


def _projection(codebook: NDArray[Any], table: NDArray[Any]) -> Arrays:
    """``project_out``, solved from the codebook (K,D) and what it maps it to (K+1,channels)."""
    rows = np.concatenate([codebook, np.ones((len(codebook), 1))], axis=1).astype(np.float64)
    solved = np.linalg.lstsq(rows, table[:-1].astype(np.float64), rcond=None)[0]
    solved = solved.astype(np.float16).astype(np.float32)
    return {
        "quantizer.project_out.weight": np.ascontiguousarray(solved[:-1].T),
        "quantizer.project_out.bias": solved[-1],
    }


@torch.no_grad()
def _restore(mim: Mim, model: IntegerMim) -> None:
    """Give a model parameters from which exactly these integers are read off again.

    The exponents of activations are not in a graph, but only the right ones give its integers.
    Raises BundleError when none do.
    """

    def fill(layer: QuantLayer, integers: IntegerLayer, e_in: int, e_out: int) -> bool:
        """Whether the layer now gives these integers; scales are clamped, so it may not."""
        weight, bias, shift = map(
            torch.from_numpy, (integers.weight, integers.bias, integers.shift)
        )
        weight = weight.T if weight.ndim == 2 else weight[:, None]
        exponent = shift - e_in + e_out
        layer.bias.copy_(bias * 2.0 ** -(exponent + e_in))
        layer.weight.copy_(weight * 2.0 ** -exponent.reshape(-1, *[1] * (weight.ndim - 1)))
        if layer.gain is not None:
            layer.gain.fill_(1)
        again = layer.integers(e_in, e_out)
        return all(map(torch.equal, again, (weight.float(), bias.float(), shift.float())))

    mim.embedding.copy_(torch.from_numpy(model.embedding) * 2.0**-STREAM_EXPONENT)
    for block, (mix, up, down) in zip(mim.blocks, model.blocks, strict=True):
        for mixed, hidden in itertools.product(EXPONENTS, EXPONENTS):
            block.exponents.copy_(torch.tensor([mixed, hidden]))
            if (
                fill(block.mix, mix, NORM_EXPONENT, mixed)
                and fill(block.up, up, mixed, hidden)
                and fill(block.down, down, hidden, STREAM_EXPONENT)
            ):
                break
        else:
            raise BundleError("expected an entropy model of this project's scales; export it again")
    fill(mim.head, model.head, NORM_EXPONENT, LOGIT_EXPONENT)
    mim.exact = True
