"""Operators that make tensors from shapes, numbers or chance."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, derivative_is_zero, gradient
from onnx_grad.rules.precision import widen

derivative_is_zero("Constant", "ConstantOfShape", "EyeLike", reason="the output depends on no float value")
derivative_is_zero(
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    reason="the output depends on chance only",
)
derivative_is_zero(
    "Bernoulli", "Multinomial", reason="the output is drawn at random from a discrete set, as in PyTorch"
)


@gradient("Range", frozen=(1,))
def range_(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """yᵢ = start + i·delta: d start = Σ dy, d delta = Σ i·dy; the limit decides only how many there are."""
    (y,) = node.outputs

    def ddelta() -> ir.Value:
        wide_dy = widen(op, dy, dy)
        position = op.CastLike(op.Range(0, op.Squeeze(op.Shape(y)), 1), wide_dy)
        total = op.CastLike(op.ReduceSum(wide_dy * position, keepdims=0), y)
        return op.reshape_like(total, known.operand(node, 2))

    return lambda: op.reshape_like(op.ReduceSum(dy, keepdims=0), known.operand(node, 0)), None, ddelta
