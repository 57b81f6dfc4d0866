"""Normalization over the last axis, of sums and of embeddings: the relatives of LayerNormalization."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, composition, gradient
from onnx_grad.rules.contrib.domain import DOMAIN
from onnx_grad.rules.layer_normalization import Layer, rms_cotangents

# The default of an attribute, written as the float32 number that it is.
_EPSILON = 9.999999960041972e-13

_SUM = 3  # the output of the Skip… operators that holds what they normalize


@gradient("SimplifiedLayerNormalization")
def simplified_layer_normalization(
    op: Builder, node: ir.Node, dy: ir.Value | None, d_inverse: ir.Value | None
) -> Sequence[InputCotangent]:
    """Y = scale·x·r with r = 1/√(mean(x²) + ε): dX = r·(g − x·r²·mean(g·x)) with g = dY·scale.

    ONNX Runtime has this operator in the default domain, though the specification has not.
    """
    layer = Layer.of(op, node)
    if layer.x.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        r = op.optional_output(node, 1, ir.DataType.FLOAT)
    else:
        r = layer.inverse_root_mean_square(layer.wide(layer.x))
    return rms_cotangents(layer, r, dy, d_inverse)


def _mean_is_used(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and node.outputs[1].name:
        return "its output 1 has no defined content; leave that output out of the model"
    return None


@gradient("SkipSimplifiedLayerNormalization", domain=DOMAIN, refuses=_mean_is_used)
def skip_simplified_layer_normalization(
    op: Builder,
    node: ir.Node,
    dy: ir.Value | None,
    _: ir.Value | None,
    d_inverse: ir.Value | None,
    d_sum: ir.Value | None,
) -> Sequence[InputCotangent]:
    """Y = γ·s·r with s = x + skip + b, r = 1/√(mean(s²) + ε): dX = ds + r·(g − s·r²·mean(g·s)), g = dY·γ."""
    gamma = known.operand(node, 2)
    total = _sum(op, node, known.optional_operand(node, 3))
    layer = Layer(op, total, gamma, node.outputs[0], -1, node.attributes.get_float("epsilon", _EPSILON))
    normalized: Sequence[InputCotangent] = ()
    if dy is not None or d_inverse is not None:
        normalized = rms_cotangents(layer, layer.inverse_root_mean_square(layer.wide(total)), dy, d_inverse)

    @functools.cache
    def d_total() -> ir.Value:
        parts = [built for part in normalized[:1] if callable(part) and (built := part()) is not None]
        return functools.reduce(operator.add, parts if d_sum is None else [*parts, d_sum])

    def stretched(index: int) -> ir.Value:
        return undo_broadcast(op, d_total(), known.operand(node, index), total)

    d_gamma = normalized[1] if len(normalized) > 1 else None
    cotangents = (d_total, functools.partial(stretched, 1), d_gamma, functools.partial(stretched, 3))
    return cotangents[: len(node.inputs)]


@composition("SkipLayerNormalization", domain=DOMAIN)
def skip_layer_normalization(op: Builder, node: ir.Node) -> Sequence[ir.Value]:
    """Y = γ·(s − mean(s))·r + β with s = x + skip + b and r = 1/√(variance(s) + ε)."""
    total = _written_out(op, node, known.optional_operand(node, 4))
    _own_sum(op, node)
    gamma, beta = known.operand(node, 2), known.optional_operand(node, 3)
    epsilon = node.attributes.get_float("epsilon", _EPSILON)
    return (*op.LayerNormalization(total, gamma, beta, epsilon=epsilon, outputs=3), total)


@composition("EmbedLayerNormalization", domain=DOMAIN)
def embed_layer_normalization(op: Builder, node: ir.Node) -> Sequence[ir.Value | None]:
    """Y = γ·(s − mean(s))·r + β, where s is the sum of a word's, a position's and a segment's embedding."""
    words, segments = known.operand(node, 0), known.optional_operand(node, 1)
    positions, positional = known.optional_operand(node, 8), known.operand(node, 3)
    if positions is None:
        embedded = op.Slice(positional, [0], op.Shape(words, start=1), [0])
    else:
        embedded = op.Gather(positional, positions)
    total = op.Gather(known.operand(node, 2), words) + embedded
    if segments is not None:
        total = total + op.Gather(known.operand(node, 4), segments)
    gamma, beta = known.operand(node, 5), known.operand(node, 6)
    y = op.LayerNormalization(total, gamma, beta, epsilon=node.attributes.get_float("epsilon", _EPSILON))
    return y, None, total


def _sum(op: Builder, node: ir.Node, bias: ir.Value | None) -> ir.Value:
    """x + skip + b: the node's own output where its type is known, so that it is not computed twice."""
    own = _own_sum(op, node)
    return _written_out(op, node, bias) if own is None else own


def _own_sum(op: Builder, node: ir.Node) -> ir.Value | None:
    x = known.operand(node, 0)
    if x.dtype is None:
        return None
    total = op.optional_output(node, _SUM, x.dtype)
    if total.shape is None:
        total.shape = x.shape
    return total


def _written_out(op: Builder, node: ir.Node, bias: ir.Value | None) -> ir.Value:
    total = op.Add(known.operand(node, 0), known.operand(node, 1))
    return total if bias is None else total + bias
