"""Normalization of a row to probabilities: Softmax, LogSoftmax."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.weighted_rows import sums_of_weighted_rows


@gradient("Softmax")
def softmax(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = softmax(x): dx = y·(dy − Σ y·dy along the axis); 0 where x = −∞ masks an element."""
    (y,) = node.outputs
    sums = sums_of_weighted_rows(op, y) if _axis(node) == -1 else None
    return y * (dy - (_row_sum(op, node, y * dy) if sums is None else sums))


@gradient("LogSoftmax")
def log_softmax(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = ln softmax(x): dx = dy − eʸ·Σ dy along the axis."""
    (y,) = node.outputs
    return dy - op.Exp(y) * _row_sum(op, node, dy)


def _row_sum(op: Builder, node: ir.Node, value: ir.Value) -> ir.Value:
    return op.ReduceSum(value, [_axis(node)], keepdims=1)


def _axis(node: ir.Node) -> int:
    """The axis as it is given, but the last one as −1."""
    axis = node.attributes.get_int("axis", -1)
    return -1 if known.rank(node.outputs[0]) == axis + 1 else axis
