"""Operators on quantised numbers that ONNX Runtime's quantization tool writes: QLinearAdd, QGemm and others.

With `quantization="straight-through"`, each is what it stands for, as those in `quantized_products`; without
it, they are refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import Composition, Refusal, composition
from onnx_grad.rules.contrib.domain import DOMAIN
from onnx_grad.rules.quantization import (
    CONVENTION,
    STRAIGHT_THROUGH,
    dequantized,
    in_float32,
)


def _stands_for(op_type: str, refuses: Refusal | None = None) -> Callable[[Composition], Composition]:
    return composition(
        op_type,
        domain=DOMAIN,
        quantization=STRAIGHT_THROUGH,
        rounds=True,
        refuses=refuses,
        convention=CONVENTION,
    )


@_stands_for("QLinearAdd")
def qlinear_add(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized a + b."""
    return _quantized(op, node, _operand(op, node, 0) + _operand(op, node, 3), 6)


@_stands_for("QLinearMul")
def qlinear_mul(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized a·b."""
    return _quantized(op, node, _operand(op, node, 0) * _operand(op, node, 3), 6)


@_stands_for("QLinearWhere")
def qlinear_where(op: Builder, node: ir.Node) -> ir.Value:
    """z = quantized (condition ? x : y)."""
    chosen = op.Where(node.inputs[0], _operand(op, node, 1), _operand(op, node, 4))
    return _quantized(op, node, chosen, 7, like=1)


@_stands_for("QLinearSigmoid")
def qlinear_sigmoid(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized 1/(1 + e⁻ˣ)."""
    return _quantized(op, node, op.Sigmoid(_operand(op, node, 0)), 3)


@_stands_for("QLinearLeakyRelu")
def qlinear_leaky_relu(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized (x > 0 ? x : α·x)."""
    alpha = node.attributes.get_float("alpha", 0.009999999776482582)
    return _quantized(op, node, op.LeakyRelu(_operand(op, node, 0), alpha=alpha), 3)


def _over_several_axes(node: ir.Node) -> str | None:
    if node.attributes.get_int("opset") >= 13:
        return None
    return "its softmax is that of opsets below 13, over several axes at once; convert the model to opset 13"


@_stands_for("QLinearSoftmax", refuses=_over_several_axes)
def qlinear_softmax(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized softmax of x along an axis."""
    axis = node.attributes.get_int("axis", -1)
    return _quantized(op, node, op.Softmax(_operand(op, node, 0), axis=axis), 3)


def _channels_last(node: ir.Node) -> str | None:
    if not node.attributes.get_int("channels_last", 0):
        return None
    return "its channels come last, which is not supported; quantize the model without ONNX Runtime's layouts"


@_stands_for("QLinearAveragePool", refuses=_channels_last)
def qlinear_average_pool(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized means of windows of x."""
    geometry: dict[str, Any] = {k: value for k, value in node.attributes.items() if k != "channels_last"}
    return _quantized(op, node, op.AveragePool(_operand(op, node, 0), **geometry), 3)


@_stands_for("QLinearGlobalAveragePool", refuses=_channels_last)
def qlinear_global_average_pool(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized means of the channels of x."""
    return _quantized(op, node, op.GlobalAveragePool(_operand(op, node, 0)), 3)


@_stands_for("QLinearConcat")
def qlinear_concat(op: Builder, node: ir.Node) -> ir.Value:
    """y = quantized [a, b, …] along an axis."""
    operands = [_operand(op, node, first) for first in range(2, len(node.inputs), 3)]
    return _quantized(op, node, op.Concat(*operands, axis=node.attributes.get_int("axis")), 0, like=2)


@_stands_for("QGemm")
def qgemm(op: Builder, node: ir.Node) -> ir.Value:
    """Y = quantized α·(A'·B' + C·a·b) with the scales a, b of A and B; of floats if Y has no scale."""
    a_scale, b_scale = known.operand(node, 1), known.operand(node, 4)
    transposed = node.attributes.get_int("transB", 0)
    c = known.optional_operand(node, 6)
    product = op.Gemm(
        _operand(op, node, 0),
        _operand(op, node, 3, axis=-2 if transposed else -1),
        None if c is None else in_float32(op, c) * (a_scale * b_scale),
        alpha=node.attributes.get_float("alpha", 1.0),
        beta=node.attributes.get_float("alpha", 1.0),
        transA=node.attributes.get_int("transA", 0),
        transB=transposed,
    )
    return product if known.optional_operand(node, 7) is None else _quantized(op, node, product, 7)


@_stands_for("MatMulIntegerToFloat")
def matmul_integer_to_float(op: Builder, node: ir.Node) -> ir.Value:
    """Y = A·B + bias, of floats."""
    a, b, a_scale, b_scale = (known.operand(node, index) for index in range(4))
    a_zero, b_zero, bias = (known.optional_operand(node, index) for index in range(4, 7))
    product = op.MatMul(
        dequantized(op, a, a_scale, a_zero, axis=-2), dequantized(op, b, b_scale, b_zero, axis=-1)
    )
    return product if bias is None else product + bias


@_stands_for("DynamicQuantizeMatMul")
def dynamic_quantize_matmul(op: Builder, node: ir.Node) -> ir.Value:
    """Y = A·B + bias, where A is quantized on the way, to a range that clips nothing."""
    b, b_scale = known.operand(node, 1), known.operand(node, 2)
    b_zero, bias = known.optional_operand(node, 3), known.optional_operand(node, 4)
    product = op.MatMul(known.operand(node, 0), dequantized(op, b, b_scale, b_zero, axis=-1))
    return product if bias is None else product + bias


def _operand(op: Builder, node: ir.Node, first: int, axis: int = 1) -> ir.Value:
    """What the inputs from `first` on stand for: levels, their scale, and their zero point, if any."""
    levels, scale = known.operand(node, first), known.operand(node, first + 1)
    return dequantized(op, levels, scale, known.optional_operand(node, first + 2), axis)


def _quantized(op: Builder, node: ir.Node, value: ir.Value, first: int, like: int = 0) -> ir.Value:
    """`value` by the scale at `first` and the zero point behind it, or 0 in the type of an operand."""
    zero = known.optional_operand(node, first + 1)
    if zero is None:
        zero = op.constant(0, known.operand(node, like).dtype or ir.DataType.UINT8)
    return op.QuantizeLinear(value, known.operand(node, first), zero)
