"""Normalisations: of each image, or of each example; scales that differ between examples come after it."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import aligned_to, merged, rank_of, shifted
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import concatenated, extents
from onnx_grad.batching.folds import folded_into, lengths_of
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import by_channel, folded, unfolded
from onnx_grad.builder import Builder


@batching("BatchNormalization")
def batch_normalization(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = s·(x − μ)/√(σ² + ε) + b by channel.

    In training, μ and σ² are those of the N images of one example: the batch is folded into the channels.
    """
    rank = known.rank(known.operand(node, 0))
    if rank is not None and rank < 2:
        return None
    if x.only(0) and not node.attributes.get_int("training_mode", 0):
        return folded(op, node, x, [0])
    return _by_channels(op, node, x)


@batching("InstanceNormalization")
def instance_normalization(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The same with μ and σ² of each channel of each image."""
    return folded(op, node, x, [0]) if x.only(0) else _by_channels(op, node, x)


def _by_channels(op: Builder, node: ir.Node, x: Operands) -> list[ir.Value]:
    """With the batch folded into the channels, and so into what there is one of for each channel."""
    images = x.repeated(0)
    lengths = lengths_of(images, 1)
    by_channel = [merged(op, x.repeated(index)) for index in range(1, len(x))]
    first, *rest = again(op, node, folded_into(op, images, 1), *by_channel)
    result = unfolded(op, node.outputs[0], first, 1, lengths)
    return [result, *(unfolded(op, node.outputs[i + 1], r, 0, lengths) for i, r in enumerate(rest))]


@batching("GroupNormalization")
def group_normalization(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The same with μ and σ² of each group of channels of each image."""
    if x.only(0):
        return folded(op, node, x, [0])
    rank = x.rank(0)
    if op.opset < 21 or rank is None:
        return None  # Before opset 21, there is one scale for each group.
    plain = [op.Expand(op.scalar_like(n, x[1]), concatenated(op, extents(x[1], -1))) for n in (1.0, 0.0)]
    if x.is_batched(0):
        (normal,) = again(op, node, folded_into(op, x[0], 0), *plain)
        result = unfolded(op, node.outputs[0], normal, 0, lengths_of(x[0], 0))
    else:
        (result,) = again(op, node, x[0], *plain)
    return result * by_channel(op, x, 1, rank) + by_channel(op, x, 2, rank)


@batching("LayerNormalization", "RMSNormalization")
def layer_normalization(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = s·(x − μ)/σ + b, with μ and σ of the last axes of each example."""
    axis = node.attributes.get_int("axis", -1)
    if x.only(0):
        return again(op, node, *x.all(), axis=shifted(axis))
    batched, rank = x.is_batched(0), rank_of(op, x, 0)
    shape = concatenated(op, extents(x[1], 1 if x.is_batched(1) else 0))
    ones = op.Expand(op.scalar_like(1.0, x[1]), shape)
    first, *rest = again(op, node, x[0], ones, axis=shifted(axis) if batched else axis)
    result = first * aligned_to(op, x, 1, rank)
    if x.get(2) is not None:
        result = result + aligned_to(op, x, 2, rank)
    return [result, *(r if batched else x.batch.repeated(op, r) for r in rest)]


@batching("MeanVarianceNormalization")
def mean_variance_normalization(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = (x − μ)/σ along axes: of images, along all but that of the channels, where none are given."""
    axes = node.attributes.get_ints("axes", (0, 2, 3))
    return again(op, node, x[0], axes=[shifted(axis) for axis in axes])
