"""RotaryEmbedding: pairs of numbers rotated by angles whose cosines and sines are looked up."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_slices
from onnx_grad.rules.precision import widen


@gradient("RotaryEmbedding")
def rotary_embedding(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """(y₁, y₂) = (x₁·cos − x₂·sin, x₁·sin + x₂·cos): dX is dY rotated back, with −sin for sin.

    dcos = x₁·dy₁ + x₂·dy₂ and dsin = x₁·dy₂ − x₂·dy₁, summed over heads and equal positions; dsin is dcos
    for x turned by a right angle, (−x₂, x₁).
    """
    x, cos, sin = (known.operand(node, index) for index in range(3))
    positions = known.optional_operand(node, 3)
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    rotated = partial(op.RotaryEmbedding, **attributes)

    def dcos() -> ir.Value:
        return _sum_of_pairs(op, node, x, dy)

    def dsin() -> ir.Value:
        ones = op.Expand(op.scalar_like(1.0, sin), op.shape(sin))
        return _sum_of_pairs(op, node, rotated(x, op.zeros_like(cos), ones, positions), dy)

    return lambda: rotated(dy, cos, -sin, positions), dcos, dsin


def _sum_of_pairs(op: Builder, node: ir.Node, x: ir.Value, dy: ir.Value) -> ir.Value:
    """x₁·dy₁ + x₂·dy₂ summed over heads, at the place in the cache where each angle was looked up."""
    cos, positions = known.operand(node, 1), known.optional_operand(node, 3)
    by_head = op.Reshape(widen(op, x, x) * widen(op, dy, x), _shape_by_head(op, node), allowzero=1)
    # [batch, sequence, head size], of which the first part is rotated.
    total = op.ReduceSum(by_head, [1, 3], keepdims=0)
    half = op.Shape(cos, start=-1)
    rotated = op.Slice(total, [0], half * 2, [2])
    batch_and_sequence = op.Shape(total, end=2)
    if node.attributes.get_int("interleaved", 0):
        pairs = op.Reshape(rotated, op.Concat(batch_and_sequence, half, [2], axis=0), allowzero=1)
        angles = op.ReduceSum(pairs, [3], keepdims=0)
    else:
        first, second = op.Split(rotated, axis=-1, num_outputs=2, outputs=2)
        angles = first + second
    angles = op.CastLike(angles, cos)
    if positions is None:
        return angles
    indices = op.Cast(op.Unsqueeze(positions, [2]), to=ir.DataType.INT64)
    return add_slices(op, angles, indices, op.zeros_like(cos))


def _shape_by_head(op: Builder, node: ir.Node) -> ir.Value:
    """[batch, H, sequence, 1, head size] for rank 4, and [batch, 1, sequence, H, head size] for rank 3."""
    x, heads = known.operand(node, 0), node.attributes.get_int("num_heads", 0)
    rank = known.rank(x)
    packed = op.constant([heads if rank == 3 else 1], ir.DataType.INT64)
    if rank is None and heads:
        packed = op.Where(op.Equal(op.Shape(op.Shape(x)), 3), [heads], [1])
    unpacked = op.ReduceProd(op.Shape(x, start=1, end=-2), keepdims=1)
    sequence, last = op.Shape(x, start=-2, end=-1), op.Shape(x, start=-1)
    return op.Concat(op.Shape(x, end=1), unpacked, sequence, packed, last / packed, axis=0)
