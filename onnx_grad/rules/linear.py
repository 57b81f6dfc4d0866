"""Matrix products: MatMul, Gemm."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen
from onnx_grad.rules.weighted_rows import note_product


@gradient("MatMul")
def matmul(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = A·B: dA = dY·Bᵀ, dB = Aᵀ·dY, summed over the batch axes along which A or B was stretched."""
    note_product(op, node, dy)
    return product_cotangents(op, known.operand(node, 0), known.operand(node, 1), node.outputs[0], dy)


def product_cotangents(
    op: Builder, a: ir.Value, b: ir.Value, y: ir.Value, dy: ir.Value
) -> Sequence[InputCotangent]:
    """The cotangents of the operands of y = a·b, as `MatMul` multiplies."""
    if known.rank(b) == 1:
        return _matrix_vector(op, a, b, dy)
    if known.rank(b) == 2:
        return _linear_layer(op, a, b, dy)
    return _batched(op, a, b, y, dy)


@gradient("Gemm")
def gemm(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = α·A'·B' + β·C: dA' = α·dY·B'ᵀ, dB' = α·A'ᵀ·dY, dC = β·dY, where A' is A or Aᵀ and B' is B or Bᵀ."""
    a, b, c = known.operand(node, 0), known.operand(node, 1), known.optional_operand(node, 2)
    (y,) = node.outputs
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    trans_a, trans_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)
    product = partial(op.Gemm, alpha=None if alpha == 1.0 else alpha)

    def da() -> ir.Value:
        if trans_a:
            return product(b, dy, transA=trans_b, transB=1)
        return product(dy, b, transB=1 - trans_b)

    def db() -> ir.Value:
        if trans_b:
            return product(dy, a, transA=1, transB=trans_a)
        return product(a, dy, transA=1 - trans_a)

    if c is None or beta == 0.0:
        return da, db

    def dc() -> ir.Value:
        summed = undo_broadcast(op, dy, c, y)
        return summed if beta == 1.0 else summed * beta

    return da, db, dc


def _matrix_vector(op: Builder, a: ir.Value, b: ir.Value, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = A·b with b of rank 1: dA = dY ⊗ b, db = Σ over rows of dY·A."""
    if known.rank(a) == 1:
        return lambda: dy * b, lambda: dy * a
    if known.rank(a) == 2:
        return lambda: op.Unsqueeze(dy, [-1]) * b, lambda: op.MatMul(dy, a)
    return (
        lambda: op.Unsqueeze(dy, [-1]) * b,
        lambda: op.MatMul(op.Reshape(dy, [-1]), op.Flatten(a, axis=-1)),
    )


def _linear_layer(op: Builder, a: ir.Value, b: ir.Value, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = A·B with B of rank 2: all rows of A meet the same B, so that dB is one product of two matrices."""
    if known.rank(a) == 2:
        return lambda: op.Gemm(dy, b, transB=1), lambda: op.Gemm(a, dy, transA=1)
    return (
        lambda: op.MatMul(dy, op.Transpose(b, perm=[1, 0])),
        lambda: op.Gemm(op.Flatten(a, axis=-1), op.Flatten(dy, axis=-1), transA=1),
    )


def _batched(op: Builder, a: ir.Value, b: ir.Value, y: ir.Value, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = A·B for any ranks: vectors are made matrices first, when the graph runs where a rank is unknown."""
    row, column = _vector_axis(op, a, -2), _vector_axis(op, b, -1)
    matrices_dy = _unsqueeze(op, dy, row, column)
    dims = known.dimensions(y)
    batch = dims[:-2] if dims is not None and row is None and column is None else None

    def da() -> ir.Value:
        stretched = op.MatMul(matrices_dy, swap_last_two(op, _unsqueeze(op, b, column), known.rank(b)))
        annotate_stretched(stretched, batch, a)
        return undo_broadcast(op, stretched, a, stretched)

    def db() -> ir.Value:
        stretched = op.MatMul(swap_last_two(op, _unsqueeze(op, a, row), known.rank(a)), matrices_dy)
        annotate_stretched(stretched, batch, b)
        if column is None:
            return undo_broadcast(op, stretched, b, stretched)
        return op.reshape_like(undo_broadcast(op, stretched, _unsqueeze(op, b, column), stretched), b)

    return da, db


def _vector_axis(op: Builder, operand: ir.Value, axis: int) -> ir.Value | None:
    """The axes to add to an operand of MatMul to make it a matrix: `[axis]` for a vector, else none."""
    rank = known.rank(operand)
    if rank is not None and rank > 1:
        return None
    axes = op.constant([axis], ir.DataType.INT64)
    if rank == 1:
        return axes
    is_vector = op.Cast(op.Equal(op.Shape(op.Shape(operand)), [1]), to=ir.DataType.INT64)
    return op.Expand(axes, is_vector)


def _unsqueeze(op: Builder, value: ir.Value, *axes: ir.Value | None) -> ir.Value:
    present = [a for a in axes if a is not None]
    if not present:
        return value
    return op.Unsqueeze(value, present[0] if len(present) == 1 else op.Concat(*present, axis=0))


def swap_last_two(op: Builder, matrices: ir.Value, rank: int | None) -> ir.Value:
    """Each matrix transposed. A Transpose needs the rank; Einsum does not, but it lacks bfloat16 up to 27."""
    if rank is None:
        transposed = op.Einsum(widen(op, matrices, matrices), equation="...ij->...ji")
        return op.CastLike(transposed, matrices)
    rank = max(rank, 2)
    return op.Transpose(matrices, perm=[*range(rank - 2), rank - 1, rank - 2])


def annotate_stretched(
    stretched: ir.Value, batch: Sequence[known.Dimension] | None, operand: ir.Value
) -> None:
    """Note the shape of a stretched cotangent of `operand`, which undoing the stretching goes by."""
    if batch is not None and operand.shape is not None:
        stretched.shape = ir.Shape([*batch, *operand.shape.dims[-2:]])
