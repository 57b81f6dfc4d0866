"""Products of quantised numbers: QLinearMatMul, QLinearConv, MatMulInteger, ConvInteger.

With `quantization="straight-through"`, each is what it stands for: its operands are dequantized, the product
is one of floats, and its result is quantized. A result that may be clipped is computed once more, in float32:
the integers that the forward node gives do not tell which of its elements are.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import composition
from onnx_grad.rules.quantization import CONVENTION, STRAIGHT_THROUGH, dequantized, in_float32


def _geometry(node: ir.Node) -> dict[str, Any]:
    """The attributes of a convolution."""
    return dict(node.attributes)


@composition("MatMulInteger", quantization=STRAIGHT_THROUGH, rounds=True, frozen=(2, 3))
def matmul_integer(op: Builder, node: ir.Node) -> ir.Value:
    """Y = (A − a)·(B − b), with a zero point for each row of A and each column of B, or for all."""
    a, b = known.operand(node, 0), known.operand(node, 1)
    return op.MatMul(
        dequantized(op, a, None, known.optional_operand(node, 2), axis=-2),
        dequantized(op, b, None, known.optional_operand(node, 3), axis=-1),
    )


@composition("ConvInteger", quantization=STRAIGHT_THROUGH, rounds=True, frozen=(2, 3))
def conv_integer(op: Builder, node: ir.Node) -> ir.Value:
    """y = (w − b) ⋆ (x − a), with one zero point a, and b for each channel or for all."""
    x, w = known.operand(node, 0), known.operand(node, 1)
    return op.Conv(
        dequantized(op, x, None, known.optional_operand(node, 2)),
        dequantized(op, w, None, known.optional_operand(node, 3), axis=0),
        **_geometry(node),
    )


def _by_more_than_rows(node: ir.Node) -> str | None:
    if (known.rank(known.operand(node, 6)) or 0) <= 1:
        return None
    return "the scale of its result has several axes, which is not supported; give one scale, or one a row"


@composition(
    "QLinearMatMul",
    frozen=(2, 5, 7),
    refuses=_by_more_than_rows,
    convention=CONVENTION,
    quantization=STRAIGHT_THROUGH,
    rounds=True,
)
def qlinear_matmul(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized A·B, with a scale and a zero point for each row of A, each column of B, or for all."""
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = (known.operand(node, i) for i in range(8))
    product = op.MatMul(
        dequantized(op, a, a_scale, a_zero, axis=-2), dequantized(op, b, b_scale, b_zero, axis=-1)
    )
    return op.QuantizeLinear(product, in_float32(op, y_scale), y_zero, axis=-2)


@composition(
    "QLinearConv", frozen=(2, 5, 7), convention=CONVENTION, quantization=STRAIGHT_THROUGH, rounds=True
)
def qlinear_conv(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized w ⋆ x + b·s, with the scale s of x times that of w, which may differ between channels."""
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = (known.operand(node, i) for i in range(8))
    bias = known.optional_operand(node, 8)
    y = op.Conv(
        dequantized(op, x, x_scale, x_zero),
        dequantized(op, w, w_scale, w_zero, axis=0),
        None if bias is None else in_float32(op, bias) * (x_scale * w_scale),
        **_geometry(node),
    )
    return op.QuantizeLinear(y, y_scale, y_zero)
