"""Sampling an image at given points, GridSample, and the points of an affine map, AffineGrid.

The sample at a point is Σ w·x over taps, the pixels around the point, and each weight is a product of one
weight for each axis. The points stand in one row here: positions and weights of the taps have the shape
[batch, points, taps], and the image is [batch, pixels, channels].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_in_batches
from onnx_grad.rules.precision import widen
from onnx_grad.rules.taps import Taps, sampling_mode, taps

# As many spatial axes as an image is taken to have where nothing tells; a graph with more fails when it runs.
_MOST_SPATIAL_AXES = 3


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


@gradient("GridSample", convention="clamped coordinates get no cotangent")
def grid_sample(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = Σ w·x over taps: dx = Σ w·dy over the points that have a pixel as a tap, d point = Σ w'·x·dy."""
    x, grid = known.operand(node, 0), known.operand(node, 1)
    axes = _taps_by_axis(op, node)
    pixels = _pixels(op, axes)
    image, samples = _in_rows(op, x), _in_rows(op, dy)

    def dx() -> ir.Value:
        weights = op.CastLike(_product(op, [axis.weights for axis in axes]), x)
        terms = op.Unsqueeze(weights, [3]) * op.Unsqueeze(samples, [2])
        count = op.ReduceProd(op.Shape(pixels, start=1), keepdims=1)
        indices = op.Reshape(pixels, op.Concat(op.Shape(x, end=1), count, [1], axis=0), allowzero=1)
        total = add_in_batches(op, terms, indices, image, 1, op.Shape(image, start=2))
        return op.reshape_like(op.Transpose(total, perm=[0, 2, 1]), x)

    def dgrid() -> ir.Value:
        found = op.GatherND(image, op.Unsqueeze(pixels, [3]), batch_dims=1)
        dweights = widen(op, op.ReduceSum(found * op.Unsqueeze(samples, [2]), [3], keepdims=0), grid)
        components = []
        for moved in range(len(axes)):
            factors = [axis.slopes if i == moved else axis.weights for i, axis in enumerate(axes)]
            components.append(op.ReduceSum(dweights * _product(op, factors), [2], keepdims=1))
        # The grid counts axes from the last.
        dpoints = op.Concat(*reversed(components), axis=2)
        if _spatial_rank(node) is None:
            dpoints = op.Slice(dpoints, [0], op.Shape(grid, start=-1), [2])
        return op.CastLike(op.reshape_like(dpoints, grid), grid)

    return dx, None if sampling_mode(node) == "nearest" else dgrid


def _taps_by_axis(op: Builder, node: ir.Node) -> list[Taps]:
    """The taps along each spatial axis of the image, or along as many axes as it may have.

    They are found in single precision at least: half precision cannot tell where in a large image they are.
    """
    x, grid, rank = known.operand(node, 0), known.operand(node, 1), _spatial_rank(node)
    grid = widen(op, grid, grid)
    components = op.Shape(grid, start=-1)
    count = op.ReduceProd(op.Shape(grid, start=1, end=-1), keepdims=1)
    points = op.Reshape(grid, op.Concat(op.Shape(grid, end=1), count, components, axis=0), allowzero=1)
    lengths = op.Shape(x, start=2)
    if rank is None:
        # The first axes have length 1, where every mode takes the only pixel for a coordinate of 0.
        rank, missing = _MOST_SPATIAL_AXES, _MOST_SPATIAL_AXES - components
        lengths = op.Concat(op.Expand(op.constant(1, ir.DataType.INT64), missing), lengths, axis=0)
        zeros = op.Expand(op.scalar_like(0.0, grid), op.Concat(op.Shape(points, end=2), missing, axis=0))
        points = op.Concat(points, zeros, axis=2)
    # The grid counts axes from the last.
    return [
        taps(op, node, op.Slice(points, [rank - 1 - axis], [rank - axis], [2]), op.Gather(lengths, axis))
        for axis in range(rank)
    ]


def _pixels(op: Builder, axes: Sequence[Taps]) -> ir.Value:
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


def _spatial_rank(node: ir.Node) -> int | None:
    for value in (*node.inputs, *node.outputs):
        rank = None if value is None else known.rank(value)
        if rank is not None:
            return rank - 2
    return None
