"""Convolutions with more in them: FusedConv, NhwcConv, NhwcFusedConv."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import composition
from onnx_grad.rules.contrib.activation import activated, undefined_activation
from onnx_grad.rules.contrib.domain import DOMAIN


@composition("FusedConv", domain=DOMAIN, refuses=undefined_activation)
def fused_conv(op: Builder, node: ir.Node) -> ir.Value:
    """y = activation(w ⋆ x + b + z)."""
    return activated(op, node, _with_residual(node, _convolution(op, node, known.operand(node, 0))))


def _unknown_layout(node: ir.Node) -> str | None:
    if known.rank(known.operand(node, 0)) is None and known.rank(known.operand(node, 1)) is None:
        return (
            "the ranks of its image and of its weights are not known, so neither is which axis holds the "
            "channels; declare the shape of one of them in the model's value_info"
        )
    return undefined_activation(node)


@composition("NhwcConv", domain=DOMAIN, refuses=_unknown_layout)
@composition("NhwcFusedConv", domain=DOMAIN, refuses=_unknown_layout)
def nhwc_conv(op: Builder, node: ir.Node) -> ir.Value:
    """y = activation(w ⋆ x + b + z), where x, y and z have their channels on the last axis, and w has not."""
    x = known.operand(node, 0)
    rank = known.rank(x) or known.rank(known.operand(node, 1)) or 0
    channels_first = op.Transpose(x, perm=[0, rank - 1, *range(1, rank - 1)])
    y = op.Transpose(_convolution(op, node, channels_first), perm=[0, *range(2, rank), 1])
    return activated(op, node, _with_residual(node, y))


def _convolution(op: Builder, node: ir.Node, x: ir.Value) -> ir.Value:
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if not name.startswith("activation")
    }
    return op.Conv(x, known.operand(node, 1), known.optional_operand(node, 2), **attributes)


def _with_residual(node: ir.Node, y: ir.Value) -> ir.Value:
    z = known.optional_operand(node, 3)
    return y if z is None else y + z
