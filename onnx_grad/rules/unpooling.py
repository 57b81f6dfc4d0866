"""Putting elements back where a maximum pooling found them: MaxUnpool."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_flat, count, flat_positions
from onnx_grad.rules.windows import TO_THE_END

# Every integer below is a float32.
_EXACT = 1 << 24


@gradient("MaxUnpool")
def max_unpool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = zeros with each element of x at its position among all elements: dx = dy at these positions.

    With `output_shape`, ONNX Runtime 1.32 counts positions through y, but onnx's reference evaluator through
    the shape that the attributes imply, which then is a corner of y. So the elements of x are numbered from
    1, and dy is read where these numbers appear, whichever way that is.
    """
    x = known.operand(node, 0)
    if known.optional_operand(node, 2) is None:
        return op.Gather(op.Reshape(dy, [-1]), known.operand(node, 1))
    where = _unpooled(op, node, flat_positions(op, x) + 1)
    # The number 0 stands where nothing came from x.
    zeros = op.Expand(op.scalar_like(0.0, dy), count(op, x) + 1)
    return op.reshape_like(op.Slice(add_flat(op, dy, where, zeros), [1], [TO_THE_END], [0]), x)


def _unpooled(op: Builder, node: ir.Node, numbers: ir.Value) -> ir.Value:
    """What `node` makes of whole `numbers` below 2⁴⁸, in float32, for which ONNX Runtime has the kernel."""
    shape = known.static_shape(known.operand(node, 0))
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}

    def unpooled(small: ir.Value) -> ir.Value:
        values = op.Cast(small, to=ir.DataType.FLOAT)
        return op.Cast(op.MaxUnpool(values, *node.inputs[1:], **attributes), to=ir.DataType.INT64)

    if shape is not None and math.prod(shape) < _EXACT:
        return unpooled(numbers)
    high = numbers / _EXACT
    return unpooled(high) * _EXACT + unpooled(numbers - high * _EXACT)
