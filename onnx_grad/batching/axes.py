"""Axes behind the batch axis, aligned, moved, merged and split; at run time where ranks are unknown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.extents import Extent, Part, concatenated, extents, product, reshape
from onnx_grad.batching.operands import Operands
from onnx_grad.builder import Builder


def shifted(axis: int) -> int:
    """An axis of an example, in the batch."""
    return axis + 1 if axis >= 0 else axis


def shifted_axes(op: Builder, axes: ir.Value) -> ir.Value:
    """A tensor of axes of an example, in the batch; it keeps its rank."""
    content = known.constant(axes)
    if content is not None and axes.dtype is not None:
        numbers = content.astype(np.int64)
        return op.constant(np.where(numbers >= 0, numbers + 1, numbers), axes.dtype)
    result = op.Add(axes, op.CastLike(op.GreaterOrEqual(axes, 0), axes))
    result.shape = axes.shape
    return result


def aligned(op: Builder, node: ir.Node, x: Operands, indices: Sequence[int] | None = None) -> list[ir.Value]:
    """Operands that broadcast with one another, the batched ones with axes of length 1 behind the batch axis.

    So they all broadcast as those of an example do.

    Args:
        op: Builds the graph.
        node: The node for one example.
        x: Its operands.
        indices: Which of them; all when left out. None of them may be left out of the node.
    """
    positions = list(range(len(x)) if indices is None else indices)
    return [
        _aligned(op, node, x, index, [other for other in positions if other != index])
        if x.is_batched(index)
        else x[index]
        for index in positions
    ]


def _aligned(op: Builder, node: ir.Node, x: Operands, index: int, others: Sequence[int]) -> ir.Value:
    value, rank = x[index], x.rank(index)
    ranks = [x.rank(other) for other in others]
    examples = [known.operand(node, i) for i in (index, *others)]
    if not others or all(known.same_shape(examples[0], other) for other in examples[1:]):
        return value
    if rank is not None and None not in ranks:
        return behind_batch(op, value, max([rank, *(r for r in ranks if r is not None)]) - rank)
    if all(r == 0 for r in ranks):
        return value
    return aligned_to(op, x, index, op.Max(*(rank_at_run_time(op, x, i) for i in (index, *others))))


def rank_of(op: Builder, x: Operands, index: int) -> int | ir.Value:
    """The rank of operand `index` of one example: a scalar that is read when the graph runs if need be."""
    rank = x.rank(index)
    return rank_at_run_time(op, x, index) if rank is None else rank


def rank_at_run_time(op: Builder, x: Operands, index: int) -> ir.Value:
    """The rank of operand `index` of one example, as an int64 scalar."""
    rank = x.rank(index)
    if rank is not None:
        return op.constant(rank, ir.DataType.INT64)
    total = op.Size(op.Shape(x[index]))
    return op.Sub(total, 1) if x.is_batched(index) else total


def aligned_to(op: Builder, x: Operands, index: int, rank: int | ir.Value) -> ir.Value:
    """Operand `index`; a batched one with axes of length 1 behind the batch axis.

    Args:
        op: Builds the graph.
        x: The operands.
        index: Which.
        rank: The rank of what it broadcasts against, without the batch axis; a scalar where it is read when
            the graph runs.
    """
    own = x.rank(index)
    if not x.is_batched(index) or own == rank:
        return x[index]
    if isinstance(rank, int) and own is not None:
        return behind_batch(op, x[index], rank - own)
    highest = op.constant(rank, ir.DataType.INT64) if isinstance(rank, int) else rank
    added = op.Sub(highest, rank_at_run_time(op, x, index))
    return op.Unsqueeze(x[index], op.Range(1, op.Add(added, 1), 1))


def behind_batch(op: Builder, value: ir.Value, count: int) -> ir.Value:
    """A batched value with `count` axes of length 1 behind the batch axis."""
    if count <= 0:
        return value
    result = op.Unsqueeze(value, list(range(1, 1 + count)))
    dims = known.dimensions(value)
    if dims is not None:
        result.shape = ir.Shape([dims[0], *[1] * count, *dims[1:]])
    return result


def transpose(op: Builder, value: ir.Value, order: Sequence[int]) -> ir.Value:
    """The axes of `value` in another order."""
    result = op.Transpose(value, perm=list(order))
    dims = known.dimensions(value)
    if dims is not None:
        result.shape = ir.Shape([dims[axis] for axis in order])
    return result


def to_front(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """`value` with `axis` moved to the front."""
    rank = known.rank(value)
    if axis == 0:
        return value
    if rank is not None:
        axis %= rank
        return transpose(op, value, [axis, *(i for i in range(rank) if i != axis)])
    before, own, after = _around(value, axis)
    matrices = reshape(op, value, [product(before), product(own), product(after)])
    return reshape(op, op.Transpose(matrices, perm=[1, 0, 2]), [*own, *before, *after])


def from_front(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """`value` with its first axis moved to where it is `axis`."""
    rank = known.rank(value)
    if axis == 0:
        return value
    if rank is not None:
        order = list(range(1, rank))
        order.insert(axis % rank, 0)
        return transpose(op, value, order)
    first: list[Part] = [Extent(value, 0, 1)]
    middle = axis + 1 if axis >= 0 else (axis + 1 or None)
    before: list[Part] = [Extent(value, 1, middle)]
    after: list[Part] = [] if middle is None else [Extent(value, middle, None)]
    matrices = reshape(op, value, [product(first), product(before), product(after)])
    return reshape(op, op.Transpose(matrices, perm=[1, 0, 2]), [*before, *first, *after])


def _around(value: ir.Value, axis: int) -> tuple[list[Part], list[Part], list[Part]]:
    """The dimensions before an axis of a value of unknown rank, of the axis, and after it."""
    after = axis + 1 if axis != -1 else None
    rest: list[Part] = [] if after is None else [Extent(value, after, None)]
    return [Extent(value, 0, axis)], [Extent(value, axis, after)], rest


def merged(op: Builder, value: ir.Value, axis: int = 0, count: int = 2) -> ir.Value:
    """`value` with `count` axes from `axis` on, which it certainly has, as one."""
    together = product([part for i in range(axis, axis + count) for part in extents(value, i, i + 1)])
    return reshape(op, value, [*extents(value, 0, axis), together, *extents(value, axis + count)])


def split(op: Builder, value: ir.Value, lengths: Sequence[Part], axis: int = 0) -> ir.Value:
    """`value` with `axis` split into several of the given lengths."""
    return reshape(op, value, [*extents(value, 0, axis), *lengths, *extents(value, axis + 1)])


def flat(op: Builder, value: ir.Value) -> ir.Value:
    """A batch of the elements of each example as a vector."""
    result = op.Flatten(value, axis=1)
    dims = known.dimensions(value)
    if dims is not None:
        sizes = [d for d in dims[1:] if isinstance(d, int)]
        known_size = len(sizes) == len(dims) - 1
        result.shape = ir.Shape([dims[0], int(np.prod(sizes, dtype=int)) if known_size else None])
    return result


def example_shape(op: Builder, value: ir.Value) -> ir.Value:
    """The shape of one example of a batched value."""
    return concatenated(op, extents(value, 1))
