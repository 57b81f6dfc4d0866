"""Convolutions: the batch is folded into the images, or into the channels where the filters differ."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import folded_into, merged
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import extents, product
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import by_channel, folded, unfolded
from onnx_grad.builder import Builder


@batching("Conv", "ConvTranspose")
def convolution(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Y = X ∗ W + b: all images with the same filters, or with filters of their own as groups of channels.

    Where both images and filters differ between the examples, the number of groups, which is the number of
    examples times that of one, has to be known.
    """
    if x.only(0):
        return folded(op, node, x, [0])
    rank = known.rank(known.operand(node, 0))
    if rank is None or not (isinstance(x.batch.size, int) or x.only(0, 2) or _shares_images(node, x)):
        return None
    if not x.is_batched(1):
        result = folded(op, node, x, [0])[0] if x.is_batched(0) else again(op, node, x[0], x[1])[0]
    elif _shares_images(node, x):
        result = _filters_as_channels(op, node, x)
    else:
        result = _examples_as_groups(op, node, x)
    return result if x.get(2) is None else result + by_channel(op, x, 2, rank)


def _shares_images(node: ir.Node, x: Operands) -> bool:
    """Whether all filters of all examples meet the same images."""
    return not x.is_batched(0) and node.attributes.get_int("group", 1) == 1


def _filters_as_channels(op: Builder, node: ir.Node, x: Operands) -> ir.Value:
    axis = 0 if node.op_type == "Conv" else 1
    (result,) = again(op, node, x[0], folded_into(op, x[1], axis))
    return _by_channels(op, node, x, result)


def _examples_as_groups(op: Builder, node: ir.Node, x: Operands) -> ir.Value:
    groups = node.attributes.get_int("group", 1) * int(x.batch.size)  # type: ignore[arg-type]
    images = folded_into(op, x.repeated(0), 1)
    (result,) = again(op, node, images, merged(op, x[1]), group=groups)
    return _by_channels(op, node, x, result)


def _by_channels(op: Builder, node: ir.Node, x: Operands, result: ir.Value) -> ir.Value:
    """The batch that has the channels of one example after another."""
    groups = node.attributes.get_int("group", 1)
    channels = extents(x[1], 1, 2) if node.op_type == "Conv" else [product([*extents(x[1], 2, 3), groups])]
    return unfolded(op, node.outputs[0], result, 1, [x.batch.size, *channels])
