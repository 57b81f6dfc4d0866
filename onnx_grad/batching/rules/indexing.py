"""Operators that read and write at indices."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import flat, shifted, to_front
from onnx_grad.batching.emission import again
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching, refused
from onnx_grad.builder import Builder


@batching("Gather")
def gather(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The slices at indices along an axis."""
    axis = node.attributes.get_int("axis", 0)
    if not x.is_batched(1):
        return op.Gather(x[0], x[1], axis=shifted(axis))
    if not x.is_batched(0):
        return _gather_from_shared(op, x, axis)
    rank, count = x.rank(0), x.rank(1)
    if rank is None or count is None:
        return None
    axis %= rank
    # GatherND meets each example with its own indices, along the first axis of the example.
    data = _with_first(op, x[0], axis)
    gathered = op.GatherND(data, op.Unsqueeze(x[1], [-1]), batch_dims=1)
    if axis == 0:
        return gathered
    before = range(1 + count, 1 + count + axis)
    order = [0, *before, *range(1, 1 + count), *range(1 + count + axis, rank + count)]
    return op.Transpose(gathered, perm=order)


def _with_first(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """A batch with `axis` of each example moved to its front; the rank is known."""
    if axis == 0:
        return value
    rank = known.rank(value) or 0
    own = axis + 1
    return op.Transpose(value, perm=[0, own, *(i for i in range(1, rank) if i != own)])


def _gather_from_shared(op: Builder, x: Operands, axis: int) -> Result:
    """One table that all examples read."""
    if axis == 0 or x.rank(0) == 1:
        return op.Gather(x[0], x[1], axis=axis)
    rank = x.rank(0)
    if rank is not None:
        axis %= rank
    if axis >= 0:
        gathered = op.Gather(x[0], x[1], axis=axis)
        indices, dims = known.dimensions(x[1]), known.dimensions(x[0])
        if indices is not None and dims is not None:
            gathered.shape = ir.Shape([*dims[:axis], *indices, *dims[axis + 1 :]])
        return to_front(op, gathered, axis)
    return op.Gather(to_front(op, x[0], axis), x[1], axis=0) if axis == -1 and x.rank(1) == 0 else None


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
