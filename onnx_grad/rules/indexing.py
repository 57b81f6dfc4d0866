"""Operators that pick elements by index: Gather, GatherElements, GatherND, TopK, Compress, Unique, OneHot."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, derivative_is_zero, gradient
from onnx_grad.rules.accumulate import add_elements, add_flat, add_in_batches, add_slices, batch_size
from onnx_grad.rules.borders import with_borders
from onnx_grad.rules.precision import widen

derivative_is_zero("NonZero", reason="the output is an index")
derivative_is_zero("NonMaxSuppression", reason="the output is an index")


@gradient("Gather")
def gather(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the slices of x at indices along an axis: dx = zeros, plus each slice of dy at its index."""
    x, indices = known.operand(node, 0), known.operand(node, 1)
    axis = _counted_from_front(node.attributes.get_int("axis", 0), x)
    content, rank = known.constant_integers(indices), known.rank(indices)
    if content is not None and len(content) == 1 and rank in (0, 1):
        slices = op.Unsqueeze(dy, [axis]) if rank == 0 else dy
        return _one_slice(op, slices, x, axis, content[0])
    if content is not None and rank == 1 and (inverse := _inverse_permutation(content, x, axis)):
        return op.Gather(dy, inverse, axis=axis)
    return _add_along(op, dy, _as_int64(op, indices), x, axis)


@gradient("GatherElements")
def gather_elements(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the elements of x at indices along an axis: dx = zeros, plus each element of dy at its index."""
    x, indices = known.operand(node, 0), known.operand(node, 1)
    return add_elements(op, dy, indices, x, node.attributes.get_int("axis", 0))


@gradient("GatherND")
def gather_nd(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the slices of x at tuples of indices: dx = zeros, plus each slice of dy at its tuple."""
    x, indices = known.operand(node, 0), known.operand(node, 1)
    batch = node.attributes.get_int("batch_dims", 0)
    if batch == 0:
        return add_slices(op, dy, indices, op.zeros_like(x))
    tuples = op.ReduceProd(op.Shape(indices, start=batch, end=-1), keepdims=1)
    length = op.Shape(indices, start=-1)
    shape = op.Concat(batch_size(op, x, batch), tuples, length, axis=0)
    slice_shape = op.Slice(op.Shape(x), length + batch, [2**62])
    return add_in_batches(op, dy, op.Reshape(indices, shape, allowzero=1), x, batch, slice_shape)


@gradient("TopK", convention="of equal elements, those that the operator chose")
def top_k(op: Builder, node: ir.Node, dvalues: ir.Value) -> InputCotangent:
    """values, indices = the k largest or smallest of x: dx = dvalues at the indices, zero elsewhere."""
    x, indices = known.operand(node, 0), node.outputs[1]
    axis = node.attributes.get_int("axis", -1)
    return op.ScatterElements(op.zeros_like(x), indices, dvalues, axis=axis)


@gradient("Compress")
def compress(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the slices of x where a condition holds: dx = dy at these, zero elsewhere."""
    x, condition = known.operand(node, 0), known.operand(node, 1)
    indices = op.Reshape(op.NonZero(condition), [-1])
    if "axis" not in node.attributes:
        return add_flat(op, dy, indices, x)
    return _add_along(op, dy, indices, x, _counted_from_front(node.attributes.get_int("axis"), x))


@gradient("Unique", convention="equal elements share the cotangent evenly")
def unique(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the distinct elements, or slices, of x: dx = dy where each went, shared evenly by equal ones."""
    x = known.operand(node, 0)
    axis = node.attributes.get_int("axis", None)
    is_sorted = node.attributes.get_int("sorted", 1)
    _, _, inverse, counts = op.Unique(x, axis=axis, sorted=is_sorted, outputs=4)
    wide_dy = widen(op, dy, x)
    counts = op.CastLike(counts, wide_dy)
    if axis is None:
        return op.reshape_like(op.CastLike(op.Gather(wide_dy / counts, inverse), x), x)
    slices = op.Gather(wide_dy, inverse, axis=axis)
    return op.CastLike(slices / _along(op, op.Gather(counts, inverse), x, axis), x)


@gradient("OneHot", frozen=(0, 1))
def one_hot(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = off + mask·(on − off): d off = Σ dy·(1 − mask), d on = Σ dy·mask."""
    indices, depth, values = (known.operand(node, index) for index in range(3))
    bounds = op.CastLike(op.constant([0.0, 1.0], ir.DataType.FLOAT), values)
    mask = op.OneHot(indices, depth, bounds, axis=node.attributes.get_int("axis", -1))
    totals = [op.ReduceSum(dy * part, keepdims=0) for part in (1.0 - mask, mask)]
    return None, None, op.Concat(*(op.Unsqueeze(total, [0]) for total in totals), axis=0)


def _as_int64(op: Builder, indices: ir.Value) -> ir.Value:
    """Indices as `ScatterND` takes them; `Gather` takes 32-bit ones too."""
    return indices if indices.dtype == ir.DataType.INT64 else op.Cast(indices, to=ir.DataType.INT64)


def _counted_from_front(axis: int, x: ir.Value) -> int:
    """`axis` without its sign, where the rank is known."""
    rank = known.rank(x)
    return axis if rank is None else axis % max(rank, 1)


def _inverse_permutation(indices: tuple[int, ...], x: ir.Value, axis: int) -> list[int] | None:
    """The inverse of the indices along `axis` if each position occurs exactly once, else `None`."""
    dims = known.dimensions(x)
    length = None if dims is None else dims[axis]
    if not isinstance(length, int) or length != len(indices):
        return None
    positions = [index % length for index in indices]
    inverse = sorted(range(length), key=positions.__getitem__)
    return inverse if len(set(positions)) == length else None


def _one_slice(op: Builder, dy: ir.Value, x: ir.Value, axis: int, index: int) -> ir.Value:
    """Zeros of the shape of x with the slice `dy` at `index` of `axis`."""
    dims = known.dimensions(x)
    length = None if dims is None else dims[axis]
    pads: ir.Value | list[int]
    if isinstance(length, int):
        pads = [index % length, length - 1 - index % length]
    else:
        # The last axis has no end: -1 + 1 would be the first.
        count = op.Shape(x, start=axis, end=axis + 1 or None)
        if index < 0:
            pads = op.Concat(count + index, [-1 - index], axis=0)
        else:
            pads = op.Concat([index], count - (index + 1), axis=0)
    return dy if pads == [0, 0] else with_borders(op, dy, pads, [axis], known.rank(x))


def _add_along(op: Builder, dy: ir.Value, indices: ir.Value, x: ir.Value, axis: int) -> ir.Value:
    """Zeros of the shape of x, plus each slice of `dy` at its index along `axis`."""
    if 0 in (known.static_shape(x) or ()):
        # ONNX Runtime removes an Expand from length 1 to length 0.
        return op.zeros_like(x)
    if axis == 0:
        return add_slices(op, dy, op.Unsqueeze(indices, [-1]), op.zeros_like(x))
    # Slices of the last axis are single elements; -1 + 1 would be the first axis.
    slice_shape = op.constant([], ir.DataType.INT64) if axis == -1 else op.Shape(x, start=axis + 1)
    column = op.Reshape(indices, [1, -1, 1])
    columns = op.Expand(column, op.Concat(batch_size(op, x, axis), [1, 1], axis=0))
    return add_in_batches(op, dy, columns, x, axis, slice_shape)


def _along(op: Builder, vector: ir.Value, x: ir.Value, axis: int) -> ir.Value:
    """A vector in a shape that broadcasts along `axis` of x."""
    ones = op.Expand([1], op.Shape(op.Shape(x)))
    shape = op.ScatterElements(ones, [axis], op.Shape(vector), axis=0)
    return op.Reshape(vector, shape, allowzero=1)
