"""Attention of every head: scores of queries and keys, what is added to them, and sums of values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder


def scores(op: Builder, node: ir.Node, queries: ir.Value, keys: ir.Value, size: int | None) -> ir.Value:
    """scale·Q·Kᵀ, where the attribute `scale` of the node is 1/√size by default.

    Args:
        op: Builds the nodes.
        node: The fused node.
        queries: [batch, heads, queries, size].
        keys: [batch, heads, keys, size].
        size: The length of a head, where it is known.
    """
    scale: float | ir.Value = node.attributes.get_float("scale", 0.0)
    if not scale and size:
        scale = 1.0 / math.sqrt(size)
    elif not scale:
        root = op.Sqrt(op.Cast(op.Shape(queries, start=3), to=ir.DataType.DOUBLE))
        scale = op.CastLike(op.Reciprocal(root), queries)
    return op.MatMul(queries * scale, op.Transpose(keys, perm=[0, 1, 3, 2]))


def biased(logits: ir.Value, biases: Sequence[ir.Value]) -> ir.Value:
    """`logits` with all `biases` added."""
    for bias in biases:
        logits = logits + bias
    return logits


def bias_where(op: Builder, allowed: ir.Value, masked: float, like: ir.Value) -> ir.Value:
    """0 where a query may attend to a key, and `masked` elsewhere, in the dtype of `like`."""
    return op.Where(allowed, op.scalar_like(0.0, like), op.scalar_like(masked, like))


def positions(op: Builder, length: ir.Value) -> ir.Value:
    """0, 1, … below a `length` that is a vector of one element."""
    return op.Range(0, op.Squeeze(length), 1)
