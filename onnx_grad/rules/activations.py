"""Activations: piecewise linear (Relu …), piecewise exponential (Elu …), and smooth (Sigmoid, Gelu …)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number, keep_where
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.blocked_layout import is_between_convolutions
from onnx_grad.rules.pooled_activation import is_masked_by_its_pool
from onnx_grad.singularities import meets_singularity
from onnx_grad.step_function import is_unit_step, unit_step

# Defaults of attributes are written as the float32 numbers that they are, also in float64 models.


@gradient("Relu", convention="Relu'(0) = 0")
def relu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = max(x, 0): dx = dy where y ≠ 0."""
    (y,) = node.outputs
    if is_masked_by_its_pool(op, node):
        return dy
    if is_between_convolutions(op, node) and not meets_singularity(op, node):
        return dy * unit_step(op, y)
    return keep_where(op, node, op.Cast(y, to=ir.DataType.BOOL), dy)


@gradient("ThresholdedRelu", convention="0 at the threshold")
def thresholded_relu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x > α ? x : 0: dx = dy where x > α."""
    alpha = node.attributes.get_float("alpha", 1.0)
    return keep_where(op, node, op.Greater(node.inputs[0], alpha), dy)


@gradient("LeakyRelu", convention="LeakyRelu'(0) = α")
def leaky_relu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x > 0 ? x : α·x: dx = dy·(x > 0 ? 1 : α), where y has the sign of x unless α is negative."""
    alpha = node.attributes.get_float("alpha", 0.009999999776482582)
    positive = op.Greater(node.outputs[0] if alpha >= 0 else node.inputs[0], 0.0)
    if alpha == 0:
        return keep_where(op, node, positive, dy)
    mask = as_number(op, positive, dy)
    return dy * (op.Max(mask, alpha) if 0 < alpha <= 1 else mask + alpha * (1.0 - mask))


@gradient("PRelu", convention="PRelu'(0) = slope")
def prelu(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = x > 0 ? x : s·x: dx = dy·(x > 0 ? 1 : s), ds = Σ dy·min(x, 0) over where s was stretched."""
    x, slope, (y,) = known.operand(node, 0), known.operand(node, 1), node.outputs

    def dx() -> ir.Value:
        mask = as_number(op, op.Greater(x, 0.0), dy)
        return dy * (mask + slope * (1.0 - mask))

    return dx, lambda: undo_broadcast(op, dy * op.Min(x, 0.0), slope, y)


@gradient("Shrink", convention="0 at ±λ")
def shrink(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x ∓ bias where ±x > λ, else 0: dx = dy where |x| > λ."""
    lambd = node.attributes.get_float("lambd", 0.5)
    return keep_where(op, node, op.Greater(op.Abs(node.inputs[0]), lambd), dy)


@gradient("HardSigmoid", flat=is_unit_step, convention="0 at both ends of the slope")
def hard_sigmoid(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = max(0, min(1, α·x + β)): dx = α·dy where 0 < y < 1."""
    (y,) = node.outputs
    inside = op.And(op.Greater(y, 0.0), op.Less(y, 1.0))
    return keep_where(op, node, inside, dy * node.attributes.get_float("alpha", 0.20000000298023224))


@gradient("HardSwish", convention="HardSwish'(−3) = 0, HardSwish'(3) = 1")
def hard_swish(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x·max(0, min(1, x/6 + ½)): dx = dy·(½ + x/3) where |x| < 3, else dy·(x > 0)."""
    (x,) = node.inputs
    clipped = op.Clip(x, -3.0, 3.0)
    mask = as_number(op, op.Less(op.Abs(x), 3.0), dy)
    return dy * (clipped * ((mask + 1.0) * (1 / 6)) + 0.5)


@gradient("Elu", convention="Elu'(0) = α")
def elu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x > 0 ? x : α·(eˣ − 1): dx = dy·(x > 0 ? 1 : α·eˣ)."""
    return dy * _exponential_slope(op, node.inputs[0], 1.0, node.attributes.get_float("alpha", 1.0))


@gradient("Selu", convention="Selu'(0) = γ·α")
def selu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = γ·(x > 0 ? x : α·(eˣ − 1)): dx = dy·γ·(x > 0 ? 1 : α·eˣ)."""
    alpha = node.attributes.get_float("alpha", 1.6732631921768188)
    gamma = node.attributes.get_float("gamma", 1.0507010221481323)
    return dy * _exponential_slope(op, node.inputs[0], gamma, gamma * alpha)


@gradient("Celu")
def celu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = max(0, x) + min(0, α·(exp(x/α) − 1)): dx = dy·exp(min(x, 0)/α)."""
    alpha = node.attributes.get_float("alpha", 1.0)
    negative = op.Min(node.inputs[0], 0.0)
    return dy * op.Exp(negative if alpha == 1 else negative / alpha)


@gradient("Sigmoid")
def sigmoid(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = 1/(1 + e⁻ˣ): dx = dy·y·(1 − y)."""
    (y,) = node.outputs
    return dy * (y * (1.0 - y))


@gradient("Tanh")
def tanh(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = tanh x: dx = dy·(1 − y²)."""
    (y,) = node.outputs
    return dy * (1.0 - y * y)


@gradient("Softplus")
def softplus(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = ln(1 + eˣ): dx = dy·σ(x)."""
    return dy * op.Sigmoid(node.inputs[0])


@gradient("Softsign")
def softsign(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x/(1 + |x|): dx = dy/(1 + |x|)²."""
    share = op.Reciprocal(op.Abs(node.inputs[0]) + 1.0)
    return dy * share * share


@gradient("Swish")
def swish(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x·s with s = σ(α·x): dx = dy·(s + α·y·(1 − s))."""
    return dy * swish_slope(op, node, node.attributes.get_float("alpha", 1.0))


def swish_slope(op: Builder, node: ir.Node, alpha: float) -> ir.Value:
    """s + α·y·(1 − s)."""
    x, (y,) = known.operand(node, 0), node.outputs
    s = op.Sigmoid(x if alpha == 1 else op.Mul(x, alpha))
    curved = y * (1.0 - s)
    return s + (curved if alpha == 1 else curved * alpha)


@gradient("SwiGLU")
def swiglu(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = w·b with w = a·s, s = σ(α·a): da = dy·b·(s + α·w·(1 − s)), db = dy·w."""
    alpha = node.attributes.get_float("alpha", 1.0)
    a, b = node.inputs
    s = op.Sigmoid(a if alpha == 1 else op.Mul(a, alpha))
    w = op.Mul(a, s)

    def da() -> ir.Value:
        curved = w * (1.0 - s)
        return dy * b * (s + (curved if alpha == 1 else curved * alpha))

    return da, lambda: dy * w


@gradient("Mish")
def mish(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x·tanh(ln(1 + eˣ)): dx = dy·s·((1 + q)·v + x·(2·q·v)²), with s = σ(x), q = 1 − s, v = 1/(1 + q²).

    As ln(1 + eˣ) = −ln q and tanh(−ln q) = (1 − q²)/(1 + q²), nothing overflows, and the slow `Softplus` is
    not needed.
    """
    (x,) = node.inputs
    s = op.Sigmoid(x)
    q = 1.0 - s
    v = op.Reciprocal(q * q + 1.0)
    qv = q * v
    return dy * (s * (v + qv + qv * qv * x * 4.0))


@gradient("Gelu")
def gelu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x·Φ(x): dx = dy·(Φ(x) + x·φ(x)), with the normal distribution Φ and its density φ = Φ'.

    With approximate="tanh": Φ(x) = ½(1 + tanh t), t = √(2/π)·(x + 0.044715·x³).
    """
    x = known.operand(node, 0)
    if node.attributes.get_string("approximate", "none") == "tanh":
        return dy * tanh_gelu_slope(op, x)
    return dy * gelu_slope(op, x)


def gelu_slope(op: Builder, x: ir.Value) -> ir.Value:
    """Φ(x) + x·φ(x)."""
    u = op.Mul(x, math.sqrt(0.5))
    density = u * op.Exp(-0.5 * math.log(math.pi) - u * u)
    return op.Erf(u) * 0.5 + 0.5 + density


def tanh_gelu_slope(op: Builder, x: ir.Value) -> ir.Value:
    """½(1 + tanh t) + ½·x·t'·(1 − tanh² t); constant beyond |x| = 10, before x³ overflows in float16."""
    scale, cubic = math.sqrt(2.0 / math.pi), 0.044715
    v = op.Clip(x, -10.0, 10.0)
    square = v * v
    tanh_t = op.Tanh(v * (square * (scale * cubic) + scale))
    slope = v * (square * (1.5 * scale * cubic) + 0.5 * scale)
    return tanh_t * 0.5 + 0.5 + slope * (1.0 - tanh_t * tanh_t)


def _exponential_slope(op: Builder, x: ir.Value | None, positive: float, negative: float) -> ir.Value:
    """`positive` where x > 0, else `negative`·eˣ; exp is taken of min(x, 0), which does not overflow."""
    exponential = op.Exp(op.Min(x, 0.0))
    if negative != 1:
        exponential = exponential * negative
    if positive == negative:
        return exponential
    return exponential + as_number(op, op.Greater(x, 0.0), exponential) * (positive - negative)
