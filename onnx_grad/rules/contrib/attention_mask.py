"""Which keys the queries of Attention and MultiHeadAttention attend to, as numbers added to the scores.

Padding adds the attribute `mask_filter_value` and so leaves a row without any key as it would be without the
mask; causality adds −∞.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.contrib.scores import bias_where, positions


def undefined_mask(mask: ir.Value | None) -> str | None:
    """Why a mask cannot be understood, if it cannot."""
    if mask is None or known.rank(mask) in (1, 2, 3):
        return None
    if known.rank(mask) is None:
        return (
            "the rank of its mask is not known, and tells whether it is of lengths, of keys, or of pairs of "
            "queries and keys; declare its shape in the model's value_info"
        )
    return (
        "its mask has four axes, as in Megatron's GPT-2; give it a mask of the shape [batch, queries, keys] "
        "that holds the rows and columns in use"
    )


def padding_bias(
    op: Builder, node: ir.Node, mask: ir.Value, keys: ir.Value, like: ir.Value
) -> ir.Value | None:
    """What a mask of integers adds to the scores: [batch, 1, queries or 1, keys], or nothing at all.

    Args:
        op: Builds the nodes.
        node: The fused node.
        mask: Positive numbers for the keys that count, [batch, keys] or [batch, queries, keys]; or how many
            keys count, [batch]; or the first key that does not, followed by the first that does, [2·batch].
            Behind [batch] lengths there may also be the [2·batch + 2] offsets that kernels for packed input
            need. A second axis of length 1 means that there is no mask.
        keys: All keys, past ones included: [batch, heads, keys, size].
        like: A value of the dtype of the scores.
    """
    rank, dims = known.rank(mask), known.dimensions(mask)
    if rank == 2 and dims is not None and dims[1] == 1:
        return None
    if rank == 1:
        allowed = op.Unsqueeze(_between(op, node, mask, keys), [1, 2])
    else:
        allowed = op.Unsqueeze(op.Greater(mask, 0), [1, 2] if rank == 2 else [1])
    return bias_where(op, allowed, node.attributes.get_float("mask_filter_value", -10000.0), like)


def _between(op: Builder, node: ir.Node, mask: ir.Value, keys: ir.Value) -> ir.Value:
    """Whether a key stands before the end and, where there are starts, not before the start."""
    batch = op.Shape(keys, end=1)
    bounds = op.Cast(mask, to=ir.DataType.INT64)
    key = positions(op, op.Shape(keys, start=2, end=3))
    end = op.Unsqueeze(op.Slice(bounds, [0], batch, [0]), [1])
    lengths, inputs = known.dimensions(mask), known.dimensions(known.operand(node, 0))
    if lengths is not None and inputs is not None and known.same_dimension(lengths[0], inputs[0]):
        return op.Less(key, end)
    has_starts = op.Cast(op.Equal(op.Shape(mask), batch * 2), to=ir.DataType.INT64)
    # Zeros stand in for starts that are not there.
    zeros = op.Expand(op.constant([0], ir.DataType.INT64), batch)
    starts = op.Slice(op.Concat(bounds, zeros, axis=0), batch, batch * 2, [0])
    return op.And(op.Less(key, end), op.GreaterOrEqual(key, op.Unsqueeze(starts * has_starts, [1])))


def causal_bias(
    op: Builder, queries: ir.Value, keys: ir.Value, new_keys: ir.Value, like: ir.Value
) -> ir.Value:
    """−∞ where a key comes after the query: [queries, keys].

    The last query attends to every key also where there are more new keys than queries, as in the kernel of
    ONNX Runtime's CPU provider.

    Args:
        op: Builds the nodes.
        queries: [batch, heads, queries, size].
        keys: All keys, past ones included, which stand before the first query.
        new_keys: The keys without the past ones.
        like: A value of the dtype of the scores.
    """
    count, total = op.Shape(queries, start=2, end=3), op.Shape(keys, start=2, end=3)
    past = total - op.Shape(new_keys, start=2, end=3)
    before_last = op.Range(op.Squeeze(past), op.Squeeze(past + count) - 1, 1)
    last_seen = op.Concat(before_last, total - 1, axis=0)
    allowed = op.LessOrEqual(positions(op, total), op.Unsqueeze(last_seen, [1]))
    return bias_where(op, allowed, -np.inf, like)
