"""Quantization: DequantizeLinear by its scale; rounding to integers stops the flow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import cast_like
from onnx_grad.registry import InputCotangent, gradient, refused

refused(
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    rounds=True,
    reason="it computes with integers, so its derivative is zero or undefined, and straight-through "
    "estimators are not offered; differentiate the model before it is quantized, or register a rule of "
    "your own",
)
refused(
    "BitCast",
    reason="the bits of a number are no differentiable function of it; use Cast to convert values, or cut "
    "the flow with stop=[…]",
)


@gradient("DequantizeLinear")
def dequantize_linear(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = (x − z)·s: ds = Σ dy·(x − z) over the elements that share s: all, a channel's, or a block's."""
    x, scale = known.operand(node, 0), known.operand(node, 1)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}

    def dscale() -> ir.Value:
        ones = op.Expand(op.scalar_like(1.0, scale), op.shape(scale))
        product = dy * op.DequantizeLinear(x, ones, *node.inputs[2:], **attributes)
        if known.rank(scale) == 0:
            return cast_like(op, op.ReduceSum(product, keepdims=0), scale)
        return cast_like(op, _sum_by_scale(op, product, scale, attributes), scale)

    return None, dscale


def _sum_by_scale(op: Builder, product: ir.Value, scale: ir.Value, attributes: Mapping[str, Any]) -> ir.Value:
    """Sums of the elements of `product` that share an element of `scale`, in float32.

    Which element of `scale` each one uses is found by dequantizing ones with the elements' positions as
    scales.
    """
    count = op.Size(scale)
    positions = op.reshape_like(op.Cast(op.Range(0, count, 1), to=ir.DataType.FLOAT), scale)
    ones = op.Expand(op.constant(1, ir.DataType.INT8), op.shape(product))
    granularity = {name: attributes[name] for name in ("axis", "block_size") if name in attributes}
    used = op.DequantizeLinear(ones, positions, **granularity)
    return op.reshape_like(
        op.ScatterElements(
            op.Expand(op.constant(0, ir.DataType.FLOAT), op.Reshape(count, [1])),
            op.Reshape(op.Cast(used, to=ir.DataType.INT64), [-1]),
            op.Reshape(op.Cast(product, to=ir.DataType.FLOAT), [-1]),
            reduction="add",
        ),
        scale,
    )
