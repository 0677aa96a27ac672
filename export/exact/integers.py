"""The exact entropy model: its integers, an int64 reference, and the proof of its bounds.

Weights and activations are small integers carried in float32. As long as every partial sum stays
below 2^24 in magnitude, float32 additions are exact in any order and with or without fused
multiply-add, so every backend gives the same integers. ``prove`` checks that and the export refuses
a model that fails. Needs numpy only: ``read`` takes the integers from a bundle, ``graph`` makes the
ONNX graphs, and ``percoedge.export.models.mim`` has the model that is trained.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from percoedge.errors import BundleError

# What enters a convolution or a matrix product fits a byte, signed or (after the ReLU) unsigned.
ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
HIDDEN_MAX = 255
# Two products of a byte with a weight fit 16 bits, in which x86 CPUs without VNNI add them.
WEIGHT_MAX = 63
STREAM_MAX = 2047  # of the residual stream and of the logits
STREAM_EXPONENT = 6
NORM_EXPONENT = 5  # a normalised value of 1.0 is 32
EXPONENTS = range(2, 8)  # that mixed and hidden activations may have
LOGIT_EXPONENT = 4  # logits count sixteenths of an octave
SQUARE_SHIFT = 3  # the stream is shifted down by this before it is squared

# Sums of squares index the norm's table by this shift; larger sums share its last entry.
NORM_SHIFT = 5
NORM_ENTRIES = 1 << 16

IntArray = NDArray[np.int64]
EXACT_LIMIT = 1 << 24  # float32 holds every integer up to here
FREQUENCY_MAX = 1 << 16


class ExactnessError(BundleError):
    """A bound of the exact model does not hold, so its results could differ between machines."""


@dataclass(frozen=True)
class IntegerLayer:
    """y = round((x * weight + bias) / 2^shift), halves to even, per output channel.

    ``weight`` (in,out), or (C,k,k) for a depthwise layer; all int64.
    """

    weight: IntArray
    bias: IntArray
    shift: IntArray


@dataclass(frozen=True)
class IntegerMim:
    """All numbers of the exact model: embedding (K+1,C), blocks (mix, up, down), head, two tables.

    ``norm_table`` float32 of at most 11 significant bits; ``weight_table`` int64:
    frequency of a symbol by its distance from the largest logit.
    """

    embedding: IntArray
    blocks: tuple[tuple[IntegerLayer, IntegerLayer, IntegerLayer], ...]
    head: IntegerLayer
    norm_table: NDArray[np.float32]
    weight_table: IntArray


def frequency_table() -> IntArray:
    """max(1, round(2^16 * 2^(-d/16))) for d = 0..2*STREAM_MAX: the softmax in integers."""
    distance = np.arange(2 * STREAM_MAX + 1)
    octaves = distance / 2.0**LOGIT_EXPONENT
    return np.maximum(1, np.rint(FREQUENCY_MAX * 2.0**-octaves)).astype(np.int64)


def language_digest(model: IntegerMim, codebook: NDArray[np.float32]) -> str:
    """SHA-256 (hex) of what gives a stream of tokens its meaning: see ``Manifest.language``.

    Taken over the shape and the values of every array, integers as little-endian int32, the norm's
    table and the codebook (K,D) as float32; so it does not depend on how graphs are written.
    """
    digest = hashlib.sha256()
    _take(digest, *_arrays(model), (codebook, "<f4"))
    return digest.hexdigest()


def coded_language(language: str, model: IntegerMim) -> str:
    """As ``language_digest``, for tokens that ``language`` stands for: SHA-256 (hex)."""
    digest = hashlib.sha256(language.encode("ascii"))
    _take(digest, *_arrays(model))
    return digest.hexdigest()


def _arrays(model: IntegerMim) -> list[tuple[NDArray[Any], str]]:
    """Every array of a model, with the type that it is hashed in."""
    layers = [layer for block in model.blocks for layer in block] + [model.head]
    integers = [array for layer in layers for array in (layer.weight, layer.bias, layer.shift)]
    return [
        *((array, "<i4") for array in (model.embedding, *integers, model.weight_table)),
        (model.norm_table, "<f4"),
    ]


def _take(digest: hashlib._Hash, *arrays: tuple[NDArray[Any], str]) -> None:
    for array, dtype in arrays:
        digest.update(repr(array.shape).encode("ascii"))
        digest.update(np.ascontiguousarray(array, dtype).tobytes())


def prove(model: IntegerMim) -> dict[str, int]:
    """Largest magnitude that any partial sum of each layer can reach, by name.

    The bound of a layer, max over outputs of L1(weight) * max|input| + |bias|, holds for every
    order of summation. Raises ExactnessError for a bound of 2^24 or more, or a number
    outside its format.
    """
    bounds: dict[str, int] = {}
    width = model.embedding.shape[1]

    def check(name: str, value: int) -> None:
        bounds[name] = int(value)
        if value >= EXACT_LIMIT:
            raise ExactnessError(
                f"{name}: expected every partial sum below 2^24, got up to {value}; "
                "narrow the layer or lower its weights' exponent"
            )

    def check_layer(name: str, layer: IntegerLayer, largest_input: int = -ACTIVATION_MIN) -> None:
        columns = layer.weight.reshape(len(layer.weight), -1)
        depthwise = layer.weight.ndim == 3
        sums = np.abs(columns).sum(axis=1 if depthwise else 0)
        largest, shifts = np.abs(columns).max(), (layer.shift.min(), layer.shift.max())
        if largest > WEIGHT_MAX or shifts[0] < 1 or shifts[1] > 24:
            raise ExactnessError(
                f"{name}: expected weights within {WEIGHT_MAX} and shifts of 1 to 24, got "
                f"{largest} and {shifts[0]}..{shifts[1]}"
            )
        check(name, (sums * largest_input + np.abs(layer.bias)).max())

    largest_square = ((STREAM_MAX >> SQUARE_SHIFT) + 1) ** 2
    check("sum of squares", width * largest_square)
    mantissa = np.frexp(model.norm_table.astype(np.float64))[0] * 2048
    if not np.array_equal(mantissa, np.rint(mantissa)):
        raise ExactnessError("norm table: expected significands of 11 bits, got longer ones")
    check("norm product", STREAM_MAX * 2048)
    for number, (mix, up, down) in enumerate(model.blocks):
        check_layer(f"block {number} mix", mix)
        check_layer(f"block {number} up", up)
        check_layer(f"block {number} down", down, HIDDEN_MAX)
    check_layer("head", model.head)
    return bounds


def reference_weights(model: IntegerMim, tokens: IntArray, positions: IntArray) -> IntArray:
    """The exact model in numpy int64: tokens (n,h,w), flat positions (p,) -> weights (n,p,K)."""
    batch, height, width = tokens.shape
    x = model.embedding[tokens]
    for mix, up, down in model.blocks:
        mixed = _depthwise(_reference_norm(x, model), mix)
        hidden = _linear(np.clip(mixed, ACTIVATION_MIN, ACTIVATION_MAX), up)
        x = x + _linear(np.clip(hidden, 0, HIDDEN_MAX), down)
        x = np.clip(x, -STREAM_MAX, STREAM_MAX)
    chosen = x.reshape(batch, height * width, -1)[:, positions]
    logits = np.clip(_linear(_reference_norm(chosen, model), model.head), -STREAM_MAX, STREAM_MAX)
    result: IntArray = model.weight_table[logits.max(axis=-1, keepdims=True) - logits]
    return result


def _linear(x: IntArray, layer: IntegerLayer) -> IntArray:
    return _rounded(x @ layer.weight + layer.bias, layer.shift)


def _depthwise(x: IntArray, layer: IntegerLayer) -> IntArray:
    kernel = layer.weight.shape[-1]
    pad = kernel // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    total = np.zeros_like(x)
    for row in range(kernel):
        for column in range(kernel):
            window = padded[:, row : row + x.shape[1], column : column + x.shape[2]]
            total += window * layer.weight[:, row, column]
    return _rounded(total + layer.bias, layer.shift)


def _rounded(total: IntArray, shift: IntArray | int) -> IntArray:
    """total / 2^shift, to the nearest integer, halves to the even one; ``shift`` is 1 or more."""
    quotient = total >> shift
    rest = total - (quotient << shift)
    half = np.left_shift(1, shift - 1)
    up = (rest > half) | ((rest == half) & (quotient & 1 == 1))
    result: IntArray = quotient + up
    return result


def _reference_norm(x: IntArray, model: IntegerMim) -> IntArray:
    squares = (_rounded(x, SQUARE_SHIFT) ** 2).sum(axis=-1, keepdims=True)
    index = np.minimum(squares >> NORM_SHIFT, NORM_ENTRIES - 1)
    # 11 by 11 significant bits: exact in float64
    scaled = np.rint(x * model.norm_table.astype(np.float64)[index]).astype(np.int64)
    return np.clip(scaled, ACTIVATION_MIN, ACTIVATION_MAX)
