"""Operators that cut out, border or turn blocks of a tensor: Slice, Pad, Trilu, ReverseSequence."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_flat, flat_positions
from onnx_grad.rules.borders import with_borders

_BEFORE_THE_START = -(2**63)
# A bound at least as far as this says "to the end" of any tensor; exporters write INT32_MAX or INT64_MAX.
_BEYOND = 2**31 - 1
# Spreading writes `step` times the cotangent; beyond this, scattering element by element is cheaper.
_LARGEST_SPREAD = 8


@gradient("Slice")
def slice_(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x[start:end:step] along some axes: dx = dy at these positions, zero elsewhere."""
    steps = _steps(node)
    axes = _sliced_axes(node)
    if axes == ():
        return dy
    if steps is not None and all(step == 1 for step in steps):
        return _between_zeros(op, node, dy, axes, steps)
    rank = known.rank(node.outputs[0])
    if steps is None or axes is None or rank is None or any(abs(step) > _LARGEST_SPREAD for step in steps):
        x = known.operand(node, 0)
        return add_flat(op, dy, op.Slice(flat_positions(op, x), *node.inputs[1:]), x)
    for axis, step in zip(axes, steps, strict=True):
        dy = _spread(op, dy, axis % rank, step, rank)
    return _between_zeros(op, node, dy, axes, steps)


@gradient("Pad")
def pad(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = x with borders of a constant or of copies: dx = dy without them, copies added to their origin.

    A negative padding crops, and its cotangent is padded with zeros.
    """
    x, pads, axes = known.operand(node, 0), known.operand(node, 1), known.optional_operand(node, 3)
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        positions = op.Pad(flat_positions(op, x), pads, None, axes, mode=mode)
        return (add_flat(op, dy, positions, x),)

    def dx() -> ir.Value:
        amounts = known.constant_integers(pads)
        reverse = op.Neg(pads) if amounts is None else [-amount for amount in amounts]
        return with_borders(op, dy, reverse, _known_axes(axes), known.rank(x))

    def dvalue() -> ir.Value:
        value = known.operand(node, 2)
        in_border = with_borders(op, op.zeros_like(x), pads, _known_axes(axes), known.rank(x), 1.0)
        return op.reshape_like(op.ReduceSum(dy * in_border, keepdims=0), value)

    return (dx, None, dvalue)[: len(node.inputs)]


@gradient("Trilu")
def trilu(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = the upper or lower triangle of x: dx = that of dy."""
    upper = node.attributes.get_int("upper", 1)
    return op.Trilu(dy, known.optional_operand(node, 1), upper=upper)


@gradient("ReverseSequence")
def reverse_sequence(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x with the first elements of each sequence reversed: dx = dy, reversed in the same way."""
    return op.ReverseSequence(
        dy,
        known.operand(node, 1),
        time_axis=node.attributes.get_int("time_axis", 0),
        batch_axis=node.attributes.get_int("batch_axis", 1),
    )


def _known_axes(axes: ir.Value | None) -> ir.Value | tuple[int, ...] | None:
    """The axes as numbers where they are known."""
    numbers = known.constant_integers(axes)
    return axes if numbers is None else numbers


def _steps(node: ir.Node) -> tuple[int, ...] | None:
    """The step along each sliced axis, or `None` when it is known only at run time."""
    steps = known.optional_operand(node, 4)
    if steps is not None:
        return known.constant_integers(steps)
    axes = _sliced_axes(node)
    # Without `steps` every step is one, however many there are.
    return (1,) if axes is None else (1,) * len(axes)


def _sliced_axes(node: ir.Node) -> tuple[int, ...] | None:
    axes = known.optional_operand(node, 3)
    if axes is not None:
        return known.constant_integers(axes)
    count = known.static_shape(known.operand(node, 1))
    return None if count is None else tuple(range(count[0]))


def _spread(op: Builder, dy: ir.Value, axis: int, step: int, rank: int) -> ir.Value:
    """`dy` with |step| − 1 zeros behind each position of `axis`, back to front for a negative step."""
    if step < 0:
        dy = op.Slice(dy, [-1], [_BEFORE_THE_START], [axis], [-1])
    if abs(step) == 1:
        return dy
    columns = op.Unsqueeze(dy, [axis + 1])
    zeros = [op.zeros_like(columns)] * (abs(step) - 1)
    stretch = [abs(step) if i == axis else 1 for i in range(rank)]
    spread = op.Concat(columns, *zeros, axis=axis + 1)
    return op.Reshape(spread, op.Mul(op.shape(dy), stretch), allowzero=1)


def _between_zeros(
    op: Builder, node: ir.Node, spread: ir.Value, axes: tuple[int, ...] | None, steps: tuple[int, ...]
) -> ir.Value:
    """The spread cotangent of a slice, with zeros before and after it."""
    rank = known.rank(node.outputs[0])
    pads = None if axes is None else _constant_margins(node, axes, steps)
    if pads is not None:
        return with_borders(op, spread, pads, axes, rank) if any(pads) else spread
    places = axes or known.optional_operand(node, 3) or op.Range(0, op.Size(node.inputs[1]), 1)
    return with_borders(op, spread, _margins(op, node, places, steps), places, rank)


def _constant_margins(node: ir.Node, axes: tuple[int, ...], steps: tuple[int, ...]) -> list[int] | None:
    """The zeros before and after along each axis, where the bounds and lengths are known."""
    starts, ends = (known.constant_integers(node.inputs[index]) for index in (1, 2))
    dims = known.dimensions(known.operand(node, 0))
    if starts is None or ends is None or dims is None:
        return None
    before, after = [], []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = dims[axis]
        if not isinstance(length, int):
            if not _takes_all(start, end, step):
                return None
            length = 0
        taken = range(length)[start:end:step]
        first = min(taken, default=0)
        before.append(first)
        after.append(length - first - len(taken) * abs(step))
    return before + after


def _takes_all(start: int, end: int, step: int) -> bool:
    """Whether every position is taken, however many there are."""
    return (start == 0 and end >= _BEYOND and step == 1) or (start == -1 and end <= -_BEYOND and step == -1)


def _margins(op: Builder, node: ir.Node, axes: Sequence[int] | ir.Value, steps: tuple[int, ...]) -> ir.Value:
    """The same, found from the two shapes when the graph runs."""
    x, (y,) = known.operand(node, 0), node.outputs
    length, count = _lengths(op, x, axes), _lengths(op, y, axes)
    covered = op.Mul(count, [abs(step) for step in steps]) if set(steps) != {1} else count
    starts = known.constant_integers(node.inputs[1])
    if starts is not None and not any(starts) and min(steps) > 0:
        return op.Concat(starts, length - covered, axis=0)
    first = _resolved_starts(op, known.operand(node, 1), length)
    if min(steps) < 0:
        first = op.Min(first, length - 1) + op.Mul(count - 1, [min(step, 0) for step in steps])
    # Where nothing is taken, the start may lie beyond the end.
    first = first * op.Min(count, 1)
    return op.Concat(first, length - first - covered, axis=0)


def _lengths(op: Builder, value: ir.Value, axes: Sequence[int] | ir.Value) -> ir.Value:
    """The lengths of some axes of `value`."""
    if isinstance(axes, ir.Value) or len(axes) != 1:
        return op.Gather(op.shape(value), axes)
    # The last axis has no end: -1 + 1 would be the first.
    return op.Shape(value, start=axes[0], end=axes[0] + 1 or None)


def _resolved_starts(op: Builder, starts: ir.Value, length: ir.Value) -> ir.Value:
    """The starts, with negative ones counted from the end."""
    content = known.constant_integers(starts)
    if content is not None and min(content) >= 0:
        return op.constant(content, ir.DataType.INT64)
    if content is not None and max(content) < 0:
        return op.Max(op.Add(length, content), 0)
    wide = op.CastLike(starts, length)
    return op.Where(op.Less(wide, 0), op.Max(wide + length, 0), wide)
