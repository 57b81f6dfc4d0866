"""The axes of a batch: channels on axis 1, spatial axes after it, and the size of trailing axes."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder


def sum_by_channel(op: Builder, value: ir.Value, x: ir.Value) -> ir.Value:
    """The sum of `value`, of the shape of `x`, over all axes but axis 1: a vector.

    Without an axis 1 there is a single channel. Two sums are faster than one over axes on both sides, unless
    the batch is a single image.
    """
    rank = known.rank(x)
    if rank is None:
        value = op.ReduceSum(value, spatial_axes(op, x), keepdims=0, noop_with_empty_axes=1)
        return op.Reshape(op.ReduceSum(value, [0], keepdims=0), [-1])
    if rank > 2 and has_one_image(x):
        return op.ReduceSum(value, [0, *range(2, rank)], keepdims=0)
    if rank > 2:
        value = op.ReduceSum(value, spatial_axes(op, x), keepdims=0)
    return op.ReduceSum(value, [0], keepdims=int(rank == 1))


def has_one_image(x: ir.Value) -> bool:
    """Whether the batch is known to be a single image."""
    dims = known.dimensions(x)
    return dims is not None and len(dims) > 0 and dims[0] == 1


def along_channels(op: Builder, vector: ir.Value, x: ir.Value) -> ir.Value:
    """`vector` with the axes of `x` after axis 1 added, each of length 1."""
    rank = known.rank(x)
    if rank is None:
        return op.Unsqueeze(vector, op.Range(1, op.Size(op.Shape(x)) - 1, 1))
    return vector if rank <= 2 else op.Unsqueeze(vector, [*range(1, rank - 1)])


def spatial_axes(op: Builder, x: ir.Value) -> ir.Value | list[int]:
    """The axes after axis 1."""
    rank = known.rank(x)
    return op.Range(2, op.Size(op.Shape(x)), 1) if rank is None else [*range(2, rank)]


def trailing_count(op: Builder, x: ir.Value, axis: int, like: ir.Value) -> float | ir.Value:
    """How many elements `x` has over the axes from `axis` on, a number or a scalar of the dtype of `like`."""
    dims = known.dimensions(x)
    lengths = None if dims is None else [d for d in dims[axis:] if isinstance(d, int)]
    if dims is not None and lengths is not None and len(lengths) == len(dims[axis:]):
        return float(math.prod(lengths))
    return op.CastLike(op.ReduceProd(op.Shape(x, start=axis), keepdims=0), like)
