"""Sums with a bias, alone and before a softmax: BiasAdd, BiasSoftmax."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, composition, gradient
from onnx_grad.rules.contrib.domain import DOMAIN


@gradient("BiasAdd", domain=DOMAIN)
def bias_add(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = x + b + skip: dx = dy, db = Σ dy over where b was stretched, dskip = dy."""
    return dy, lambda: undo_broadcast(op, dy, known.operand(node, 1), node.outputs[0]), dy


@composition("BiasSoftmax", domain=DOMAIN)
def bias_softmax(op: Builder, node: ir.Node) -> ir.Value:
    """y = softmax(x + b) over all axes from `axis` on together."""
    total = known.operand(node, 0) + known.operand(node, 1)
    axis, rank = node.attributes.get_int("axis", 1), known.rank(known.operand(node, 0))
    if axis == -1 or (rank is not None and axis == rank - 1):
        return op.Softmax(total, axis=-1)
    return op.reshape_like(op.Softmax(op.Flatten(total, axis=axis), axis=-1), total)
