"""Division by a norm: LRN over neighbouring channels, LpNormalization along an axis."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen


@gradient("LRN")
def lrn(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = x·u^−β, u = bias + α/size·Σx² over a window of channels: dX = dY·u^−β − 2β·α/size·x·Σ'(dY·Y/u).

    The window of channel c reaches from c − ⌊(size − 1)/2⌋ to c + ⌈(size − 1)/2⌉, and Σ' is over all channels
    whose window has c in it. Each sum is a product with a matrix of ones along a band.
    """
    x, y = known.operand(node, 0), node.outputs[0]
    size, beta = node.attributes["size"].as_int(), node.attributes.get_float("beta", 0.75)
    share = node.attributes.get_float("alpha", 1e-4) / size
    shape = _channel_rows_shape(op, x)
    rows_x, rows_y, rows_dy = (
        v if known.rank(x) == 3 else op.Reshape(v, shape, allowzero=1)
        for v in (widen(op, x, x), widen(op, y, x), widen(op, dy, x))
    )
    band = _band(op, x, size, rows_x) * share
    u = op.MatMul(band, rows_x * rows_x) + node.attributes.get_float("bias", 1.0)
    # Faster than Pow.
    power = op.Exp(op.Log(u) * -beta)
    mirrored = band if size % 2 else op.Transpose(band, perm=[1, 0])
    through_u = op.MatMul(mirrored, rows_dy * rows_y / u) * (2.0 * beta)
    rows_dx = rows_dy * power - rows_x * through_u
    return op.CastLike(rows_dx if known.rank(x) == 3 else op.reshape_like(rows_dx, x), x)


@gradient("LpNormalization", convention="0 for a vector of zeros")
def lp_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = x/n with n = Σ|x| or √Σx²: dX = (dY − s·Σ(dY·Y))/n with s = sign(x) or Y."""
    x, y, dy = (widen(op, v, node.outputs[0]) for v in (known.operand(node, 0), node.outputs[0], dy))
    axis, p = node.attributes.get_int("axis", -1), node.attributes.get_int("p", 2)
    norm = op.ReduceL1(x, [axis]) if p == 1 else op.ReduceL2(x, [axis])
    is_zero = op.CastLike(op.Equal(norm, 0.0), norm)
    inverse = (1.0 - is_zero) / (norm + is_zero)
    direction = op.Sign(x) if p == 1 else y
    return op.CastLike((dy - direction * op.ReduceSum(dy * y, [axis])) * inverse, node.outputs[0])


def _band(op: Builder, x: ir.Value, size: int, like: ir.Value) -> ir.Value:
    """The matrix [C, C] with ones where the column is in the window of the row."""
    dims = known.dimensions(x)
    if dims is not None and isinstance(dims[1], int):
        channels = op.constant(dims[1], ir.DataType.INT64)
    else:
        channels = op.Squeeze(op.Shape(x, start=1, end=2), [0])
    # In half channels, the window is symmetric about the row, or half a channel after it if its size is even.
    column = op.Range(0, channels * 2, 2)
    row = op.Unsqueeze(column if size % 2 else column + 1, [1])
    return op.CastLike(op.LessOrEqual(op.Abs(column - row), size - 1), like)


def _channel_rows_shape(op: Builder, x: ir.Value) -> ir.Value:
    """The shape [N, C, D₁·D₂…] for `x` of shape [N, C, D₁, D₂…]."""
    dims = known.dimensions(x)
    per_instance = [d for d in (dims or ())[1:] if isinstance(d, int)]
    if dims is not None and len(per_instance) == len(dims) - 1 and 0 not in per_instance:
        return op.constant([-1, per_instance[0], math.prod(per_instance[1:])], ir.DataType.INT64)
    length = op.ReduceProd(op.Shape(x, start=2), keepdims=1)
    return op.Concat(op.Shape(x, end=2), length, axis=0)
