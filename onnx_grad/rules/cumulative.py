"""Cumulative products: CumProd."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen


@gradient("CumProd")
def cumulative_product(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """yₖ = Π xⱼ over j ≤ k: dxᵢ = (Π xⱼ over j < i) · Σ dyₖ·(Π xⱼ over i < j ≤ k) over k ≥ i.

    j < k in the second product, and k > i in the sum, when the operator is exclusive; everything the other
    way round when it is reversed. Nothing is divided by x, which may be zero; memory grows with the square of
    the axis' length.
    """
    x, axis = known.operand(node, 0), known.operand(node, 1)
    reverse = node.attributes.get_int("reverse", 0)
    exclusive = node.attributes.get_int("exclusive", 0)

    rows = _before_along_after(op, x, axis)
    row, cotangent = (op.Reshape(widen(op, value, x), rows, allowzero=1) for value in (x, dy))
    before = op.CumProd(row, op.constant(1, ir.DataType.INT64), reverse=reverse, exclusive=1)

    # Axes of what follows: before the axis, i, j or k, after the axis.
    later = _later(op, op.Gather(rows, 1), reverse)
    factors = op.Where(later, op.Unsqueeze(row, [1]), 1.0)
    between = op.CumProd(factors, op.constant(2, ir.DataType.INT64), reverse=reverse, exclusive=exclusive)
    reached = later if exclusive else op.Not(_later(op, op.Gather(rows, 1), not reverse))
    terms = op.Where(reached, between * op.Unsqueeze(cotangent, [1]), 0.0)
    return op.CastLike(op.reshape_like(before * op.ReduceSum(terms, [2], keepdims=0), x), x)


def _before_along_after(op: Builder, x: ir.Value, axis: ir.Value) -> ir.Value:
    """Three sizes: of the axes before `axis`, of `axis` itself, and of those after it."""
    shape = op.Shape(x)
    rank = op.Shape(shape)
    start = op.Mod(op.Reshape(op.Cast(axis, to=ir.DataType.INT64), [1]) + rank, rank)
    stop = start + 1
    sizes = op.Slice(shape, [0], start), op.Slice(shape, start, stop), op.Slice(shape, stop, rank)
    return op.Concat(*(op.ReduceProd(size, [0]) for size in sizes), axis=0)


def _later(op: Builder, length: ir.Value, reverse: int | bool) -> ir.Value:
    """Whether position j (second axis) comes after position i (first axis), of shape (length, length, 1)."""
    position = op.Range(0, length, 1)
    i, j = op.Unsqueeze(position, [1, 2]), op.Unsqueeze(position, [1])
    return op.Less(j, i) if reverse else op.Greater(j, i)
