"""Pooling over all spatial axes: GlobalAveragePool, GlobalMaxPool, GlobalLpPool."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.axes import trailing_count
from onnx_grad.rules.lp_norms import lp_factors
from onnx_grad.rules.precision import widen


@gradient("GlobalAveragePool")
def global_average_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = Σx/n by channel: dx = dy/n, repeated over the positions."""
    x = known.operand(node, 0)
    wide_dy = widen(op, dy, dy)
    count = trailing_count(op, x, 2, wide_dy)
    share = wide_dy * (1.0 / count) if isinstance(count, float) and count else wide_dy / count
    return op.Expand(op.CastLike(share, dy), op.shape(x))


@gradient("GlobalMaxPool", convention="the first maximum of a channel takes all")
def global_max_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the maximum by channel: dx = dy at its position, the first one of equals."""
    x = known.operand(node, 0)
    flat = op.Reshape(x, _positions_on_one_axis(op, x), allowzero=1)
    first = op.ArgMax(flat, axis=2, keepdims=1)
    zeros = op.Expand(op.scalar_like(0.0, dy), op.Shape(flat))
    scattered = op.ScatterElements(zeros, first, op.Reshape(dy, op.Shape(first), allowzero=1), axis=2)
    return op.reshape_like(scattered, x)


@gradient("GlobalLpPool", convention="GlobalLpPool'(0) = 0")
def global_lp_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = (Σ|x|ᵖ)^1/p by channel: dx = x·|x|ᵖ⁻²·y¹⁻ᵖ·dy, 0 where y = 0."""
    x, y, wide_dy = (widen(op, value, dy) for value in (known.operand(node, 0), node.outputs[0], dy))
    of_x, of_y = lp_factors(op, x, y, node.attributes.get_int("p", 2))
    return op.CastLike(of_x * (wide_dy if of_y is None else wide_dy * of_y), dy)


def _positions_on_one_axis(op: Builder, x: ir.Value) -> ir.Value | list[int]:
    """The shape [N, C, positions]."""
    shape = known.static_shape(x)
    if shape is not None:
        return [*shape[:2], math.prod(shape[2:])]
    return op.Concat(op.Shape(x, end=2), op.ReduceProd(op.Shape(x, start=2), keepdims=1), axis=0)
