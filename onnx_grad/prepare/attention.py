"""A function body for Attention that holds what a node needs, and no more.

The body in the specification adds a bias and guards against rows without a key whether or not there is a
mask, repeats the keys and values that heads share, and takes inputs for packed wherever numbers of heads are
given. From this one the rules of its operators give, with P the probabilities and S the scores,

dV = Pᵀ·dY, dP = dY·Vᵀ, dS = P∘(dP − rowsum(P∘dP)), dQ = scale·dS·K, dK = scale·dSᵀ·Q,

at the cost of the four matrix products that there are: the forward pass and the backward pass share P. A rule
for the node as a whole would have to compute P a second time.

A row all of whose keys are masked with −∞ has zeros for Y and for P, as the specification says. So its query
has the gradient zero, and it contributes nothing to those of keys, values and mask. PyTorch's
`scaled_dot_product_attention` agrees.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from onnx_grad.errors import ModelError
from onnx_grad.prepare.body import Body

_INT64, _FLOAT = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
_HALF_TYPES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)

# Until then, a mask that is shorter than the keys was one to be broadcast.
_FIRST_PADDED = 24


def attention(body: Body) -> list[str]:
    """Y = softmax(softcap(scale·Q·Kᵀ) + bias)·V for every head, with past keys and values in front.

    Returns:
        Y, present_key, present_value and qk_matmul_output.
    """
    heads = _Heads(body)
    q, k, v = heads.split(0), heads.split(1), heads.split(2)
    past_key, past_value = body.input(4), body.input(5)
    key = k if past_key is None else body.Concat(past_key, k, axis=2)
    value = v if past_value is None else body.Concat(past_value, v, axis=2)

    scaled = body.Mul(q, heads.scale(q))
    products = body.MatMul(heads.grouped(scaled, q, key), body.Transpose(key, perm=[0, 1, 3, 2]))
    scores = heads.ungrouped(products, q)
    capped = _capped(body, scores)
    bias = _bias(body, q, key)
    biased = capped if bias is None else body.Add(capped, bias)
    empty_rows = None if bias is None or not _rows_can_be_empty(body) else _where_empty(body, bias)
    logits = biased
    if bias is not None and empty_rows is not None:
        # Zero instead of −∞ for the rows that do not count: their softmax must not be NaN.
        logits = body.Add(capped, _zero_where(body, empty_rows, bias))
    probabilities = _softmax(body, logits)
    sums = body.MatMul(heads.grouped(probabilities, q, key), value)
    y = _zero_where(body, empty_rows, heads.ungrouped(sums, q))

    mode = body.attribute("qk_matmul_output_mode", 0)
    shown = scores
    if body.wants(3) and mode:
        shown = (capped, biased, _zero_where(body, empty_rows, probabilities))[mode - 1]
    return [heads.joined(y), key, value, shown]


class _Heads:
    """Operands of shape [batch, heads, sequence, size], or packed: [batch, sequence, heads·size]."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._numbers = [body.attribute("q_num_heads", 0)] + [body.attribute("kv_num_heads", 0)] * 2
        dims = body.dimensions(0)
        self._rank = None if dims is None else len(dims)
        if self._rank is None and not all(self._numbers):
            self._rank = 4
        if self._rank == 3 and not all(self._numbers):
            raise ModelError(
                f"Attention node '{body.name}' has operands of rank 3, so that it needs the attributes "
                "q_num_heads and kv_num_heads; set them"
            )

    def split(self, index: int) -> str:
        """Operand `index` as [batch, heads, sequence, size]."""
        body, x, number = self._body, self._body.required(index), self._numbers[index]
        if self._rank == 4:
            return x
        if self._rank == 3:
            packed = body.size(index, -1)
            shape = [0, 0, number, -1 if packed is None else packed // number]
            return body.Transpose(body.Reshape(x, shape), perm=[0, 2, 1, 3])
        outer, inner = self._divided(x, number)
        batch, sequence = body.Shape(x, end=1), body.Shape(x, start=-2, end=-1)
        size = body.Div(body.Shape(x, start=-1), inner)
        divided = body.Reshape(x, body.Concat(batch, outer, sequence, inner, size, axis=0), allowzero=1)
        turned = body.Transpose(divided, perm=[0, 1, 3, 2, 4])
        return body.Reshape(turned, body.Concat(batch, [number], sequence, size, axis=0), allowzero=1)

    def joined(self, y: str) -> str:
        """The result for [batch, heads, sequence, size], packed where the operands are."""
        body, q = self._body, self._body.required(0)
        if self._rank == 4:
            return y
        if self._rank == 3:
            values = body.size(2, -1)
            packed = -1 if values is None else values // self._numbers[2] * self._numbers[0]
            return body.Reshape(body.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, packed])
        outer, inner = self._divided(q, self._numbers[0])
        batch, sequence, size = body.Shape(y, end=1), body.Shape(y, start=2, end=3), body.Shape(y, start=3)
        divided = body.Reshape(y, body.Concat(batch, outer, inner, sequence, size, axis=0), allowzero=1)
        turned = body.Transpose(divided, perm=[0, 1, 3, 2, 4])
        shape = body.Concat(body.Shape(q, end=-1), body.Mul(inner, size), axis=0)
        return body.Reshape(turned, shape, allowzero=1)

    def _divided(self, x: str, number: int) -> tuple[str, str]:
        """How many of the heads stand before the sequence and how many behind it: all or one, by the rank."""
        outer = self._body.ReduceProd(self._body.Shape(x, start=1, end=-2), keepdims=1)
        return outer, self._body.Div([number], outer)

    def scale(self, q: str) -> str:
        """The attribute `scale`, or 1/√size, in the type of the queries."""
        body, dtype = self._body, self._body.element_type(0)
        given, last = body.attribute("scale"), body.size(0, -1)
        if given is not None:
            return body.number(given, dtype)
        if last and self._rank is not None:
            size = last if self._rank == 4 else last // self._numbers[0]
            return body.number(1.0 / math.sqrt(size), dtype)
        wide = _FLOAT if dtype in _HALF_TYPES else dtype
        scale = body.Reciprocal(body.Sqrt(body.Cast(body.Shape(q, start=3), to=wide)))
        return scale if wide == dtype else body.Cast(scale, to=dtype)

    def grouped(self, x: str, q: str, key: str) -> str:
        """The queries that share a key after each other: [batch, heads of keys, queries, size]."""
        if self._none_shared():
            return x
        body = self._body
        queries = body.Mul(body.Shape(q, start=1, end=2), body.Shape(q, start=2, end=3))
        rows = body.Div(queries, body.Shape(key, start=1, end=2))
        shape = body.Concat(body.Shape(key, end=2), rows, body.Shape(x, start=3), axis=0)
        return body.Reshape(x, shape, allowzero=1)

    def ungrouped(self, x: str, q: str) -> str:
        """The inverse of `grouped`."""
        if self._none_shared():
            return x
        shape = self._body.Concat(self._body.Shape(q, end=3), self._body.Shape(x, start=3), axis=0)
        return self._body.Reshape(x, shape, allowzero=1)

    def _none_shared(self) -> bool:
        """Whether there certainly are as many heads of keys as of queries."""
        queries, keys = (
            self._numbers[index] or (self._body.size(index, 1) if self._rank == 4 else None)
            for index in (0, 1)
        )
        return queries is not None and queries == keys


def _capped(body: Body, scores: str) -> str:
    """softcap·tanh(scores/softcap), where the node has a cap."""
    softcap = body.attribute("softcap", 0.0)
    if not softcap:
        return scores
    cap = body.number(softcap, body.element_type(0))
    return body.Mul(body.Tanh(body.Div(scores, cap)), cap)


def _softmax(body: Body, logits: str) -> str:
    """The probabilities, computed in the precision that the node asks for."""
    own = body.element_type(0)
    precision = body.attribute("softmax_precision", own)
    if precision == own:
        return body.Softmax(logits, axis=-1)
    return body.Cast(body.Softmax(body.Cast(logits, to=precision), axis=-1), to=own)


def _bias(body: Body, q: str, key: str) -> str | None:
    """What is added to the scores: a mask of numbers, and −∞ where a query must not attend a key."""
    dtype, mask = body.element_type(0), body.input(3)
    terms, allowed = [], _allowed(body, q, key)
    if mask is not None:
        mask = _padded(body, mask, key)
        if body.element_type(3) == onnx.TensorProto.BOOL:
            allowed.append(mask)
        else:
            terms.append(mask)
    if allowed:
        together = allowed[0]
        for condition in allowed[1:]:
            together = body.And(together, condition)
        terms.append(body.Where(together, body.number(0.0, dtype), body.number(-np.inf, dtype)))
    return body.Add(*terms) if len(terms) > 1 else terms[0] if terms else None


def _padded(body: Body, mask: str, key: str) -> str:
    """The mask in the type of the scores, or boolean, with whatever keys it says nothing of masked."""
    dtype, given = body.element_type(0), body.element_type(3)
    is_boolean = given == onnx.TensorProto.BOOL
    if given != dtype and not is_boolean:
        mask = body.Cast(mask, to=dtype)
    own, keys = body.dimensions(3), body.dimensions(1)
    same = own is not None and keys is not None and own[-1] is not None and own[-1] == keys[-2]
    if body.version < _FIRST_PADDED or (same and body.input(4) is None):
        return mask
    missing = body.Sub(body.Shape(key, start=2, end=3), body.Shape(mask, start=-1))
    masked = body.number(False, given) if is_boolean else body.number(-np.inf, dtype)
    return body.Pad(mask, body.Concat([0], missing, axis=0), masked, [-1])


def _allowed(body: Body, q: str, key: str) -> list[str]:
    """Conditions on a query and a key: the future, a window, and padding behind the keys.

    Query i has the position i + offset, where the offset counts the keys before the first query.
    """
    past_key, lengths = body.input(4), body.input(6)
    is_causal, left, right = (
        body.attribute(name, default)
        for name, default in (("is_causal", 0), ("left_window_size", -1), ("right_window_size", -1))
    )
    column = _range(body, body.Shape(key, start=2, end=3))
    conditions = []
    if is_causal or left >= 0 or right >= 0:
        queries = body.Shape(q, start=2, end=3)
        position = body.Unsqueeze(_range(body, queries), [1])
        if past_key is not None:
            position = body.Add(position, body.Shape(past_key, start=2, end=3))
        elif lengths is not None:
            offset = body.Sub(lengths, queries)
            position = body.Add(position, body.Reshape(offset, [-1, 1, 1, 1]))
        if is_causal or right >= 0:
            ahead = 0 if is_causal else right
            last = body.Add(position, [ahead]) if ahead else position
            conditions.append(body.LessOrEqual(column, last))
        if left >= 0:
            first = body.Sub(position, [left]) if left else position
            conditions.append(body.GreaterOrEqual(column, first))
    if lengths is not None:
        conditions.append(body.Less(column, body.Reshape(lengths, [-1, 1, 1, 1])))
    return conditions


def _range(body: Body, length: str) -> str:
    zero, one = (body.number(value, _INT64) for value in (0, 1))
    return body.Range(zero, body.Squeeze(length), one)


def _rows_can_be_empty(body: Body) -> bool:
    """Whether a query may be left without a key: not by causality alone, which leaves it the first."""
    is_masked = body.input(3) is not None or body.input(6) is not None
    return is_masked or body.attribute("left_window_size", -1) >= 0


def _where_empty(body: Body, bias: str) -> str:
    """Where a row of the bias is −∞ throughout."""
    return body.Equal(body.ReduceMax(bias, [-1], keepdims=1), body.number(-np.inf, body.element_type(0)))


def _zero_where(body: Body, rows: str | None, value: str) -> str:
    """`value` with zeros in some rows."""
    if rows is None:
        return value
    return body.Where(rows, body.number(0.0, body.element_type(0)), value)
