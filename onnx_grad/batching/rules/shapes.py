"""Shapes: read, and given to the elements of each example."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import behind_batch, example_shape, shifted, shifted_axes
from onnx_grad.batching.emission import attributes
from onnx_grad.batching.extents import concatenated, extents, product, reshape
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching, runs_in_scan
from onnx_grad.builder import Builder


@batching("Shape", shape_only=[0])
def shape(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The shape of one example, which all share."""
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
    rank = x.rank(0)
    if rank is None:
        # From the front at least 1, from the end no further than behind the batch axis.
        own = op.Shape(x[0], start=1)
        bound = np.iinfo(np.int64).max if end is None else end
        return own if (start, end) == (0, None) else op.Slice(own, [start], [bound])
    axes = range(rank)[start:end]
    return concatenated(op, [part for a in axes for part in extents(x[0], a + 1, a + 2)])


@batching("Size", shape_only=[0])
def size(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The number of elements of one example."""
    return op.ReduceProd(example_shape(op, x[0]), keepdims=0)


@batching("EyeLike", shape_only=[0])
def eye_like(op: Builder, node: ir.Node, x: Operands) -> Result:
    """An identity matrix of the shape of one example."""
    own = attributes(node)
    example = known.operand(node, 0)
    like = op.ConstantOfShape(example_shape(op, x[0]))
    if "dtype" not in own and example.dtype != like.dtype:
        like = op.CastLike(like, x[0])
    return op.EyeLike(like, **own)


@batching("Reshape", sizes=[1])
def reshape_(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The batch axis stays in front: a 0 copies it, where a 0 does not stand for no elements."""
    if node.attributes.get_int("allowzero", 0):
        static = known.constant_integers(x[1])
        if static is not None and 0 not in static and isinstance(x.batch.size, int):
            return op.Reshape(x[0], [x.batch.size, *static])
        target = op.Concat(x.batch.length(op), x[1], axis=0)
        return op.Reshape(x[0], target, allowzero=1)
    static = known.constant_integers(x[1])
    target = (
        op.constant([0, *static], ir.DataType.INT64) if static is not None else op.Concat([0], x[1], axis=0)
    )
    return op.Reshape(x[0], target)


@batching("Expand", sizes=[1])
def expand(op: Builder, node: ir.Node, x: Operands) -> Result:
    """A shape is aligned with that of the example at its end, so that it serves the batch as well."""
    own = x.rank(0)
    lengths = known.static_shape(x[1])
    if own is not None and lengths is not None:
        return op.Expand(behind_batch(op, x[0], lengths[0] - own), x[1])
    length = op.Size(x[1])
    rank = op.Sub(op.Size(op.Shape(x[0])), 1)
    added = op.Max(op.Sub(length, rank), op.constant(0, ir.DataType.INT64))
    return op.Expand(op.Unsqueeze(x[0], op.Range(1, op.Add(added, 1), 1)), x[1])


@batching("Flatten")
def flatten(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The axes of an example as two."""
    axis = node.attributes.get_int("axis", 1)
    before = extents(x[0], 1, shifted(axis))
    return reshape(op, x[0], [x.batch.size, product(before), product(extents(x[0], shifted(axis)))])


@batching("Squeeze", sizes=[1])
def squeeze(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Without axes: all of length 1, save that of the batch."""
    axes = x.get(1)
    if axes is not None and _length(axes) != 0:
        return op.Squeeze(x[0], shifted_axes(op, axes))
    dims = known.dimensions(known.operand(node, 0))
    if dims is not None and all(isinstance(d, int) for d in dims):
        single = [axis + 1 for axis, d in enumerate(dims) if d == 1]
        return op.Squeeze(x[0], single) if single else op.Identity(x[0])
    own = example_shape(op, x[0])
    kept = op.Compress(own, op.Not(op.Equal(own, 1)), axis=0)
    return op.Reshape(x[0], op.Concat(x.batch.length(op), kept, axis=0), allowzero=1)


def _length(axes: ir.Value) -> int | None:
    static = known.static_shape(axes)
    return static[0] if static else None


@batching("Unsqueeze", sizes=[1])
def unsqueeze(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Axes of length 1 behind the batch axis."""
    return op.Unsqueeze(x[0], shifted_axes(op, x[1]))


runs_in_scan("Range", sizes=[0, 1, 2])
runs_in_scan("ConstantOfShape", "BlackmanWindow", "HammingWindow", "HannWindow", sizes=[0])
runs_in_scan("MelWeightMatrix", sizes=[0, 1])
