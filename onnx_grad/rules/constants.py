"""Operators that make tensors from shapes, numbers or chance."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, derivative_is_zero, gradient

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
        position = op.CastLike(op.Range(0, op.Squeeze(op.Shape(y)), 1), y)
        return op.reshape_like(op.ReduceSum(dy * position, keepdims=0), known.operand(node, 2))

    return lambda: op.reshape_like(op.ReduceSum(dy, keepdims=0), known.operand(node, 0)), None, ddelta
