"""Col2Im, which adds overlapping blocks up to an image."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient

# As many spatial axes as an image is taken to have where nothing tells; a graph with more fails when it runs.
_MOST_SPATIAL_AXES = 3


@gradient("Col2Im")
def col2im(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the columns of x, added up as blocks of an image: each column of dx is its block, read from dy."""
    image, block, rank = known.operand(node, 1), known.operand(node, 2), _spatial_rank(node)
    if rank is None:
        # Axes of length 1 come first, along which a block is as long as the image.
        rank = _MOST_SPATIAL_AXES
        ones = op.Expand(op.constant(1, ir.DataType.INT64), rank - op.Shape(image))
        image, block = op.Concat(ones, image, axis=0), op.Concat(ones, block, axis=0)
        dy = op.Reshape(dy, op.Concat(op.Shape(dy, end=2), image, axis=0), allowzero=1)
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank)
    strides = node.attributes.get_ints("strides", (1,) * rank)
    dilations = node.attributes.get_ints("dilations", (1,) * rank)
    if any(pads):
        dy = op.Pad(dy, [0, 0, *pads[:rank], 0, 0, *pads[rank:]])
    for axis in reversed(range(rank)):
        size, dilation = op.Gather(block, axis), dilations[axis]
        padding = pads[axis] + pads[rank + axis]
        offsets = op.Range(0, size, 1) * dilation
        # The last block starts where its last pixel, (size − 1)·dilation further on, is the last one.
        starts = op.Range(0, op.Gather(image, axis) + (padding + dilation) - size * dilation, strides[axis])
        dy = op.Gather(dy, op.Unsqueeze(offsets, [1]) + starts, axis=2 + axis)
    # Axes so far: batch, channel, and for each spatial axis the place in the block and the block.
    places, blocks = range(2, 2 + 2 * rank, 2), range(3, 3 + 2 * rank, 2)
    return op.reshape_like(op.Transpose(dy, perm=[0, 1, *places, *blocks]), known.operand(node, 0))


def _spatial_rank(node: ir.Node) -> int | None:
    """How many spatial axes there are; `None` when nothing tells."""
    for index in (1, 2):
        counted = known.static_shape(known.operand(node, index))
        if counted is not None:
            return counted[0]
    for name, per_axis in (("pads", 2), ("strides", 1), ("dilations", 1)):
        if values := node.attributes.get_ints(name, ()):
            return len(values) // per_axis
    rank = known.rank(node.outputs[0])
    return None if rank is None else rank - 2
