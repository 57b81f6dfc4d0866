"""The heads of attention: next to each other on the last axis, or on an axis of their own."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder


def last_dimension(x: ir.Value) -> int | None:
    """The length of the last axis, where it is known."""
    dims = known.dimensions(x)
    return dims[-1] if dims and isinstance(dims[-1], int) else None


def apart(op: Builder, x: ir.Value, heads: int, width: int | None = None) -> ir.Value:
    """[batch, sequence, heads·size] as [batch, sequence, heads, size].

    Args:
        op: Builds the nodes.
        x: The packed heads.
        heads: How many there are.
        width: The length of the last axis of `x`, where it is known.
    """
    width = last_dimension(x) if width is None else width
    if width is not None:
        return op.Reshape(x, [0, 0, heads, width // heads])
    size = op.Shape(x, start=2) / heads
    return op.Reshape(x, op.Concat(op.Shape(x, end=2), [heads], size, axis=0), allowzero=1)


def first(op: Builder, x: ir.Value, heads: int, width: int | None = None) -> ir.Value:
    """[batch, sequence, heads·size] as [batch, heads, sequence, size]."""
    return op.Transpose(apart(op, x, heads, width), perm=[0, 2, 1, 3])


def packed(op: Builder, x: ir.Value, width: int | None = None) -> ir.Value:
    """[batch, heads, sequence, size] as [batch, sequence, heads·size].

    Args:
        op: Builds the nodes.
        x: The heads apart.
        width: The length of the result's last axis, where it is known.
    """
    by_position = op.Transpose(x, perm=[0, 2, 1, 3])
    if width is not None:
        return op.Reshape(by_position, [0, 0, width])
    last = op.Shape(x, start=1, end=2) * op.Shape(x, start=3)
    shape = op.Concat(op.Shape(x, end=1), op.Shape(x, start=2, end=3), last, axis=0)
    return op.Reshape(by_position, shape, allowzero=1)
