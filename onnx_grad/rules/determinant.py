"""Det: the determinant of square matrices."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen


@gradient("Det")
def det(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = det X: dXᵢⱼ = dY·(−1)ⁱ⁺ʲ·det(X without row i and column j), which needs no inverse of X.

    The n² minors of an n×n matrix take n⁴ numbers: this is meant for small matrices.
    """
    x = known.operand(node, 0)
    dims = known.dimensions(x)
    if dims is not None and isinstance(dims[-1], int):
        size = op.constant(dims[-1], ir.DataType.INT64)
    else:
        size = op.Squeeze(op.Shape(x, start=-1), [0])
    index = op.Range(0, size, 1)
    dropped, kept = op.Unsqueeze(index, [1]), op.Range(0, size - 1, 1)
    others = kept + op.Cast(op.GreaterOrEqual(kept, dropped), to=ir.DataType.INT64)
    minors = op.Det(
        _row_by_column(op, op.Gather(op.Gather(x, others, axis=-2), others, axis=-1), known.rank(x))
    )
    sign = 1.0 - 2.0 * op.CastLike(op.Mod(index + dropped, 2), x)
    return op.Unsqueeze(dy, [-2, -1]) * (minors * sign)


def _row_by_column(op: Builder, minors: ir.Value, rank: int | None) -> ir.Value:
    """The minors [..., i, rows, j, columns] as matrices for each i and j. A Transpose needs the rank.

    Einsum does not, but lacks bfloat16 before opset 28.
    """
    if rank is None:
        return op.CastLike(op.Einsum(widen(op, minors, minors), equation="...iajb->...ijab"), minors)
    return op.Transpose(minors, perm=[*range(rank - 2), rank - 2, rank, rank - 1, rank + 1])
