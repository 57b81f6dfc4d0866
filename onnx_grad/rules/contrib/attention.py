"""Attention and MultiHeadAttention, composed of projections, scores, Softmax and sums of values.

The gradient computes the probabilities P again, from projections that it computes again, and reads no more of
the composition than dV = Pᵀ·dY, dP = dY·Vᵀ, dS = P∘(dP − rowsum(P∘dP)), dQ = scale·dS·K, dK = scale·dSᵀ·Q.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import composition
from onnx_grad.rules.contrib import heads
from onnx_grad.rules.contrib.attention_mask import causal_bias, padding_bias, undefined_mask
from onnx_grad.rules.contrib.domain import DOMAIN
from onnx_grad.rules.contrib.scores import biased, scores

_SHARED_BUFFER = (
    "its past and present states share a buffer that is written in place; give it the past state as it is, "
    "without past_sequence_length, as in a model exported for prompts"
)


def _unsupported_attention(node: ir.Node) -> str | None:
    if node.attributes.get_int("do_rotary", 0):
        return (
            "it rotates queries and keys by itself (do_rotary), for which ONNX Runtime defines no formula; "
            "use MultiHeadAttention with RotaryEmbedding, as the optimizer of transformers does"
        )
    if node.attributes.get_int("past_present_share_buffer", 0) or known.optional_operand(node, 6) is not None:
        return _SHARED_BUFFER
    return undefined_mask(known.optional_operand(node, 3))


@composition("Attention", domain=DOMAIN, refuses=_unsupported_attention)
def attention(op: Builder, node: ir.Node) -> Sequence[ir.Value | None]:
    """[Q K V] = X·W + b, and Y = softmax(scale·Q·Kᵀ + biases)·V for every head, past K and V in front."""
    bias, mask, past, added = (known.optional_operand(node, index) for index in range(2, 6))
    number = node.attributes.get_int("num_heads", 0)
    projected = _plus(op.MatMul(known.operand(node, 0), known.operand(node, 1)), bias)
    widths = _widths(node)
    split = {"num_outputs": 3} if widths is None else {}
    parts = op.Split(projected, None if widths is None else [*widths], axis=-1, outputs=3, **split)
    q, k, v = (
        heads.first(op, part, number, width) for part, width in zip(parts, widths or (None,) * 3, strict=True)
    )
    keys, values = k, v
    if past is not None:
        past_key, past_value = (
            op.Squeeze(part, [0]) for part in op.Split(past, axis=0, num_outputs=2, outputs=2)
        )
        keys, values = op.Concat(past_key, k, axis=2), op.Concat(past_value, v, axis=2)
    logits = scores(op, node, q, keys, None if widths is None else widths[0] // number)
    logits = biased(logits, _biases(op, node, mask, added, (q, keys, k)))
    sums = op.MatMul(op.Softmax(logits, axis=-1), values)
    y = heads.packed(op, sums, None if widths is None else widths[2])
    if widths is not None and widths[0] != widths[2]:
        return y, None
    return y, op.Concat(op.Unsqueeze(keys, [0]), op.Unsqueeze(values, [0]), axis=0)


def _widths(node: ir.Node) -> tuple[int, int, int] | None:
    """How wide queries, keys and values are, all heads together; `None` where that is not known."""
    given = node.attributes.get_ints("qkv_hidden_sizes", ())
    if given:
        q, k, v = given
        return q, k, v
    width = heads.last_dimension(known.operand(node, 1))
    return None if width is None else (width // 3,) * 3


def _biases(
    op: Builder,
    node: ir.Node,
    mask: ir.Value | None,
    added: ir.Value | None,
    operands: tuple[ir.Value, ir.Value, ir.Value],
) -> list[ir.Value]:
    """What is added to the scores of queries with all keys, of which the last ones are new."""
    queries, keys, new_keys = operands
    biases = [] if added is None else [added]
    padding = None if mask is None else padding_bias(op, node, mask, keys, queries)
    if padding is not None:
        biases.append(padding)
    if node.attributes.get_int("unidirectional", 0):
        biases.append(causal_bias(op, queries, keys, new_keys, queries))
    return biases


def _unsupported_multi_head(node: ir.Node) -> str | None:
    if any(known.optional_operand(node, index) is not None for index in (8, 9)):
        return _SHARED_BUFFER
    key = known.optional_operand(node, 1)
    if key is not None and known.rank(key) is None:
        return (
            "the rank of its keys is not known, and tells whether their heads lie next to each other, on an "
            "axis of their own, or together with the values; declare their shape in the model's value_info"
        )
    return undefined_mask(known.optional_operand(node, 4))


@composition("MultiHeadAttention", domain=DOMAIN, refuses=_unsupported_multi_head)
def multi_head_attention(op: Builder, node: ir.Node) -> Sequence[ir.Value]:
    """Y = softmax(scale·Q·Kᵀ + biases)·V for every head, with past keys and values in front.

    The other outputs are all keys, all values, and what the softmax is taken of.
    """
    mask, added = known.optional_operand(node, 4), known.optional_operand(node, 5)
    past_key, past_value = known.optional_operand(node, 6), known.optional_operand(node, 7)
    number = node.attributes.get_int("num_heads", 0)
    q, k, v = _by_head(op, node, number)
    keys = k if past_key is None else op.Concat(past_key, k, axis=2)
    values = v if past_value is None else op.Concat(past_value, v, axis=2)
    size = heads.last_dimension(known.operand(node, 0))
    if size is not None and known.optional_operand(node, 1) is not None:
        size = size // number
    logits = biased(scores(op, node, q, keys, size), _biases(op, node, mask, added, (q, keys, k)))
    y = heads.packed(op, op.MatMul(op.Softmax(logits, axis=-1), values))
    return y, keys, values, logits


def _by_head(op: Builder, node: ir.Node, number: int) -> Sequence[ir.Value]:
    """Queries, keys and values, each [batch, heads, sequence, size], with their biases added.

    Keys and values that have an axis of heads already come from elsewhere, and get no bias.
    """
    query, key, value = (known.optional_operand(node, index) for index in range(3))
    biases = _input_biases(op, node)
    if query is None or key is None:
        return _unpacked(op, known.operand(node, 0), 3, biases, number)
    q = heads.first(op, _plus(query, biases[0]), number, heads.last_dimension(query))
    if value is None:
        return q, *_unpacked(op, key, 2, biases[1:], number)
    if known.rank(key) == 4:
        return q, key, value
    k, v = (
        heads.first(op, _plus(x, bias), number, heads.last_dimension(x))
        for x, bias in ((key, biases[1]), (value, biases[2]))
    )
    return q, k, v


def _unpacked(
    op: Builder, packed: ir.Value, count: int, biases: Sequence[ir.Value | None], number: int
) -> list[ir.Value]:
    """The parts of [batch, sequence, heads, parts, size]."""
    parts = [op.Squeeze(part, [3]) for part in op.Split(packed, axis=3, num_outputs=count, outputs=count)]
    by_head = [None if bias is None else op.Reshape(bias, [number, -1]) for bias in biases]
    return [
        op.Transpose(_plus(part, bias), perm=[0, 2, 1, 3]) for part, bias in zip(parts, by_head, strict=True)
    ]


def _input_biases(op: Builder, node: ir.Node) -> Sequence[ir.Value | None]:
    """The biases of queries, keys and values, of which the last may have another width."""
    query, key, bias = (
        known.operand(node, 0),
        known.optional_operand(node, 1),
        known.optional_operand(node, 3),
    )
    if bias is None:
        return None, None, None
    if key is None:
        return op.Split(bias, axis=0, num_outputs=3, outputs=3)
    width, total = heads.last_dimension(query), known.static_shape(bias)
    if width is not None and total is not None:
        return op.Split(bias, [width, width, total[0] - 2 * width], axis=0, outputs=3)
    run_time = op.Shape(query, start=2)
    rest = op.Shape(bias) - run_time * 2
    return op.Split(bias, op.Concat(run_time, run_time, rest, axis=0), axis=0, outputs=3)


def _plus(x: ir.Value, bias: ir.Value | None) -> ir.Value:
    return x if bias is None else x + bias
