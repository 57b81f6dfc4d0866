"""GroupQueryAttention: several heads of queries share a head of keys, most of which come from a cache.

A sequence of a batch holds T tokens after the node has run, of which the last ones are the node's queries and
new keys, and P = T − (new keys) stand in the cache, wherever that is longer. Attention does not depend on the
order of the keys, so the scores are taken with [cache, new keys] as they are given, and a mask that knows the
position of each; only the outputs `present_key` and `present_value` put the new keys at their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import composition
from onnx_grad.rules.contrib import heads
from onnx_grad.rules.contrib.domain import DOMAIN
from onnx_grad.rules.contrib.rotary_embedding import rotated
from onnx_grad.rules.contrib.scores import bias_where, biased, positions, scores

# Behind every position that a mask compares with.
_NOWHERE = 2**31

_ADDED, _SINK, _QUERY_LENGTHS = 10, 11, 16


def _unsupported(node: ir.Node) -> str | None:
    if node.attributes.get_int("sliding_window_cache", 0):
        return (
            "its cache is a sliding window (sliding_window_cache), from which it removes old keys; give it a "
            "cache of full length, with local_window_size as it is"
        )
    quantized = any(
        node.attributes.get_string(name, "NONE") != "NONE" for name in ("k_quant_type", "v_quant_type")
    )
    if quantized:
        return "its cache is quantised; give it a cache of the type of the queries (k_quant_type = NONE)"
    if len(node.outputs) > 3 and node.outputs[3].name:
        return "its output 'output_qk' is not differentiated; leave that output out of the model"
    return None


@composition("GroupQueryAttention", domain=DOMAIN, refuses=_unsupported)
def group_query_attention(op: Builder, node: ir.Node) -> Sequence[ir.Value | None]:
    """Y = softmax(softcap(scale·Q·Kᵀ) + biases)·V for every head, over the cache and the new keys."""
    call = _Call(op, node)
    q, k, v = call.operands()
    layout = call.layout(q, k)
    if node.attributes.get_int("do_rotary", 0):
        q, k = (call.rotated(x, at) for x, at in ((q, layout.queries), (k, layout.new_keys)))
    keys, values = call.with_cache(3, k), call.with_cache(4, v)
    logits = call.capped(call.ungrouped(scores(op, node, call.grouped(q), keys, call.size), q))
    mask = bias_where(op, call.allowed(layout), -np.inf, q)
    logits = biased(logits, [*call.added_bias(layout), mask])
    y = call.ungrouped(op.MatMul(call.grouped(call.softmax(logits)), values), q)
    width = None if call.size is None else call.size * call.number
    return heads.packed(op, y, width), call.present(layout, 3, k), call.present(layout, 4, v)


@dataclass(frozen=True)
class _Layout:
    """Positions in the sequences of a batch, [batch or 1, …].

    Attributes:
        queries: Of the queries.
        new_keys: Of the new keys.
        keys: Of all keys that the scores are taken with; far behind where there is nothing in the cache.
    """

    queries: ir.Value
    new_keys: ir.Value
    keys: ir.Value


class _Call:
    """A node, and the parts that it is composed of."""

    def __init__(self, op: Builder, node: ir.Node) -> None:
        self.op, self.node = op, node
        self.number = node.attributes.get_int("num_heads", 0)
        self.key_number = node.attributes.get_int("kv_num_heads", 0)
        self.is_causal = bool(node.attributes.get_int("causal", 1))
        self.window = node.attributes.get_int("local_window_size", -1)

    def operand(self, index: int) -> ir.Value | None:
        return known.optional_operand(self.node, index)

    @cached_property
    def size(self) -> int | None:
        """The length of a head, where it is known."""
        width = heads.last_dimension(known.operand(self.node, 0))
        shared = 2 * self.key_number if self.operand(1) is None else 0
        return None if width is None else width // (self.number + shared)

    def operands(self) -> Sequence[ir.Value]:
        """Queries, new keys and new values, [batch, heads, sequence, size], the first two normalized."""
        op, query, key, value = self.op, known.operand(self.node, 0), self.operand(1), self.operand(2)
        numbers = self.number, self.key_number, self.key_number
        if key is not None and value is not None:
            q, k, v = (heads.first(op, x, n) for x, n in zip((query, key, value), numbers, strict=True))
        else:
            packed = heads.first(op, query, sum(numbers))
            q, k, v = op.Split(packed, [*numbers], axis=1, outputs=3)
        return self._normalized(q, "q", 14), self._normalized(k, "k", 15), v

    def _normalized(self, x: ir.Value, name: str, index: int) -> ir.Value:
        """Each head divided by its root mean square, where there are weights to multiply it with then."""
        op, weight, attributes = self.op, self.operand(index), self.node.attributes
        if weight is None:
            return x
        epsilon = attributes.get_float(
            f"{name}_norm_epsilon", attributes.get_float("qk_norm_epsilon", 9.999999974752427e-07)
        )
        return x * op.Reciprocal(op.Sqrt(op.ReduceMean(x * x, [-1], keepdims=1) + epsilon)) * weight

    def layout(self, q: ir.Value, k: ir.Value) -> _Layout:
        """The positions of queries and keys."""
        op, cache = self.op, self.operand(3)
        query, key = (positions(op, op.Shape(x, start=2, end=3)) for x in (q, k))
        if cache is None:
            queries, keys = (op.Unsqueeze(position, [0]) for position in (query, key))
            return _Layout(queries, keys, keys)
        before_queries, before_keys = (self._cached(x) for x in (q, k))
        new_keys = before_keys + key
        slot = positions(op, op.Shape(cache, start=2, end=3))
        in_cache = op.Where(op.Less(slot, before_keys), slot, _NOWHERE)
        return _Layout(before_queries + query, new_keys, op.Concat(in_cache, new_keys, axis=1))

    @cached_property
    def _lengths(self) -> ir.Value:
        """How many tokens each sequence holds, [batch, 1]."""
        lengths = _int64(self.op, known.operand(self.node, 5)) + 1
        return self.op.Reshape(lengths, [-1, 1])

    def _cached(self, new: ir.Value) -> ir.Value:
        """How many tokens of each sequence come before the `new` ones, [batch, 1]."""
        op, given = self.op, self.operand(_QUERY_LENGTHS)
        if given is not None:
            return self._lengths - op.Reshape(_int64(op, given), [-1, 1])
        return op.Max(self._lengths - op.Shape(new, start=2, end=3), 0)

    def rotated(self, x: ir.Value, at: ir.Value) -> ir.Value:
        """`x` rotated by the angles of its positions."""
        op, given = self.op, self.operand(9)
        cos, sin = known.operand(self.node, 7), known.operand(self.node, 8)
        if given is not None:
            at = self._given_positions(given, x)
        # Padding may lie behind the last position that there is an angle for.
        at = op.Min(at, op.Shape(cos, end=1) - 1)
        angles = [op.Unsqueeze(op.Gather(cache, at), [1]) for cache in (cos, sin)]
        half = heads.last_dimension(cos)
        everything = half is not None and self.size == 2 * half
        interleaved = bool(self.node.attributes.get_int("rotary_interleaved", 0))
        return rotated(op, x, angles[0], angles[1], interleaved, everything)

    def _given_positions(self, given: ir.Value, x: ir.Value) -> ir.Value:
        """For a prompt, all from the first one on, and otherwise what is given."""
        op = self.op
        count, total = op.Shape(x, start=2, end=3), known.operand(self.node, 6)
        following = op.Reshape(op.Slice(op.Reshape(given, [-1]), [0], [1]), [1, 1]) + positions(op, count)
        is_prompt = op.Equal(op.Reshape(_int64(op, total), [1]), count)
        return op.Where(is_prompt, following, given)

    def with_cache(self, index: int, new: ir.Value) -> ir.Value:
        """What is in a cache, filled or not, followed by what is new."""
        cache = self.operand(index)
        return new if cache is None else self.op.Concat(cache, new, axis=2)

    def grouped(self, x: ir.Value) -> ir.Value:
        """The queries of heads that share keys after each other: [batch, heads of keys, queries, size]."""
        if self.number == self.key_number:
            return x
        op = self.op
        rows = op.Shape(x, start=2, end=3) * (self.number // self.key_number)
        shape = op.Concat(op.Shape(x, end=1), [self.key_number], rows, op.Shape(x, start=3), axis=0)
        return op.Reshape(x, shape, allowzero=1)

    def ungrouped(self, x: ir.Value, q: ir.Value) -> ir.Value:
        """The inverse of `grouped`, given the queries."""
        if self.number == self.key_number:
            return x
        shape = self.op.Concat(self.op.Shape(q, end=3), self.op.Shape(x, start=3), axis=0)
        return self.op.Reshape(x, shape, allowzero=1)

    def capped(self, logits: ir.Value) -> ir.Value:
        """softcap·tanh(logits/softcap), where the node has a cap."""
        cap = self.node.attributes.get_float("softcap", 0.0)
        return self.op.Tanh(logits / cap) * cap if cap > 0 else logits

    def allowed(self, layout: _Layout) -> ir.Value:
        """Whether a query attends to a key: [batch or 1, 1, queries or 1, keys]."""
        op = self.op
        query, key = op.Unsqueeze(layout.queries, [1, 3]), op.Unsqueeze(layout.keys, [1, 2])
        if not self.is_causal:
            return op.Less(key, op.Unsqueeze(self._lengths, [1, 2]))
        allowed = op.LessOrEqual(key, query)
        if self.window > 0:
            allowed = op.And(allowed, op.Greater(key, query - self.window))
        return allowed

    def added_bias(self, layout: _Layout) -> list[ir.Value]:
        """The input `attention_bias`, whose columns are positions, in the order of the keys."""
        op, bias = self.op, self.operand(_ADDED)
        if bias is None or self.operand(3) is None:
            return [] if bias is None else [bias]
        column = op.Min(layout.keys, op.Shape(bias, start=3) - 1)
        column = op.Unsqueeze(column, [1, 2])
        rows = op.Concat(op.Shape(layout.keys, end=1), op.Shape(bias, start=1, end=3), axis=0)
        wide = op.Expand(bias, op.Concat(rows, op.Shape(bias, start=3), axis=0))
        indices = op.Expand(column, op.Concat(rows, op.Shape(layout.keys, start=1), axis=0))
        return [op.GatherElements(wide, indices, axis=3)]

    def softmax(self, logits: ir.Value) -> ir.Value:
        """The probabilities; a sink takes part in them as one more key whose value is zero."""
        op, sink = self.op, self.operand(_SINK)
        if sink is None and self.node.attributes.get_int("smooth_softmax", 0) <= 0:
            return op.Softmax(logits, axis=-1)
        scalar = op.Reshape(sink, [1, -1, 1, 1]) if sink is not None else op.scalar_like(0.0, logits)
        column = op.Expand(scalar, op.Concat(op.Shape(logits, end=3), [1], axis=0))
        probabilities = op.Softmax(op.Concat(logits, column, axis=3), axis=-1)
        return op.Slice(probabilities, [0], op.Shape(logits, start=3), [3])

    def present(self, layout: _Layout, index: int, new: ir.Value) -> ir.Value:
        """The cache with what is new at its positions, and zeros behind that."""
        op, cache = self.op, self.operand(index)
        if cache is None:
            return new
        capacity, count = op.Shape(cache, start=2, end=3), op.Shape(new, start=2, end=3)
        length = op.Max(capacity, op.Reshape(_int64(op, known.operand(self.node, 6)), [1]))
        before = self._cached(new)
        position = positions(op, length)
        end = capacity + count
        moved = op.Where(op.Less(position, before + count), position - before + capacity, end)
        source = op.Where(op.Less(position, before), position, moved)
        zero = op.Expand(
            op.scalar_like(0.0, new), op.Concat(op.Shape(new, end=2), [1], op.Shape(new, start=3), axis=0)
        )
        everything = op.Concat(cache, new, zero, axis=2)
        shape = op.Concat(op.Shape(new, end=2), length, op.Shape(new, start=3), axis=0)
        return op.GatherElements(everything, op.Expand(op.Unsqueeze(source, [1, 3]), shape), axis=2)


def _int64(op: Builder, value: ir.Value) -> ir.Value:
    """Integers as int64."""
    return op.Cast(value, to=ir.DataType.INT64)
