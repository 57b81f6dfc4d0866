"""Normalization of a row to probabilities: Softmax, LogSoftmax."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient


@gradient("Softmax")
def softmax(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = softmax(x): dx = y·(dy − Σ y·dy along the axis); 0 where x = −∞ masks an element."""
    (y,) = node.outputs
    return y * (dy - _row_sum(op, node, y * dy))


@gradient("LogSoftmax")
def log_softmax(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = ln softmax(x): dx = dy − eʸ·Σ dy along the axis."""
    (y,) = node.outputs
    return dy - op.Exp(y) * _row_sum(op, node, dy)


def _row_sum(op: Builder, node: ir.Node, value: ir.Value) -> ir.Value:
    return op.ReduceSum(value, [node.attributes.get_int("axis", -1)], keepdims=1)
