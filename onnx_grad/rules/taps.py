"""The pixels around the points at which GridSample reads an image, and their weights, along one axis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad.builder import Builder

# The coefficient of cubic convolution (R. G. Keys, 1981) in the ONNX specification.
_CUBIC = -0.75


@dataclass(frozen=True)
class Taps:
    """The taps of every point along one axis, in tensors of shape [batch, points, taps].

    Attributes:
        positions: Their positions on the axis, int64.
        weights: Their weights, zero for those in a padding of zeros.
        slopes: The derivatives of the weights in the coordinate of the point.
        length: The length of the axis, a scalar.
    """

    positions: ir.Value
    weights: ir.Value
    slopes: ir.Value
    length: ir.Value


def taps(op: Builder, node: ir.Node, coordinate: ir.Value, length: ir.Value) -> Taps:
    """The taps along one spatial axis.

    Args:
        op: Builds the nodes.
        node: The GridSample node.
        coordinate: The points, which run from −1 to 1, of shape [batch, points, 1].
        length: The length of the axis, a scalar.
    """
    size = op.CastLike(length, coordinate)
    align_corners = node.attributes.get_int("align_corners", 0)
    mode, padding = sampling_mode(node), node.attributes.get_string("padding_mode", "zeros")
    # The borders of the image, which a coordinate of −1 and of 1 fall on.
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    slope = (high - low) * 0.5
    place = (coordinate + 1.0) * slope + low
    if mode == "nearest":
        # ONNX Runtime rounds before it reflects, PyTorch afterwards: they differ halfway between two pixels.
        place = op.Round(place)
    if padding == "zeros" or (padding == "border" and mode == "cubic"):
        # Far outside, it makes no difference where: so points at infinity do no harm.
        place = op.Clip(place, -3.0, size + 2.0)
    elif mode != "cubic":
        if padding == "reflection":
            place, sign = _reflected(op, place, low, high)
            slope = slope * sign
        inside = op.And(op.Greater(place, 0.0), op.Less(place, size - 1.0))
        place = op.Clip(place, 0.0, size - 1.0)
        slope = slope * op.CastLike(inside, place)
    whole = op.Floor(place)
    offsets, weigh = _MODES[mode]
    positions = whole + op.CastLike(op.constant(offsets, ir.DataType.FLOAT), place)
    weights, slopes = weigh(op, place - whole)
    slopes = slopes * slope
    if padding == "zeros":
        inside = op.CastLike(
            op.And(op.GreaterOrEqual(positions, 0.0), op.LessOrEqual(positions, size - 1.0)), place
        )
        weights, slopes = weights * inside, slopes * inside
    elif padding == "reflection" and mode == "cubic":
        # Cubic taps are brought back one by one, in ONNX Runtime as in PyTorch.
        positions, _ = _reflected(op, positions, low, high)
    # As integers, so that what is no number becomes a valid position, too.
    positions = op.Clip(op.Cast(positions, to=ir.DataType.INT64), 0, length - 1)
    return Taps(positions, weights, slopes, length)


def sampling_mode(node: ir.Node) -> str:
    """The mode as opset 20 names it: before, the names were bilinear and bicubic."""
    return node.attributes.get_string("mode", "linear").removeprefix("bi")


def _reflected(
    op: Builder, place: ir.Value, low: float | ir.Value, high: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Places folded back between two borders as often as needed, and the derivative of that, 1 or −1."""
    span = op.Max(high - low, 1.0)
    beyond = place - low
    # Folded as PyTorch does it: rounding then never leads across a pixel, where the slope is another.
    distance = op.Abs(beyond)
    distance = distance - 2.0 * span * op.Floor(distance / (2.0 * span))
    folded = op.Min(distance, 2.0 * span - distance)
    return low + folded, op.Sign(beyond) * op.Sign(span - distance)


def _nearest(op: Builder, fraction: ir.Value) -> tuple[ir.Value, ir.Value]:
    return op.Expand(op.scalar_like(1.0, fraction), op.Shape(fraction)), op.zeros_like(fraction)


def _linear(op: Builder, fraction: ir.Value) -> tuple[ir.Value, ir.Value]:
    one = op.Expand(op.scalar_like(1.0, fraction), op.Shape(fraction))
    return op.Concat(one - fraction, fraction, axis=2), op.Concat(-one, one, axis=2)


def _cubic(op: Builder, fraction: ir.Value) -> tuple[ir.Value, ir.Value]:
    before, after = _cubic_side(op, fraction), _cubic_side(op, 1.0 - fraction)
    weights = op.Concat(before[1][0], before[0][0], after[0][0], after[1][0], axis=2)
    slopes = op.Concat(before[1][1], before[0][1], -after[0][1], -after[1][1], axis=2)
    return weights, slopes


def _cubic_side(op: Builder, near: ir.Value) -> tuple[tuple[ir.Value, ir.Value], tuple[ir.Value, ir.Value]]:
    """Weight and slope of the pixel at a distance below one, then of the next one on that side."""
    a, far = _CUBIC, near + 1.0
    return (
        (((a + 2) * near - (a + 3)) * near * near + 1.0, (3 * (a + 2) * near - 2 * (a + 3)) * near),
        (((a * far - 5 * a) * far + 8 * a) * far - 4 * a, (3 * a * far - 10 * a) * far + 8 * a),
    )


_Weigher = Callable[[Builder, ir.Value], tuple[ir.Value, ir.Value]]

# The taps of each mode, counted from the pixel below a place, and what weighs them by the place's fraction.
_MODES: dict[str, tuple[list[float], _Weigher]] = {
    "nearest": ([0.0], _nearest),
    "linear": ([0.0, 1.0], _linear),
    "cubic": ([-1.0, 0.0, 1.0, 2.0], _cubic),
}
