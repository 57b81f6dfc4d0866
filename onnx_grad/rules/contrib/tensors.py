"""Operators that ONNX Runtime had before the specification did, and that mean the same, or nearly so."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, composition, gradient
from onnx_grad.rules.constants import range_
from onnx_grad.rules.contrib.domain import DOMAIN
from onnx_grad.rules.linear import swap_last_two
from onnx_grad.rules.slicing import trilu

gradient("Range", domain=DOMAIN, frozen=(1,))(range_)
gradient("Trilu", domain=DOMAIN)(trilu)


@gradient("ExpandDims", domain=DOMAIN)
def expand_dims(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = x with an axis of length 1 inserted: dx = dy without it."""
    return (op.reshape_like(dy, known.operand(node, 0)),)


@gradient("Inverse", domain=DOMAIN)
def inverse(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = X⁻¹: dX = −Yᵀ·dY·Yᵀ."""
    y = node.outputs[0]
    transposed = swap_last_two(op, y, known.rank(y))
    return -op.MatMul(op.MatMul(transposed, dy), transposed)


@composition("GatherND", domain=DOMAIN)
def gather_nd(op: Builder, node: ir.Node) -> ir.Value:
    """The same as the operator of the default domain, which takes int64 indices only."""
    return op.GatherND(known.operand(node, 0), op.Cast(known.operand(node, 1), to=ir.DataType.INT64))


@composition("Pad", domain=DOMAIN)
def pad(op: Builder, node: ir.Node) -> ir.Value:
    """The same as the operator of the default domain, save that pads and value may have an axis more."""
    value = known.optional_operand(node, 2)
    return op.Pad(
        known.operand(node, 0),
        op.Reshape(known.operand(node, 1), [-1]),
        None if value is None else op.Squeeze(value),
        mode=node.attributes.get_string("mode", "constant"),
    )


@composition("CDist", domain=DOMAIN)
def cdist(op: Builder, node: ir.Node) -> ir.Value:
    """y[i, j] = ‖aᵢ − bⱼ‖, or its square: 0 is the derivative of the distance of equal points."""
    difference = op.Unsqueeze(known.operand(node, 0), [1]) - op.Unsqueeze(known.operand(node, 1), [0])
    if node.attributes.get_string("metric", "sqeuclidean") == "sqeuclidean":
        return op.ReduceSumSquare(difference, [2], keepdims=0)
    return op.ReduceL2(difference, [2], keepdims=0)
