"""Undoing a broadcast: the cotangent of a stretched operand, summed back to the operand's shape.

For `z = a + b` where `b` was stretched to the shape of `z`, each element of `b` reaches several elements of
`z`, so its cotangent is the sum of theirs: `ReduceSum` over the stretched axes, then `Reshape`, each only
where needed.
"""

from __future__ import annotations

import enum

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder


class _Axis(enum.Enum):
    """How an operand's dimension met the result's."""

    KEPT = "equal"
    STRETCHED = "one or missing, where the result's is not known to be one"
    UNDECIDED = "may or may not have been one"


def undo_broadcast(op: Builder, cotangent: ir.Value, operand: ir.Value, result: ir.Value) -> ir.Value:
    """Sum `cotangent` over the axes along which `operand` was stretched.

    Args:
        op: Builds the nodes.
        cotangent: A value of the shape of `result`.
        operand: The operand, of any shape that broadcasts to that of `result`.
        result: The result of the forward operator.

    Returns:
        The cotangent of `operand`, of its shape; `cotangent` itself where nothing was stretched.
    """
    if known.same_shape(operand, result):
        return cotangent
    negated = op.negated(cotangent)
    if negated is not None:
        # A sum has fewer elements to negate.
        return op.Neg(undo_broadcast(op, negated, operand, result))
    axes = _compare(operand, result)
    if axes is None or _Axis.UNDECIDED in axes:
        return _undo_at_run_time(op, cotangent, operand, result)
    stretched = [i for i, axis in enumerate(axes) if axis is _Axis.STRETCHED]
    if not stretched:
        return cotangent
    missing = len(axes) - (known.rank(operand) or 0)
    if missing == 0:
        return op.ReduceSum(cotangent, stretched, keepdims=1)
    summed = op.ReduceSum(cotangent, stretched, keepdims=0)
    if len(stretched) == missing:
        return summed
    return op.reshape_like(summed, operand)


def _compare(operand: ir.Value, result: ir.Value) -> list[_Axis] | None:
    """One `_Axis` for each axis of `result`; `None` when a rank is unknown."""
    dims, result_dims = known.dimensions(operand), known.dimensions(result)
    if dims is None or result_dims is None:
        return None
    missing = len(result_dims) - len(dims)
    axes = [_Axis.STRETCHED] * missing
    for own, stretched in zip(dims, result_dims[missing:], strict=True):
        axes.append(_compare_dimensions(own, stretched))
    return axes


def _compare_dimensions(own: known.Dimension, result: known.Dimension) -> _Axis:
    if known.same_dimension(own, result):
        return _Axis.KEPT
    if isinstance(own, int):
        return _Axis.STRETCHED if own == 1 else _Axis.KEPT
    return _Axis.KEPT if result == 1 else _Axis.UNDECIDED


def _undo_at_run_time(op: Builder, cotangent: ir.Value, operand: ir.Value, result: ir.Value) -> ir.Value:
    """The same, with the stretched axes found from the two shapes when the graph runs."""
    shape, result_shape = op.shape(operand), op.shape(result)
    aligned = _with_leading_ones(op, shape, result_shape, operand, result)
    stretched = op.Not(op.Equal(aligned, result_shape))
    axes = op.Reshape(op.NonZero(stretched), [-1])
    summed = op.ReduceSum(cotangent, axes, keepdims=1, noop_with_empty_axes=1)
    if known.rank(operand) is not None and known.rank(operand) == known.rank(result):
        return summed
    return op.Reshape(summed, shape, allowzero=1)


def _with_leading_ones(
    op: Builder, shape: ir.Value, result_shape: ir.Value, operand: ir.Value, result: ir.Value
) -> ir.Value:
    rank, result_rank = known.rank(operand), known.rank(result)
    if rank is not None and result_rank is not None:
        if rank == result_rank:
            return shape
        return op.Concat([1] * (result_rank - rank), shape, axis=0)
    missing = op.Shape(result_shape) - op.Shape(shape)
    return op.Concat(op.Expand([1], missing), shape, axis=0)
