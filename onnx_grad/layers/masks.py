"""Random masks out of integer arithmetic: the same for the same seed, wherever the graph runs.

ONNX's own random operators take their seed as an attribute only, and ONNX Runtime draws other numbers in each
run. Here element i of a mask is decided by the eighth power, modulo 2⁶⁴, of the odd number

    salt + (seed + seed/2³²)·SEED_STEP + i·STEP.

Each squaring of an odd number makes its upper bits depend, not linearly, on all lower ones, as in the middle
squares of Widynski's generators; three of them leave no trace of the sequence in means, in correlations at
any distance, between layers or between seeds, or in how often patterns occur (`tests/layers/test_masks.py`).
All of it is `Add` and `Mul` of int64, which wrap around in two's complement on every provider.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder

# Even, so that the numbers to be squared are odd; half of each is an odd number with well mixed bits.
_STEP = 2 * 0xBF58476D1CE4E5B9
_SEED_STEP = 2 * 0x9E3779B97F4A7C15
_SQUARINGS = 3

# Rows with fewer elements cost more than their elements do.
_SHORT = 32

Length = int | ir.Value


@dataclass(frozen=True)
class Ratio:
    """The probability of being dropped, in the two forms that a mask needs.

    Attributes:
        threshold: The scalar int64 that as great a part of all int64 are below.
        gain: The scalar 1/(1 − ratio), in the dtype of what is masked.
    """

    threshold: ir.Value
    gain: ir.Value

    @classmethod
    def of_number(cls, op: Builder, ratio: float, x: ir.Value) -> Ratio:
        """A ratio in [0, 1] that is known; everything is dropped at 1."""
        threshold = min(int(ratio * 2.0**64) - 2**63, 2**63 - 1)
        gain = 1.0 / (1.0 - ratio) if ratio < 1.0 else 0.0
        return cls(op.constant(threshold, ir.DataType.INT64), op.scalar_like(gain, x))

    @classmethod
    def of_value(cls, op: Builder, ratio: ir.Value, x: ir.Value) -> Ratio:
        """A ratio in [0, 1) that is computed when the graph runs."""
        wide = op.Cast(ratio, to=ir.DataType.DOUBLE)
        threshold = op.Cast(wide * 2.0**64 - 2.0**63, to=ir.DataType.INT64)
        return cls(threshold, op.CastLike(op.Reciprocal(1.0 - wide), x))


def kept(op: Builder, x: ir.Value, seed: ir.Value, layer: str, ratio: Ratio) -> ir.Value:
    """Which elements of `x` are kept: booleans, in two axes that together have as many elements as `x`.

    Args:
        op: Builds the nodes.
        x: What is masked, of any shape.
        seed: A scalar int64.
        layer: What tells this mask from others of the same seed.
        ratio: The probability of being dropped.
    """
    rows, columns = _lengths(op, x)
    row = op.Range(0, rows, 1)
    if isinstance(columns, int):
        row = op.Mul(row, _constant(op, columns * _STEP))
    else:
        row = op.Mul(op.Mul(row, columns), _constant(op, _STEP))
    start = op.Add(op.Mul(_folded(op, seed), _constant(op, _SEED_STEP)), _constant(op, _salt(layer)))
    column = op.Mul(op.Range(0, columns, 1), _constant(op, _STEP))
    state = op.Add(op.Unsqueeze(op.Add(row, start), [1]), column)
    for _ in range(_SQUARINGS):
        state = op.Mul(state, state)
    return op.GreaterOrEqual(state, ratio.threshold)


def _folded(op: Builder, seed: ir.Value) -> ir.Value:
    """The seed with its upper half added to the lower: powers wrap around where only upper bits differ."""
    # A vector, as numpy warns of scalars that wrap around.
    vector = op.Reshape(seed, [1])
    return op.Add(vector, op.Div(vector, _constant(op, 2**32)))


def shaped_like(op: Builder, mask: ir.Value, x: ir.Value) -> ir.Value:
    """What was made of the two axes of a mask, in the shape of `x`."""
    return mask if known.rank(x) == 2 else op.reshape_like(mask, x)


def _lengths(op: Builder, x: ir.Value) -> tuple[Length, Length]:
    """How many elements the first axes of `x` have, and how many the rest.

    Two axes are counted faster than one: adding a row to a column takes a single pass over all elements, as
    long as the rows are not short.
    """
    rank = known.rank(x)
    if rank is None:
        return _length(op, x, 0, 1), _length(op, x, 1, None)
    axis = (rank + 1) // 2 if rank > 1 else 0
    while axis > 1 and (_static_length(x, axis, rank) or _SHORT) < _SHORT:
        axis -= 1
    return _length(op, x, 0, axis), _length(op, x, axis, rank)


def _length(op: Builder, x: ir.Value, start: int, end: int | None) -> Length:
    static = _static_length(x, start, end)
    return op.ReduceProd(op.Shape(x, start=start, end=end), keepdims=0) if static is None else static


def _static_length(x: ir.Value, start: int, end: int | None) -> int | None:
    """How many elements these axes have, where all of them are static."""
    dims = known.dimensions(x)
    if dims is None:
        return None
    sizes = [size for size in dims[start:end] if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(dims[start:end]) else None


def _salt(layer: str) -> int:
    """An odd number of 64 bits."""
    return int.from_bytes(hashlib.sha256(layer.encode()).digest()[:8], "little") | 1


def _constant(op: Builder, number: int) -> ir.Value:
    """`number` modulo 2⁶⁴ as an int64."""
    return op.constant((number + 2**63) % 2**64 - 2**63, ir.DataType.INT64)
