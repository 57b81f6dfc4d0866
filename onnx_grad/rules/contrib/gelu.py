"""Gelu and its relatives: exact, in an approximation, with a bias before it, and gated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, composition, gradient
from onnx_grad.rules.activations import gelu_slope, swish_slope, tanh_gelu_slope
from onnx_grad.rules.contrib.domain import DOMAIN

# The default of an attribute, written as the float32 number that it is.
_QUICK = 1.7020000219345093


@gradient("Gelu", domain=DOMAIN)
def gelu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x·Φ(x): dx = dy·(Φ(x) + x·φ(x)), with the normal distribution Φ and its density φ = Φ'."""
    return dy * gelu_slope(op, known.operand(node, 0))


@gradient("QuickGelu", domain=DOMAIN)
def quick_gelu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x·s with s = σ(α·x): dx = dy·(s + α·y·(1 − s))."""
    return dy * swish_slope(op, node, node.attributes.get_float("alpha", _QUICK))


@gradient("BiasGelu", domain=DOMAIN)
def bias_gelu(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = gelu(x + b): dx = dy·gelu'(x + b), db = Σ dx over where b was stretched."""
    x, bias = known.operand(node, 0), known.operand(node, 1)
    dx = dy * gelu_slope(op, x + bias)
    return dx, lambda: undo_broadcast(op, dx, bias, node.outputs[0])


@gradient("FastGelu", domain=DOMAIN)
def fast_gelu(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = ½·u·(1 + tanh(√(2/π)·(u + 0.044715·u³))), u = x + b: dx = dy·y'(u), db = Σ dx."""
    x, bias = known.operand(node, 0), known.optional_operand(node, 1)
    dx = dy * tanh_gelu_slope(op, x if bias is None else x + bias)
    if bias is None:
        return (dx,)
    return dx, lambda: undo_broadcast(op, dx, bias, node.outputs[0])


@composition("BiasSplitGelu", domain=DOMAIN)
def bias_split_gelu(op: Builder, node: ir.Node) -> ir.Value:
    """y = l·gelu(r), where l and r are the first and the second half of x + b along the last axis."""
    left, right = op.Split(known.operand(node, 0) + known.operand(node, 1), axis=-1, num_outputs=2, outputs=2)
    return left * (right * (op.Erf(right * math.sqrt(0.5)) * 0.5 + 0.5))
