"""Adding cotangents up at the positions that a forward operator read.

ONNX Runtime's CPU provider has no float16 kernel for scattering with addition, and sums of many small
contributions lose too much in 16 bits: these sums run in float32 for tensors of half precision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.precision import widen


def add_elements(op: Builder, updates: ir.Value, indices: ir.Value, like: ir.Value, axis: int) -> ir.Value:
    """Zeros of the shape of `like`, plus `updates` at `indices` along `axis`, as `GatherElements` reads."""
    return in_full_precision(
        op,
        lambda zeros, terms: op.ScatterElements(zeros, indices, terms, axis=axis, reduction="add"),
        op.zeros_like(like),
        updates,
    )


def add_slices(op: Builder, updates: ir.Value, indices: ir.Value, zeros: ir.Value) -> ir.Value:
    """`zeros`, plus `updates` at `indices`, as `GatherND` reads."""
    return in_full_precision(
        op, lambda zeros, terms: op.ScatterND(zeros, indices, terms, reduction="add"), zeros, updates
    )


def add_in_batches(
    op: Builder, dy: ir.Value, indices: ir.Value, x: ir.Value, batch: int, slice_shape: ir.Value
) -> ir.Value:
    """Zeros of the shape of x, plus each slice of `dy` at its tuple of indices, batch by batch.

    Args:
        op: Builds the nodes.
        dy: The slices.
        indices: Tuples of indices below the batch axes, of shape [batch size, tuples, length of a tuple].
        x: The tensor that the slices were taken from.
        batch: How many leading axes count the batch.
        slice_shape: The shape of one slice.
    """
    size = batch_size(op, x, batch)
    in_batch = op.Shape(indices, end=2)
    coordinate = op.Unsqueeze(op.Range(0, op.Squeeze(size), 1), [1, 2])
    coordinates = op.Expand(coordinate, op.Concat(in_batch, [1], axis=0))
    zeros = op.Expand(op.scalar_like(0.0, x), op.Concat(size, op.Shape(x, start=batch), axis=0))
    slices = op.Reshape(dy, op.Concat(in_batch, slice_shape, axis=0), allowzero=1)
    total = add_slices(op, slices, op.Concat(coordinates, indices, axis=-1), zeros)
    return op.reshape_like(total, x)


def batch_size(op: Builder, x: ir.Value, batch: int) -> ir.Value:
    """The product of the leading `batch` dimensions, in a tensor of shape [1]."""
    dims = known.dimensions(x)
    lengths = [] if dims is None else [length for length in dims[:batch] if isinstance(length, int)]
    if dims is not None and len(lengths) == len(dims[:batch]):
        return op.constant([math.prod(lengths)], ir.DataType.INT64)
    return op.ReduceProd(op.Shape(x, end=batch), keepdims=1)


def add_flat(op: Builder, updates: ir.Value, positions: ir.Value, like: ir.Value) -> ir.Value:
    """Zeros of the shape of `like`, plus `updates` at `positions` counted through all elements in order."""
    flat = op.Reshape(positions, [-1])
    total = in_full_precision(
        op,
        lambda zeros, terms: op.ScatterElements(zeros, flat, terms, axis=0, reduction="add"),
        op.Expand(op.scalar_like(0.0, like), count(op, like)),
        op.Reshape(updates, [-1]),
    )
    return op.reshape_like(total, like)


def flat_positions(op: Builder, like: ir.Value) -> ir.Value:
    """The position of every element of `like` among all of them: 0, 1, 2, … in its shape."""
    return op.reshape_like(op.Range(0, op.Squeeze(count(op, like)), 1), like)


def count(op: Builder, value: ir.Value) -> ir.Value:
    """The number of elements of `value`, in a tensor of shape [1]."""
    shape = known.static_shape(value)
    if shape is not None:
        return op.constant([math.prod(shape)], ir.DataType.INT64)
    return op.ReduceProd(op.Shape(value), keepdims=1)


def in_full_precision(
    op: Builder, scatter: Callable[[ir.Value, ir.Value], ir.Value], data: ir.Value, updates: ir.Value
) -> ir.Value:
    """`scatter(data, updates)`, computed in float32 where the dtype is narrower."""
    return op.CastLike(scatter(widen(op, data, data), widen(op, updates, data)), data)
