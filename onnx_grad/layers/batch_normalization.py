"""Batch normalization with the statistics of the batch, out of operators that every provider has.

The training form of ONNX's `BatchNormalization` does not run on ONNX Runtime's CUDA provider, and updates the
running variance with the variance of the batch as it is (divided by n). Here the statistics are sums, and the
inference form normalizes with them. On the CPU that takes 1.6 to 1.8 times as long as the training form; but
the gradient, which takes longer than either, need not compute the statistics again, and both together take
0.9 to 1.0 times as long.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batch_statistics import mark_normalization, mark_update
from onnx_grad.builder import Builder
from onnx_grad.rules.axes import along_channels, sum_by_channel
from onnx_grad.rules.precision import widen

Updates = dict[ir.Value, ir.Value]


def use_batch_statistics(op: Builder, node: ir.Node, updates: Updates) -> ir.Value:
    """y = scale·(x − μ)/√(σ² + ε) + B with the mean μ and variance σ² of the n elements of each channel of x.

    The running statistics become momentum·μᵣ + (1 − momentum)·μ and
    momentum·σᵣ² + (1 − momentum)·σ²·n/(n − 1), as in PyTorch.

    Args:
        op: Builds the nodes.
        node: A `BatchNormalization` node.
        updates: The running statistics with what they become; those of `node` are added. Where several nodes
            have one, each goes on from what the one before it made of it.

    Returns:
        What takes the place of the first output of `node`.
    """
    x, scale, bias, running_mean, running_var = (known.operand(node, index) for index in range(5))
    wide_x, wide_scale, wide_bias = (widen(op, value, value) for value in (x, scale, bias))
    count = _count(op, x, wide_x, scale)
    mean = _named(op, sum_by_channel(op, wide_x, x) / count, f"{node.name}/mean")
    centred = wide_x - along_channels(op, mean, x)
    var = _named(op, sum_by_channel(op, op.Mul(centred, centred), x) / count, f"{node.name}/variance")
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    operands = (wide_x, wide_scale, wide_bias, mean, var)
    y: ir.Value = op.node("BatchNormalization", *operands, epsilon=epsilon, shared=False)
    mark_normalization(op.nodes[-1], x)
    momentum = node.attributes.get_float("momentum", 0.9)
    _update(op, updates, running_mean, mean, momentum)
    _update(op, updates, running_var, var * _correction(op, count), momentum)
    return op.CastLike(y, x)


def _update(op: Builder, updates: Updates, statistic: ir.Value, of_batch: ir.Value, momentum: float) -> None:
    before = len(op.nodes)
    previous = widen(op, updates.get(statistic, statistic), statistic)
    fresh = widen(op, of_batch, statistic) * (1.0 - momentum)
    updates[statistic] = op.CastLike(previous * momentum + fresh, statistic)
    mark_update(op.nodes[before:], statistic)


def _count(op: Builder, x: ir.Value, wide_x: ir.Value, scale: ir.Value) -> float | ir.Value:
    """How many elements a channel has, at least one."""
    shape = known.static_shape(x)
    if shape is not None:
        return float(max(math.prod(shape[:1] + shape[2:]), 1))
    return op.Max(op.CastLike(op.Div(op.Size(x), op.Size(scale)), wide_x), 1.0)


def _correction(op: Builder, count: float | ir.Value) -> float | ir.Value:
    """n/(n − 1), which makes the variance of a sample an unbiased estimate; 1 for a single element."""
    if isinstance(count, float):
        return count / max(count - 1.0, 1.0)
    return op.Div(count, op.Max(count - 1.0, 1.0))


def _named(op: Builder, value: ir.Value, name: str) -> ir.Value:
    op.label(value, name)
    return value
