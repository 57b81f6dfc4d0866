"""Normalization within each instance: InstanceNormalization, GroupNormalization, MeanVarianceNormalization.

The first two are made of x̂ = d·r with d = x − mean(x) and r = 1/√(mean(d²) + ε). The cotangent g of x̂ becomes
r·(g − mean(g) − d·r²·mean(g·d)). Half precision is computed in single.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.axes import along_channels, spatial_axes, sum_by_channel, trailing_count
from onnx_grad.rules.precision import widen

Axes = ir.Value | list[int]


@gradient("InstanceNormalization")
def instance_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = scale·x̂ + B, with means over the spatial axes: dscale = Σ dY·x̂, dB = Σ dY."""
    x, scale, bias = (known.operand(node, i) for i in range(3))
    wide_x, g = widen(op, x, x), widen(op, dy, x)
    standard = _Standardized(op, wide_x, spatial_axes(op, x), _epsilon(node))
    gain = along_channels(op, widen(op, scale, x), x)
    count = trailing_count(op, x, 2, like=wide_x)
    return (
        lambda: op.CastLike(standard.pull_back(g, gain), x),
        lambda: _total_of_means(op, standard.mean_product(g) * standard.r, count, scale),
        lambda: _total_of_means(op, standard.mean(g), count, bias),
    )


@gradient("GroupNormalization")
def group_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = scale·x̂ + bias, with means over groups of channels: dscale = Σ dY·x̂, dbias = Σ dY.

    There is one scale and bias for each channel, before opset 21 for each group.
    """
    x, scale, bias = (known.operand(node, i) for i in range(3))
    g, gain = widen(op, dy, x), widen(op, scale, x)
    groups = node.attributes["num_groups"].as_int()
    shape = _grouped_shape(op, x, groups)
    grouped_x = op.Reshape(widen(op, x, x), shape, allowzero=1)
    grouped_g = op.Reshape(g, shape, allowzero=1)
    standard = _Standardized(op, grouped_x, [2], _epsilon(node))
    if op.opset < 21:
        by_group = op.Unsqueeze(gain, [1])
        count = trailing_count(op, x, 1, like=grouped_x) / groups
        return (
            lambda: op.CastLike(op.reshape_like(standard.pull_back(grouped_g, by_group), x), x),
            lambda: _total_of_means(op, standard.mean_product(grouped_g) * standard.r, count, scale),
            lambda: _total_of_means(op, standard.mean(grouped_g), count, bias),
        )

    def dx() -> ir.Value:
        of_standardized = op.Reshape(g * along_channels(op, gain, x), shape, allowzero=1)
        return op.CastLike(op.reshape_like(standard.pull_back(of_standardized), x), x)

    def d_scale() -> ir.Value:
        standardized = op.reshape_like(standard.d * standard.r, x)
        return op.CastLike(sum_by_channel(op, g * standardized, x), scale)

    return dx, d_scale, lambda: op.CastLike(sum_by_channel(op, g, x), bias)


@gradient("MeanVarianceNormalization")
def mean_variance_normalization(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = d/s with d = x − mean(x), s = σ + 10⁻⁹, σ² = mean(d²): dX = (dY − mean(dY) − d·mean(dY·d)/(σ·s))/s.

    Where σ = 0 the last term is left out: d is zero there.
    """
    x = known.operand(node, 0)
    axes = list(node.attributes.get_ints("axes", (0, 2, 3)))
    standard = _Standardized(op, widen(op, x, x), axes, epsilon=0.0)
    is_zero = op.CastLike(op.Equal(standard.variance, 0.0), standard.variance)
    sigma = op.Sqrt(standard.variance + is_zero) * (1.0 - is_zero)
    spread = sigma + 1e-9
    g = widen(op, dy, x)
    slope = standard.mean_product(g) / ((sigma + is_zero) * spread)
    return op.CastLike((g - standard.mean(g) - standard.d * slope) / spread, x)


class _Standardized:
    """x̂ = d·r of a value over some axes, which are kept with length 1 by means."""

    def __init__(self, op: Builder, x: ir.Value, axes: Axes, epsilon: float) -> None:
        self.op, self.axes = op, axes
        self.d = x - self.mean(x)
        self.variance = self.mean(self.d * self.d)
        self.r = op.Reciprocal(op.Sqrt(self.variance + epsilon))

    def mean(self, value: ir.Value) -> ir.Value:
        """The mean over the axes."""
        return self.op.ReduceMean(value, self.axes, keepdims=1)

    def mean_product(self, g: ir.Value) -> ir.Value:
        """mean(g·d)."""
        return self.mean(g * self.d)

    def pull_back(self, g: ir.Value, gain: ir.Value | None = None) -> ir.Value:
        """gain·r·(g − mean(g) − d·r²·mean(g·d)): the cotangent of x, where that of x̂ is gain·g."""
        factor = self.r if gain is None else self.r * gain
        return factor * (g - self.mean(g) - self.d * (self.mean_product(g) * self.r * self.r))


def _epsilon(node: ir.Node) -> float:
    return node.attributes.get_float("epsilon", 1e-5)


def _total_of_means(op: Builder, means: ir.Value, count: float | ir.Value, like: ir.Value) -> ir.Value:
    """The sum over the batch of means of `count` elements times that count, as a vector `like`."""
    total = op.ReduceSum(means, [0], keepdims=0) * count
    return op.CastLike(op.reshape_like(total, like), like)


def _grouped_shape(op: Builder, x: ir.Value, groups: int) -> ir.Value:
    """The shape of `x` with its channels and all after them laid out as groups: [N, G, C/G·D₁·D₂…]."""
    dims = known.dimensions(x)
    per_instance = [d for d in (dims or ())[1:] if isinstance(d, int)]
    if dims is not None and len(per_instance) == len(dims) - 1 and 0 not in per_instance:
        return op.constant([-1, groups, math.prod(per_instance) // groups], ir.DataType.INT64)
    length = op.ReduceProd(op.Shape(x, start=1), keepdims=1) / groups
    return op.Concat(op.Shape(x, end=1), [groups], length, axis=0)
