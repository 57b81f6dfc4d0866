"""Convolutions: the batch is folded into the images, or into the channels where the filters differ."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.batching.axes import merged
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import extents, product
from onnx_grad.batching.folds import folded_into, lengths_of
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.columns import by_columns
from onnx_grad.batching.rules.folding import by_channel, folded, unfolded
from onnx_grad.builder import Builder


@batching("Conv", "ConvTranspose")
def convolution(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Y = X ∗ W + b: all images with the same filters, or with filters of their own.

    Where both images and filters differ between the examples, these are groups of channels; the number of
    groups has to be known, so that without a fixed number of examples it is a product with the columns of the
    images. A transposed convolution then runs in a `Scan`.
    """
    if x.only(0):
        return folded(op, node, x, [0])
    if not x.is_batched(1):
        return _with_biases(op, node, x)
    if not x.is_batched(0) and node.attributes.get_int("group", 1) == 1:
        return _filters_as_channels(op, node, x)
    if isinstance(x.batch.size, int):
        return _examples_as_groups(op, node, x, x.batch.size)
    return _with_columns(op, node, x)


def _with_biases(op: Builder, node: ir.Node, x: Operands) -> ir.Value | None:
    """Only the bias differs between the examples, and the images may."""
    rank = x.rank(0)
    if rank is None:
        return None
    if x.is_batched(0):
        (plain,) = again(op, node, folded_into(op, x[0], 0), x[1])
        plain = unfolded(op, node.outputs[0], plain, 0, lengths_of(x[0], 0))
    else:
        (plain,) = again(op, node, x[0], x[1])
    return plain + by_channel(op, x, 2, rank)


def _filters_as_channels(op: Builder, node: ir.Node, x: Operands) -> ir.Value:
    """All filters of all examples meet the same images."""
    axis = 0 if node.op_type == "Conv" else 1
    (result,) = again(op, node, x[0], folded_into(op, x[1], axis), _biases(op, x))
    return _by_channels(op, node, x, result)


def _examples_as_groups(op: Builder, node: ir.Node, x: Operands, size: int) -> ir.Value:
    """The channels of one example are a group."""
    groups = node.attributes.get_int("group", 1) * size
    images = folded_into(op, x.repeated(0), 1)
    (result,) = again(op, node, images, merged(op, x[1]), _biases(op, x), group=groups)
    return _by_channels(op, node, x, result)


def _biases(op: Builder, x: Operands) -> ir.Value | None:
    """Those of one example after another."""
    return None if x.get(2) is None else merged(op, x.repeated(2))


def _by_channels(op: Builder, node: ir.Node, x: Operands, result: ir.Value) -> ir.Value:
    """The batch that has the channels of one example after another."""
    groups = node.attributes.get_int("group", 1)
    channels = extents(x[1], 1, 2) if node.op_type == "Conv" else [product([*extents(x[1], 2, 3), groups])]
    return unfolded(op, node.outputs[0], result, 1, [x.batch.size, *channels])


def _with_columns(op: Builder, node: ir.Node, x: Operands) -> ir.Value | None:
    rank = x.rank(0)
    if rank is None or node.op_type != "Conv":
        return None
    result = by_columns(op, node, x)
    return result if result is None or x.get(2) is None else result + by_channel(op, x, 2, rank)
