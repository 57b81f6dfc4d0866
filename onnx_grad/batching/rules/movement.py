"""Operators that move elements along axes."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import shifted, shifted_axes, transpose
from onnx_grad.batching.emission import again, attributes
from onnx_grad.batching.extents import extents, product, reshape
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import folded
from onnx_grad.builder import Builder


@batching("Transpose")
def transpose_(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The axes of each example in another order: in reverse, where none is given."""
    order, rank = node.attributes.get_ints("perm", None), x.rank(0)
    if order is None and rank is not None:
        order = range(rank)[::-1]
    if order is not None:
        return transpose(op, x[0], [0, *(axis + 1 for axis in order)])
    reversed_all = op.Transpose(x[0])
    # The batch axis is the last one now.
    before, last = extents(reversed_all, 0, -1), extents(reversed_all, -1)
    matrices = reshape(op, reversed_all, [product(before), *last])
    return reshape(op, op.Transpose(matrices, perm=[1, 0]), [*last, *before])


@batching("Concat")
def concat(op: Builder, node: ir.Node, x: Operands) -> Result:
    """What all examples share is repeated for each."""
    pieces = [x.repeated(index) for index in range(len(x))]
    return op.Concat(*pieces, axis=shifted(node.attributes["axis"].as_int()))


@batching("Split", sizes=[1])
def split(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Pieces along an axis."""
    own = attributes(node) | {"axis": shifted(node.attributes.get_int("axis", 0))}
    results: tuple[ir.Value, ...] = op.node("Split", x[0], x.get(1), outputs=len(node.outputs), **own)
    return results


@batching("Slice", sizes=[1, 2, 3, 4])
def slice_(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Along the given axes, or along the first ones."""
    axes = x.get(3)
    if axes is None:
        shape = known.static_shape(x[1])
        if shape:
            axes = op.constant(range(1, shape[0] + 1), ir.DataType.INT64)
        else:
            axes = op.Range(1, op.Add(op.Size(x[1]), 1), 1)
        axes = op.CastLike(axes, x[1])
    else:
        axes = shifted_axes(op, axes)
    return op.Slice(x[0], x[1], x[2], axes, x.get(4))


@batching("Pad", sizes=[1, 3])
def pad(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Nothing is added along the batch axis."""
    if x.is_batched(2):
        return None
    axes = x.get(3)
    if axes is not None:
        return again(op, node, x[0], x[1], x.get(2), shifted_axes(op, axes))
    pads = known.constant_integers(x[1])
    if pads is not None:
        half = len(pads) // 2
        return again(op, node, x[0], [0, *pads[:half], 0, *pads[half:]], x.get(2))
    ends = op.Concat(op.constant([[0], [0]], ir.DataType.INT64), op.Reshape(x[1], [2, -1]), axis=1)
    return again(op, node, x[0], op.Reshape(ends, [-1]), x.get(2))


@batching("Tile", sizes=[1])
def tile(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The batch is not repeated."""
    repeats = known.constant_integers(x[1])
    if repeats is not None:
        return op.Tile(x[0], [1, *repeats])
    return op.Tile(x[0], op.Concat([1], x[1], axis=0))


@batching("Trilu")
def trilu(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Triangles of the matrices in the last two axes."""
    return again(op, node, *x.all()) if x.only(0) else None


@batching("CenterCropPad", sizes=[1])
def center_crop_pad(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Along the given axes, or along all save that of the batch."""
    axes = node.attributes.get_ints("axes", None)
    if axes is not None:
        return again(op, node, x[0], x[1], axes=[shifted(axis) for axis in axes])
    target = op.Concat(op.CastLike(x.batch.length(op), x[1]), x[1], axis=0)
    return again(op, node, x[0], target)


@batching("ReverseSequence")
def reverse_sequence(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The first elements along the time axis in reverse, as many as a length for each sequence says."""
    time = node.attributes.get_int("time_axis", 0)
    return folded(op, node, x, {0: 1 - time, 1: 0}, [1 - time])
