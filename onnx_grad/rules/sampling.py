"""Sampling an image at given points, GridSample, and the points of an affine map, AffineGrid.

The sample at a point is Σ w·x over taps, the pixels around the point, and each weight is a product of one
weight for each axis. The points stand in one row here: positions and weights of the taps have the shape
[batch, points, taps], and the image is [batch, pixels, channels].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_in_batches

# The coefficient of cubic convolution (R. G. Keys, 1981) in the ONNX specification.
_CUBIC = -0.75


@gradient("AffineGrid")
def affine_grid(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """yₚ = A·p + b for each point p of a regular grid, x = [A b]: dA = Σₚ dyₚ·pᵀ, db = Σₚ dyₚ."""
    theta, size = known.operand(node, 0), known.operand(node, 1)
    batch, rows = op.Shape(theta, start=0, end=1), op.Shape(theta, start=1, end=2)
    # The identity map gives the points themselves.
    identity = op.EyeLike(op.Expand(op.scalar_like(0.0, theta), op.Shape(theta, start=1)))
    align_corners = node.attributes.get_int("align_corners", 0)
    points = op.AffineGrid(op.Expand(identity, op.Shape(theta)), size, align_corners=align_corners)
    count = op.ReduceProd(op.Slice(size, [2], [2**31 - 1]), keepdims=1)
    shape = op.Concat(batch, count, rows, axis=0)
    dy, points = op.Reshape(dy, shape, allowzero=1), op.Reshape(points, shape, allowzero=1)
    da = op.MatMul(op.Transpose(dy, perm=[0, 2, 1]), points)
    db = op.Unsqueeze(op.ReduceSum(dy, [1], keepdims=0), [2])
    return op.Concat(da, db, axis=2)


def _refusal(node: ir.Node) -> str | None:
    if _spatial_rank(node) is None:
        return "the rank of its inputs is not known; declare the shape of one of them"
    return None


@gradient("GridSample", refuses=_refusal, convention="clamped coordinates get no cotangent")
def grid_sample(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = Σ w·x over taps: dx = Σ w·dy over the points that have a pixel as a tap, d point = Σ w'·x·dy."""
    x, grid = known.operand(node, 0), known.operand(node, 1)
    axes = _taps_by_axis(op, node)
    pixels = _pixels(op, axes)
    image, samples = _in_rows(op, x), _in_rows(op, dy)

    def dx() -> ir.Value:
        weights = op.CastLike(_product(op, [axis.weights for axis in axes]), x)
        terms = op.Unsqueeze(weights, [3]) * op.Unsqueeze(samples, [2])
        taps = op.Concat(
            op.Shape(x, end=1), op.ReduceProd(op.Shape(pixels, start=1), keepdims=1), [1], axis=0
        )
        indices = op.Reshape(pixels, taps, allowzero=1)
        total = add_in_batches(op, terms, indices, image, 1, op.Shape(image, start=2))
        return op.reshape_like(op.Transpose(total, perm=[0, 2, 1]), x)

    def dgrid() -> ir.Value:
        found = op.GatherND(image, op.Unsqueeze(pixels, [3]), batch_dims=1)
        dweights = op.CastLike(op.ReduceSum(found * op.Unsqueeze(samples, [2]), [3], keepdims=0), grid)
        components = []
        for moved in range(len(axes)):
            factors = [axis.slopes if i == moved else axis.weights for i, axis in enumerate(axes)]
            components.append(op.ReduceSum(dweights * _product(op, factors), [2], keepdims=1))
        # The grid counts axes from the last.
        return op.reshape_like(op.Concat(*reversed(components), axis=2), grid)

    return dx, None if _mode(node) == "nearest" else dgrid


@dataclass(frozen=True)
class _Taps:
    """The taps of every point along one axis.

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


def _taps_by_axis(op: Builder, node: ir.Node) -> list[_Taps]:
    grid, rank = known.operand(node, 1), _spatial_rank(node) or 0
    shape = op.Concat(
        op.Shape(grid, end=1), op.ReduceProd(op.Shape(grid, start=1, end=-1), keepdims=1), [rank], axis=0
    )
    points = op.Reshape(grid, shape, allowzero=1)
    return [
        _taps(op, node, op.Slice(points, [rank - 1 - axis], [rank - axis], [2]), axis) for axis in range(rank)
    ]


def _taps(op: Builder, node: ir.Node, coordinate: ir.Value, axis: int) -> _Taps:
    """The taps along one spatial axis for coordinates that run from −1 to 1."""
    length = op.Squeeze(op.Shape(known.operand(node, 0), start=2 + axis, end=3 + axis))
    size = op.CastLike(length, coordinate)
    align_corners = node.attributes.get_int("align_corners", 0)
    mode, padding = _mode(node), node.attributes.get_string("padding_mode", "zeros")
    # The borders of the image, which a coordinate of −1 and of 1 fall on.
    low, high = (0.0, size - 1.0) if align_corners else (-0.5, size - 0.5)
    slope = (high - low) * 0.5
    place = (coordinate + 1.0) * slope + low
    if mode == "nearest":
        place = op.Round(place)
    if padding != "zeros" and mode != "cubic":
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
    positions = op.Cast(op.Clip(positions, 0.0, size - 1.0), to=ir.DataType.INT64)
    return _Taps(positions, weights, slopes, length)


def _reflected(
    op: Builder, place: ir.Value, low: float | ir.Value, high: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Places folded back between two borders as often as needed, and the derivative of that, 1 or −1."""
    span = op.Max(high - low, 1.0)
    beyond = place - low
    beyond = beyond - 2.0 * span * op.Floor(beyond / (2.0 * span))
    to_border = span - beyond
    return low + span - op.Abs(to_border), op.Sign(to_border)


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


def _pixels(op: Builder, axes: Sequence[_Taps]) -> ir.Value:
    """The number of each tap's pixel, counted through the whole image."""
    pixels = axes[0].positions
    for axis in axes[1:]:
        pixels = _paired(op, op.Add, pixels * axis.length, axis.positions)
    return pixels


def _product(op: Builder, factors: Sequence[ir.Value]) -> ir.Value:
    """The product over the axes for each combination of their taps."""
    product = factors[0]
    for factor in factors[1:]:
        product = _paired(op, op.Mul, product, factor)
    return product


def _paired(op: Builder, combine: Callable[..., ir.Value], a: ir.Value, b: ir.Value) -> ir.Value:
    """Each tap of `a` combined with each of `b`, all in one row."""
    pairs = combine(op.Unsqueeze(a, [3]), op.Unsqueeze(b, [2]))
    taps = op.Shape(a, start=2) * op.Shape(b, start=2)
    return op.Reshape(pairs, op.Concat(op.Shape(pairs, end=2), taps, axis=0), allowzero=1)


def _in_rows(op: Builder, image: ir.Value) -> ir.Value:
    """[batch, channels, spatial axes…] as [batch, pixels, channels]."""
    pixels = op.ReduceProd(op.Shape(image, start=2), keepdims=1)
    rows = op.Reshape(image, op.Concat(op.Shape(image, end=2), pixels, axis=0), allowzero=1)
    return op.Transpose(rows, perm=[0, 2, 1])


def _mode(node: ir.Node) -> str:
    """The mode as opset 20 names it: before, the names were bilinear and bicubic."""
    return node.attributes.get_string("mode", "linear").removeprefix("bi")


def _spatial_rank(node: ir.Node) -> int | None:
    for value in (*node.inputs, *node.outputs):
        rank = None if value is None else known.rank(value)
        if rank is not None:
            return rank - 2
    return None
