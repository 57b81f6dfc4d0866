"""BatchNormalization with given statistics, and with those of the batch.

A map a·x + b by channel is itself one BatchNormalization node, whatever the rank: the rules are made of them.
Sums over a channel are taken in single precision at least.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from functools import partial, reduce

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batch_statistics import normalizes_by_its_input
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.axes import sum_by_channel
from onnx_grad.rules.precision import widen


@gradient("BatchNormalization")
def batch_normalization(
    op: Builder,
    node: ir.Node,
    dy: ir.Value | None,
    d_running_mean: ir.Value | None,
    d_running_var: ir.Value | None,
) -> Sequence[InputCotangent]:
    """Y = scale·x̂ + B with x̂ = (x − μ)/σ by channel; μ and σ² are inputs, or those of the batch."""
    inputs = [known.operand(node, index) for index in range(5)]
    if not node.attributes.get_int("training_mode", 0):
        channels = _Channels(op, node, inputs)
        if dy is None:
            return ()
        if normalizes_by_its_input(node):
            return _by_the_batch(channels, dy, None, None, inputs[3], inputs[4])
        return _given(channels, dy)
    # The mean, rounded to half precision, is too far from values that differ little from it.
    wide = [widen(op, value, value) for value in inputs]
    results = _of_the_batch(_Channels(op, node, wide), dy, d_running_mean, d_running_var)
    return [partial(_narrowed, op, result, value) for result, value in zip(results, inputs, strict=True)]


def _narrowed(op: Builder, result: InputCotangent, like: ir.Value) -> ir.Value | None:
    """What a rule gave for `like`, in its dtype."""
    cotangent = result() if callable(result) else result
    return None if cotangent is None else op.CastLike(cotangent, like)


class _Channels:
    """The inputs of a BatchNormalization node, and sums and maps by channel."""

    def __init__(self, op: Builder, node: ir.Node, inputs: Sequence[ir.Value]) -> None:
        self.op = op
        self.x, self.scale, self.bias, self.mean, self.var = inputs
        self.epsilon = node.attributes.get_float("epsilon", 1e-5)
        self.momentum = node.attributes.get_float("momentum", 0.9)

    def wide(self, value: ir.Value) -> ir.Value:
        """`value` in the precision of the sums."""
        return widen(self.op, value, self.scale)

    def total(self, value: ir.Value) -> ir.Value:
        """The sum over all axes but that of the channels."""
        return sum_by_channel(self.op, self.wide(value), self.x)

    def total_product(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """Σ a·b over all axes but that of the channels."""
        return self.total(self.wide(a) * self.wide(b))

    def count(self) -> float | ir.Value:
        """How many elements a channel has; one where it has none, so that nothing is divided by zero."""
        shape = known.static_shape(self.x)
        if shape is not None:
            return max(math.prod(shape[:1] + shape[2:]), 1)
        op = self.op
        return op.Max(self.wide(op.Size(self.x)) / self.wide(op.Size(self.scale)), 1.0)

    def filled(self, number: float, like: ir.Value) -> ir.Value:
        """A vector of equal numbers, of the length and dtype of `like`."""
        shape = known.static_shape(like)
        if shape is not None and like.dtype is not None:
            return self.op.constant(np.full(shape, number), like.dtype)
        return self.op.Expand(self.op.scalar_like(number, like), self.op.shape(like))

    def affine(
        self,
        value: ir.Value,
        gain: ir.Value | None,
        offset: ir.Value | None,
        mean: ir.Value | None,
        var: ir.Value,
    ) -> ir.Value:
        """gain·(value − mean)/σ + offset by channel; what is `None` is zero."""
        zeros = self.filled(0.0, self.scale)
        gain = zeros if gain is None else self.op.CastLike(gain, self.scale)
        offset = zeros if offset is None else self.op.CastLike(offset, self.scale)
        mean = self.filled(0.0, self.mean) if mean is None else mean
        return self.op.BatchNormalization(value, gain, offset, mean, var, epsilon=self.epsilon)

    def centred(self, mean: ir.Value) -> ir.Value:
        """`x` − mean."""
        ones, zeros = self.filled(1.0, self.scale), self.filled(0.0, self.scale)
        return self.op.BatchNormalization(self.x, ones, zeros, mean, self.filled(1.0, self.var), epsilon=0.0)

    def deviation(self, var: ir.Value) -> ir.Value:
        """σ = √(var + ε)."""
        return self.op.Sqrt(self.wide(var) + self.epsilon)


def _given(c: _Channels, dy: ir.Value) -> Sequence[InputCotangent]:
    """dX = dy·scale/σ, dscale = Σdy·x̂, dB = Σdy, dμ = −dB·scale/σ, dσ² = −½·dscale·scale/σ²."""
    op = c.op

    def d_scale() -> ir.Value:
        return c.total_product(dy, c.affine(c.x, c.filled(1.0, c.scale), None, c.mean, c.var))

    def d_mean() -> ir.Value:
        return -(c.total(dy) * c.wide(c.scale) / c.deviation(c.var))

    def d_var() -> ir.Value:
        return d_scale() * c.wide(c.scale) * -0.5 / (c.wide(c.var) + c.epsilon)

    return (
        lambda: c.affine(dy, c.scale, None, None, c.var),
        lambda: op.CastLike(d_scale(), c.scale),
        lambda: op.CastLike(c.total(dy), c.bias),
        lambda: op.CastLike(d_mean(), c.mean),
        lambda: op.CastLike(d_var(), c.var),
    )


def _of_the_batch(
    c: _Channels, dy: ir.Value | None, d_running_mean: ir.Value | None, d_running_var: ir.Value | None
) -> Sequence[InputCotangent]:
    """dX = (dy − Σdy/n − x̂·Σ(dy·x̂)/n)·scale/σ with n elements in a channel, dscale = Σdy·x̂, dB = Σdy.

    A running statistic is momentum·input + (1 − momentum)·that of the batch: its cotangent reaches dX as
    (1 − momentum)·dμ/n and (1 − momentum)·dσ²·2·x̂·σ/n.
    """
    mean = c.op.CastLike(c.total(c.x) / c.count(), c.mean)
    centred = c.centred(mean)
    var = c.op.CastLike(c.total_product(centred, centred) / c.count(), c.var)
    return _by_the_batch(c, dy, d_running_mean, d_running_var, mean, var)


def _by_the_batch(
    c: _Channels,
    dy: ir.Value | None,
    d_running_mean: ir.Value | None,
    d_running_var: ir.Value | None,
    mean: ir.Value,
    var: ir.Value,
) -> Sequence[InputCotangent]:
    """The same, given the mean and variance of the batch."""
    n, centred = c.count(), c.centred(mean)

    def d_scale(dy: ir.Value) -> ir.Value:
        return c.total_product(dy, centred) / c.deviation(var)

    def dx() -> ir.Value:
        """The direct term, and one map of x for all that comes through the statistics."""
        gains, offsets = [], []
        if dy is not None:
            share = c.wide(c.scale) / (c.deviation(var) * n)
            gains.append(-(d_scale(dy) * share))
            offsets.append(-(c.total(dy) * share))
        if d_running_mean is not None:
            offsets.append(c.wide(d_running_mean) * (1.0 - c.momentum) / n)
        if d_running_var is not None:
            gains.append(c.wide(d_running_var) * c.deviation(var) * (2.0 - 2.0 * c.momentum) / n)
        indirect = c.affine(c.x, _sum(gains), _sum(offsets), mean, var)
        return indirect if dy is None else c.affine(c.wide(dy), c.scale, None, None, var) + indirect

    affine: Sequence[InputCotangent] = (None, None)
    if dy is not None:
        affine = partial(d_scale, dy), partial(c.total, dy)
    statistics = (d if d is None else d * c.momentum for d in (d_running_mean, d_running_var))
    return dx, *affine, *statistics


def _sum(terms: Sequence[ir.Value]) -> ir.Value | None:
    return reduce(operator.add, terms) if terms else None
