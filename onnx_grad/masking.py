"""Masks, and products of zero with infinity.

Two products can turn a cotangent into NaN although the function is as smooth as can be there:

- mask · dy, where an operator that selects elements (`Relu`, `Clip`, `Max`) multiplies by zero what it did
  not select, and dy is infinite there: `Sqrt(Relu(x))` at x < 0.
- dy · f'(x), where dy is the zero of an element that was not selected, and f' is infinite or NaN:
  `Where(x > 0, Log(x), 0)` at x ≤ 0.

Both are zero here. A product becomes a `Where`, which is some twenty times slower than `Mul` on CPUs, only
where the forward graph has both a singularity and, further on, a selection (`onnx_grad.singularities`).
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.singularities import is_elementwise, may_be_unused_at_singularity, meets_singularity


def cast_like(op: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    """`value` in the dtype of `like`; `value` itself where it has that dtype already."""
    if like.dtype is None:
        return op.CastLike(value, like)
    return value if value.dtype == like.dtype else op.Cast(value, to=like.dtype)


def as_number(op: Builder, condition: ir.Value, like: ir.Value) -> ir.Value:
    """1 where the boolean `condition` holds, else 0, in the dtype of `like`."""
    return cast_like(op, condition, like)


def keep_where(op: Builder, node: ir.Node, condition: ir.Value, dy: ir.Value) -> ir.Value:
    """`dy` where the boolean `condition` holds, else 0, for a rule of the selecting operator `node`.

    Args:
        op: Builds the nodes.
        node: The forward node that selects elements of its input.
        condition: Of a shape that broadcasts with that of `dy`.
        dy: A cotangent, possibly infinite where the condition fails.
    """
    if meets_singularity(op, node):
        return op.Where(condition, dy, 0.0)
    return op.Mul(dy, as_number(op, condition, dy))


def without_undefined(op: Builder, node: ir.Node, cotangent: ir.Value, dy: ir.Value | None) -> ir.Value:
    """`cotangent` with 0 instead of NaN where `dy` is 0, where `node` can produce such NaN at all.

    Args:
        op: Builds the nodes.
        node: The forward node that `cotangent` was pulled back through.
        cotangent: What a rule made of `dy`; for the operators concerned, it has the shape of `dy`.
        dy: The cotangent of the first output of `node`, if one arrived.
    """
    if cotangent is dy or dy is None or not is_elementwise(node):
        return cotangent
    return zero_where_unused(op, node, cotangent, dy)


def zero_where_unused(op: Builder, node: ir.Node, product: ir.Value, dy: ir.Value) -> ir.Value:
    """The same of a `product` of the shape of `dy` that a rule goes on with."""
    if op.pushes or not may_be_unused_at_singularity(op, node):
        return product
    return zero_where_zero(op, product, dy)


def zero_where_zero(op: Builder, product: ir.Value, factor: ir.Value) -> ir.Value:
    """`product` with 0 instead of NaN where its `factor` is 0."""
    undefined = op.And(op.IsNaN(product), op.Equal(factor, 0.0))
    return op.Where(undefined, 0.0, product)
