"""Borders put around a tensor along some of its axes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder


def with_borders(
    op: Builder,
    value: ir.Value,
    pads: Sequence[int] | ir.Value,
    axes: Sequence[int] | ir.Value | None,
    rank: int | None,
    fill: float | None = None,
) -> ir.Value:
    """`value` with zeros before and behind it along `axes`, as `Pad` puts them there.

    `Pad` is told the amounts for all axes, not only for those that it changes: ONNX Runtime 1.32
    moves a `Transpose` through a `Pad` as if that had no `axes`: errors or wrong values follow.

    Args:
        op: Builds the nodes.
        value: Any tensor.
        pads: How much before along each of the axes, then how much behind; negative amounts cut off.
        axes: The axes; all of them when `None`.
        rank: The rank of `value`, if it is known.
        fill: What to put there, zeros when `None`.
    """
    if axes is None:
        return op.Pad(value, pads, fill)
    if rank is None or isinstance(axes, ir.Value):
        return op.Pad(value, _spread_at_run_time(op, value, pads, axes), fill)
    positions = [axis % rank for axis in axes]
    positions += [position + rank for position in positions]
    if isinstance(pads, ir.Value):
        sources = [positions.index(i) + 1 if i in positions else 0 for i in range(2 * rank)]
        return op.Pad(value, op.Gather(op.Concat([0], pads, axis=0), sources), fill)
    amounts = dict(zip(positions, pads, strict=True))
    return op.Pad(value, [amounts.get(i, 0) for i in range(2 * rank)], fill)


def _spread_at_run_time(
    op: Builder, value: ir.Value, pads: Sequence[int] | ir.Value, axes: Sequence[int] | ir.Value
) -> ir.Value:
    """The amounts for all axes, when the rank or the axes are known only when the graph runs."""
    rank = op.Shape(op.Shape(value))
    axes = op.CastLike(axes if isinstance(axes, ir.Value) else op.constant(axes, ir.DataType.INT64), rank)
    from_start = op.Where(op.Less(axes, 0), axes + rank, axes)
    zeros = op.Expand(op.constant(0, ir.DataType.INT64), rank * 2)
    positions = op.Concat(from_start, from_start + rank, axis=0)
    return op.ScatterElements(zeros, positions, pads, axis=0)
