"""RotaryEmbedding: pairs of numbers rotated by angles that depend on the position."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import composition
from onnx_grad.rules.contrib import heads
from onnx_grad.rules.contrib.domain import DOMAIN


def _unknown_rank(node: ir.Node) -> str | None:
    if known.rank(known.operand(node, 0)) is None:
        return (
            "the rank of its input is not known, and tells whether the heads lie next to each other or on an "
            "axis of their own; declare its shape in the model's value_info"
        )
    return None


@composition("RotaryEmbedding", domain=DOMAIN, refuses=_unknown_rank)
def rotary_embedding(op: Builder, node: ir.Node) -> ir.Value:
    """(y₁, y₂) = (x₁·cos − x₂·sin, x₁·sin + x₂·cos) for the pairs of each head.

    A single position is that of the first element of every sequence. The attribute `scale` has no effect, as
    in ONNX Runtime.
    """
    x, given, cos, sin = (known.operand(node, index) for index in range(4))
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    packed = known.rank(x) == 3
    sequence = op.Shape(x, start=1, end=2) if packed else op.Shape(x, start=2, end=3)
    positions = _every_position(op, given, op.Squeeze(sequence))
    # The axis of the heads is the last but one of a packed input, and the last but two of another.
    cos, sin = (op.Unsqueeze(op.Gather(cache, positions), [-2 if packed else -3]) for cache in (cos, sin))
    if not packed:
        return rotated(op, x, cos, sin, interleaved, _rotates_everything(node))
    by_head = _by_head(op, node)
    return op.reshape_like(rotated(op, by_head, cos, sin, interleaved, _rotates_everything(node)), x)


def _by_head(op: Builder, node: ir.Node) -> ir.Value:
    """The packed input with an axis of heads."""
    x, number = known.operand(node, 0), node.attributes.get_int("num_heads", 0)
    width, half = heads.last_dimension(x), heads.last_dimension(known.operand(node, 2))
    if not number and width is not None and half is not None:
        number = width // (2 * half)
    if number:
        return heads.apart(op, x, number)
    size = op.Shape(known.operand(node, 2), start=1) * 2
    shape = op.Concat(op.Shape(x, end=2), op.Shape(x, start=2) / size, size, axis=0)
    return op.Reshape(x, shape, allowzero=1)


def _rotates_everything(node: ir.Node) -> bool:
    """Whether certainly no element of a head is left as it is."""
    x, number = known.operand(node, 0), node.attributes.get_int("num_heads", 0)
    width, half = heads.last_dimension(x), heads.last_dimension(known.operand(node, 2))
    if known.rank(x) == 3 and not number:
        return True
    return half is not None and width == 2 * half * (number if known.rank(x) == 3 else 1)


def _every_position(op: Builder, given: ir.Value, sequence: ir.Value) -> ir.Value:
    """[batch, sequence] or [sequence]: the positions `given`, or all those from a single one on."""
    if known.rank(given) == 2 and known.dimensions(given) != (1, 1):
        return given
    following = op.Range(0, sequence, 1)
    if known.static_shape(given) != (1,):
        # What is given may be complete already.
        following = following * op.Cast(op.Equal(op.Size(given), 1), to=ir.DataType.INT64)
    return given + following


def rotated(
    op: Builder, x: ir.Value, cos: ir.Value, sin: ir.Value, interleaved: bool, everything: bool
) -> ir.Value:
    """`x` with the pairs in the first elements of its last axis rotated, and the others as they are.

    Args:
        op: Builds the nodes.
        x: Of rank 4.
        cos: The cosines of the angles of the pairs, of a shape that broadcasts to that of half of the pairs.
        sin: The sines.
        interleaved: Whether a pair consists of neighbours, not of elements of a first and a second half.
        everything: Whether certainly no element of the last axis is left as it is.
    """
    half = op.Shape(cos, start=-1)
    pairs, others = x, None
    if not everything:
        pairs = op.Slice(x, [0], half * 2, [3])
        others = op.Slice(x, half * 2, op.Shape(x, start=3), [3])
    if interleaved:
        apart = op.Reshape(pairs, op.Concat(op.Shape(x, end=3), half, [2], axis=0), allowzero=1)
        first, second = (op.Squeeze(part, [4]) for part in op.Split(apart, axis=4, num_outputs=2, outputs=2))
    else:
        first, second = op.Split(pairs, axis=3, num_outputs=2, outputs=2)
    turned = first * cos - second * sin, first * sin + second * cos
    if interleaved:
        joined = op.Concat(*(op.Unsqueeze(part, [4]) for part in turned), axis=4)
        result = op.Reshape(joined, op.Concat(op.Shape(x, end=3), half * 2, axis=0), allowzero=1)
    else:
        result = op.Concat(*turned, axis=3)
    return result if others is None else op.Concat(result, others, axis=3)
