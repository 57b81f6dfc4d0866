"""Operators that choose among elements: Where, Clip, Max, Min."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number, keep_where
from onnx_grad.registry import InputCotangent, gradient


@gradient("Where", broadcasts=True)
def where(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = c ? a : b: da = c ? dz : 0, db = c ? 0 : dz.

    Not a product with a mask: dz may be infinite or NaN where the other branch was taken, as behind a
    softmax over a row masked with −∞.
    """
    condition = node.inputs[0]
    return None, lambda: op.Where(condition, dz, 0.0), lambda: op.Where(condition, 0.0, dz)


@gradient("Clip", convention="the gradient passes at the bounds")
def clip(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = min(max(x, low), high): dx = dy where low ≤ x ≤ high, which is where y = x and low ≤ high.

    dlow = Σ dy where x < low < high, dhigh = Σ dy where max(x, low) > high: also where the bounds are in the
    wrong order and y = high.
    """
    x, low, high = (known.optional_operand(node, index) for index in range(3))
    (y,) = node.outputs

    def dx() -> ir.Value:
        unchanged = op.Equal(x, y)
        if low is not None and high is not None and not _in_order(low, high):
            unchanged = op.And(unchanged, op.LessOrEqual(low, high))
        return keep_where(op, node, unchanged, dy)

    def dlow() -> ir.Value:
        below = op.Less(x, low)
        return total(below if high is None else op.And(below, op.Less(low, high)), low)

    def dhigh() -> ir.Value:
        return total(op.Greater(x if low is None else op.Max(x, low), high), high)

    def total(chosen: ir.Value, bound: ir.Value | None) -> ir.Value:
        summed = op.ReduceSum(keep_where(op, node, chosen, dy), keepdims=0)
        return summed if bound is None or known.rank(bound) == 0 else op.reshape_like(summed, bound)

    return (dx, dlow, dhigh)[: len(node.inputs)]


def _in_order(low: ir.Value, high: ir.Value) -> bool:
    """Whether the bounds are constants in the right order."""
    lowest, highest = known.constant(low), known.constant(high)
    return lowest is not None and highest is not None and bool(np.less_equal(lowest, highest).all())


@gradient("Max", broadcasts=True, convention="a tie is split evenly")
def maximum(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = maxᵢ xᵢ: dxᵢ = dy/n where xᵢ is one of the n operands equal to y, else 0."""
    return _extremum(op, node, dy)


@gradient("Min", broadcasts=True, convention="a tie is split evenly")
def minimum(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = minᵢ xᵢ: dxᵢ = dy/n where xᵢ is one of the n operands equal to y, else 0."""
    return _extremum(op, node, dy)


def _extremum(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    (y,) = node.outputs
    if len(node.inputs) == 1:
        return (dy,)
    chosen = [op.Equal(x, y) for x in node.inputs]
    share = dy / op.Sum(*(as_number(op, c, dy) for c in chosen))
    return [partial(keep_where, op, node, c, share) for c in chosen]
