"""Reductions and running sums: along the same axes, one further where they are counted from the front."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import flat, shifted, shifted_axes
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import concatenated, reshape
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.builder import Builder

_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
    "ReduceSumSquare"
)


@batching(*_REDUCTIONS.split(), sizes=[1])
def reduction(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = Σ x and the like. Without axes it is over all of them, save that of the batch."""
    axes = x.get(1)
    does_nothing = node.attributes.get_int("noop_with_empty_axes", 0)
    content = known.constant_integers(axes)
    length = 0 if axes is None else _length(axes)
    if content == () or axes is None:
        length = 0
    if length:
        return again(op, node, x[0], shifted_axes(op, x[1]))
    if does_nothing:
        return again(op, node, x[0], None if axes is None else shifted_axes(op, axes))
    return _over_all(op, node, x) if axes is None or length == 0 else _over_some_or_all(op, node, x)


def _over_all(op: Builder, node: ir.Node, x: Operands) -> Result:
    (result,) = again(op, node, flat(op, x[0]), [1], keepdims=0)
    if not node.attributes.get_int("keepdims", 1):
        return result
    rank = x.rank(0)
    if rank is not None:
        return reshape(op, result, [x.batch.size, *[1] * rank])
    ones = op.Expand([1], op.Sub(op.Shape(op.Shape(x[0])), 1))
    return op.Reshape(result, op.Concat(concatenated(op, [x.batch.size]), ones, axis=0))


def _over_some_or_all(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Over axes that are seen at run time: all of each example, where there are none.

    One more axis, of length 1, is always among them, so that there never are none.
    """
    axes = x[1]
    rank = op.Sub(op.Size(op.Shape(x[0])), 1)
    is_empty = op.Cast(op.Equal(op.Size(axes), 0), to=ir.DataType.INT64)
    every = op.Range(2, op.Add(op.Mul(rank, is_empty), 2), 1)
    some = op.Add(axes, op.Mul(op.Cast(op.GreaterOrEqual(axes, 0), to=ir.DataType.INT64), 2))
    (result,) = again(op, node, op.Unsqueeze(x[0], [1]), op.Concat([1], some, every, axis=0))
    return op.Squeeze(result, [1]) if node.attributes.get_int("keepdims", 1) else result


def _length(axes: ir.Value) -> int | None:
    """How many axes there are, where it is known."""
    shape = known.static_shape(axes)
    return shape[0] if shape else None


@batching("CumSum", "CumProd")
def running(op: Builder, node: ir.Node, x: Operands) -> Result:
    """yᵢ = Σ_{j≤i} xⱼ along an axis."""
    return None if x.is_batched(1) else again(op, node, x[0], shifted_axes(op, x[1]))


@batching("ArgMax", "ArgMin", "Hardmax")
def along_axis(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Along one axis."""
    default = -1 if node.op_type == "Hardmax" else 0
    return again(op, node, x[0], axis=shifted(node.attributes.get_int("axis", default)))


@batching("Softmax", "LogSoftmax", "LpNormalization")
def along_last_axis(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Along one axis, the last by default."""
    return again(op, node, x[0], axis=shifted(node.attributes.get_int("axis", -1)))


@batching("Det")
def determinant(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Of the matrices in the last two axes."""
    return again(op, node, x[0])


@batching("DFT", sizes=[1])
def discrete_fourier_transform(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Along one axis: an operand since opset 20, an attribute before."""
    if x.is_batched(2):
        return None
    if op.opset < 20:
        return again(op, node, *x.all(), axis=shifted(node.attributes.get_int("axis", 1)))
    axis = x.get(2)
    return again(op, node, x[0], x.get(1), None if axis is None else shifted_axes(op, axis))


@batching("TopK", sizes=[1])
def top_k(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The largest elements along an axis, with where they are along it."""
    return again(op, node, x[0], x[1], axis=shifted(node.attributes.get_int("axis", -1)))
