"""Col2Im, which adds overlapping blocks up to an image."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient


def _refusal(node: ir.Node) -> str | None:
    if _spatial_rank(node) is None:
        return "the number of its spatial axes is not known; declare the shape of its input `image_shape`"
    return None


@gradient("Col2Im", refuses=_refusal)
def col2im(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the columns of x, added up as blocks of an image: each column of dx is its block, read from dy."""
    rank = _spatial_rank(node) or 0
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank)
    if any(pads):
        dy = op.Pad(dy, [0, 0, *pads[:rank], 0, 0, *pads[rank:]])
    for axis in reversed(range(rank)):
        dy = op.Gather(dy, _positions(op, node, axis, pads[axis] + pads[rank + axis], rank), axis=2 + axis)
    # Axes so far: batch, channel, and for each spatial axis the place in the block and the block.
    places, blocks = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    return op.reshape_like(op.Transpose(dy, perm=[0, 1, *places, *blocks]), known.operand(node, 0))


def _positions(op: Builder, node: ir.Node, axis: int, padding: int, rank: int) -> ir.Value:
    """Positions along a padded spatial axis, of shape [places in a block, blocks]."""
    stride = node.attributes.get_ints("strides", (1,) * rank)[axis]
    dilation = node.attributes.get_ints("dilations", (1,) * rank)[axis]
    image = op.Gather(known.operand(node, 1), axis)
    block = op.Gather(known.operand(node, 2), axis)
    last = image + (padding + dilation - 1) - block * dilation
    starts = op.Range(0, last + 1, stride)
    offsets = op.Mul(op.Range(0, block, 1), dilation)
    return op.Unsqueeze(offsets, [1]) + starts


def _spatial_rank(node: ir.Node) -> int | None:
    """How many spatial axes there are."""
    image_shape = known.static_shape(known.operand(node, 1))
    if image_shape is not None:
        return math.prod(image_shape)
    for name, per_axis in (("pads", 2), ("strides", 1), ("dilations", 1)):
        if values := node.attributes.get_ints(name, ()):
            return len(values) // per_axis
    rank = known.rank(node.outputs[0])
    return None if rank is None else rank - 2
