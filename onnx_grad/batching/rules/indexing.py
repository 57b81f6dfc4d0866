"""Operators that read and write at indices."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import flat, shifted
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import Part, extents, product, reshape
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching, refused
from onnx_grad.builder import Builder


@batching("Gather")
def gather(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The slices at indices along an axis."""
    axis, rank = node.attributes.get_int("axis", 0), x.rank(0)
    if rank is not None:
        axis %= rank
    if not x.is_batched(1):
        return op.Gather(x[0], x[1], axis=shifted(axis))
    if x.is_batched(0):
        return _gather_from_own(op, x, axis)
    gathered = op.Gather(x[0], x[1], axis=axis)
    if axis == 0:
        return gathered
    # The batch axis is where the axis was, before the other axes of the indices.
    before, after = extents(x[0], 0, axis), _behind(x[0], axis)
    length, indices = extents(x[1], 0, 1), extents(x[1], 1)
    blocks = reshape(op, gathered, [product(before), *length, product([*indices, *after])])
    return reshape(op, op.Transpose(blocks, perm=[1, 0, 2]), [*length, *before, *indices, *after])


def _gather_from_own(op: Builder, x: Operands, axis: int) -> ir.Value:
    """Each example is met with its own indices: by `GatherND`, along the first axis of the example."""
    if axis == 0:
        return op.GatherND(x[0], op.Unsqueeze(x[1], [-1]), batch_dims=1)
    own = shifted(axis)
    length, indices = extents(x[0], 0, 1), extents(x[1], 1)
    before, after = extents(x[0], 1, own), _behind(x[0], own)
    along = extents(x[0], own, own + 1 or None)
    blocks = reshape(op, x[0], [*length, product(before), product(along), product(after)])
    places = reshape(op, x[1], [*length, product(indices), 1])
    gathered = op.GatherND(op.Transpose(blocks, perm=[0, 2, 1, 3]), places, batch_dims=1)
    return reshape(op, op.Transpose(gathered, perm=[0, 2, 1, 3]), [*length, *before, *indices, *after])


def _behind(value: ir.Value, axis: int) -> list[Part]:
    """The dimensions behind an axis."""
    return [] if axis == -1 else extents(value, axis + 1)


@batching("GatherElements")
def gather_elements(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Elements at indices along an axis."""
    return again(op, node, x.repeated(0), x.repeated(1), axis=shifted(node.attributes.get_int("axis", 0)))


@batching("GatherND")
def gather_nd(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The slices at index vectors; each example is met with its own."""
    dims = node.attributes.get_int("batch_dims", 0)
    if dims == 0 and not x.is_batched(0):
        return op.GatherND(x[0], x[1])
    return op.GatherND(x.repeated(0), x.repeated(1), batch_dims=dims + 1)


@batching("ScatterElements")
def scatter_elements(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Updates at indices along an axis."""
    operands = [x.repeated(index) for index in range(3)]
    return again(op, node, *operands, axis=shifted(node.attributes.get_int("axis", 0)))


@batching("ScatterND")
def scatter_nd(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Updates at index vectors, which begin with the number of the example."""
    data, indices, updates = (x.repeated(index) for index in range(3))
    return again(op, node, data, _numbered(op, x, indices), updates)


def _numbered(op: Builder, x: Operands, indices: ir.Value) -> ir.Value:
    """Index vectors [B, …, k] with the number of the example in front of each: [B, …, k + 1]."""
    count = op.Squeeze(x.batch.length(op), [0])
    numbers = op.Range(0, count, 1)
    target = op.Concat(op.Shape(indices, start=0, end=-1), [1], axis=0)
    rank = known.rank(indices)
    if rank is not None:
        column = op.Unsqueeze(numbers, list(range(1, rank)))
    else:
        column = op.Unsqueeze(numbers, op.Range(1, op.Size(op.Shape(indices)), 1))
    return op.Concat(op.Expand(column, target), indices, axis=-1)


@batching("OneHot", sizes=[1])
def one_hot(op: Builder, node: ir.Node, x: Operands) -> Result:
    """A new axis with one value where the index is, and another elsewhere."""
    axis = node.attributes.get_int("axis", -1)
    if not x.is_batched(2):
        return op.OneHot(x[0], x[1], x[2], axis=shifted(axis))
    indices = x.repeated(0)
    hit = op.Cast(
        op.OneHot(indices, x[1], op.constant([0, 1], ir.DataType.FLOAT), axis=shifted(axis)),
        to=ir.DataType.BOOL,
    )
    rank = known.rank(hit)
    axes = range(1, rank) if rank is not None else op.Range(1, op.Size(op.Shape(hit)), 1)
    off, on = (op.Unsqueeze(op.Gather(x[2], op.constant(i, ir.DataType.INT64), axis=1), axes) for i in (0, 1))
    return op.Where(hit, on, off)


@batching("Compress", sizes=[1])
def compress(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The slices along an axis, or the elements, where a condition that all examples share holds."""
    axis = node.attributes.get_int("axis", None)
    if axis is None:
        return op.Compress(flat(op, x[0]), x[1], axis=1)
    return op.Compress(x[0], x[1], axis=shifted(axis))


refused(
    "NonZero",
    "Unique",
    "NonMaxSuppression",
    "StringSplit",
    "StringNormalizer",
    reason="the shape of its result depends on its content, and differs between the examples; apply it to "
    "what is not mapped, or outside of the model",
)
refused(
    "ImageDecoder",
    reason="the size of its result depends on the image; decode outside of the model",
)
