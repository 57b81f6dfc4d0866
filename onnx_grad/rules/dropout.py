"""Dropout: the cotangent passes where the mask of the forward node lets the data pass."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen


@gradient("Dropout", frozen=(1, 2))
def dropout(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = x·mask/(1 − ratio) when training, else x: dX = dY·mask/(1 − ratio), else dY.

    The mask is the forward node's own, asked for where the node did not give it.
    """
    ratio, training = known.optional_operand(node, 1), known.optional_operand(node, 2)
    is_training = known.constant(training)
    if training is None or (is_training is not None and not is_training.any()):
        return dy
    mask = op.optional_output(node, 1, ir.DataType.BOOL)
    gain = op.scalar_like(2.0, dy)
    if ratio is not None:
        gain = op.CastLike(op.Reciprocal(1.0 - widen(op, ratio, dy)), dy)
    if is_training is None:
        gain = op.Where(training, gain, op.scalar_like(1.0, dy))
    return dy * op.CastLike(mask, dy) * gain
