"""Pooling over regions of interest: RoiAlign."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen
from onnx_grad.rules.region_maxima import Candidates, largest, spread_to_first_maxima


@gradient("RoiAlign", frozen=[1], convention="regions get no cotangent; the first maximum takes all")
def roi_align(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y[r, c, b] = the mean, or the maximum, of samples of image n in bin b of region r.

    The samples are bilinear, at the points of a grid in each bin. As in torchvision, the regions themselves
    get no cotangent.
    """
    rows, columns = _samples(op, node, axis=0), _samples(op, node, axis=1)
    if node.attributes.get_string("mode", "avg") == "max":
        return _of_maxima(op, node, dy, rows, columns)
    return _of_means(op, node, dy, rows, columns)


@dataclass(frozen=True)
class _Samples:
    """Where the samples of each row of bins lie along an axis, [R, bins, samples].

    Attributes:
        points: Their coordinates, brought into the image.
        inside: Whether they were at most a pixel outside; farther samples are zero.
        counts: Which samples there are, [R, 1, samples]: larger regions may have more.
        divisor: How many there are, at least 1, [R, 1, 1].
        length: The image's size along the axis, a scalar of the dtype of the points.
    """

    points: ir.Value
    inside: ir.Value
    counts: ir.Value
    divisor: ir.Value
    length: ir.Value


def _samples(op: Builder, node: ir.Node, axis: int) -> _Samples:
    x, rois = known.operand(node, 0), known.operand(node, 1)
    # Half precision cannot tell where in a large image a sample lies.
    rois = widen(op, rois, rois)
    bins = node.attributes.get_int("output_width" if axis else "output_height", 1)
    start, size = _extent(op, node, rois, axis)
    bin_size = size / float(bins)
    ratio = node.attributes.get_int("sampling_ratio", 0)
    # An empty region has no samples, and is zero.
    count = op.Expand(op.scalar_like(float(ratio), rois), op.Shape(size)) if ratio > 0 else op.Ceil(bin_size)
    divisor = op.Max(count, 1.0)
    samples = op.CastLike(op.Range(0, largest(op, divisor), 1), rois)
    numbers = op.CastLike(op.constant(range(bins), ir.DataType.INT64), rois)
    within = op.Unsqueeze((samples + 0.5) / divisor, [1])
    points = op.Unsqueeze(start, [2]) + (op.Unsqueeze(numbers, [1]) + within) * op.Unsqueeze(bin_size, [2])
    length = op.Squeeze(op.CastLike(op.Shape(x, start=axis + 2, end=axis + 3), rois))
    return _Samples(
        points=op.Clip(points, op.scalar_like(0.0, rois), length - 1.0),
        inside=op.And(op.GreaterOrEqual(points, -1.0), op.LessOrEqual(points, length)),
        counts=op.Unsqueeze(op.Less(samples, count), [1]),
        divisor=op.Unsqueeze(divisor, [2]),
        length=length,
    )


def _extent(op: Builder, node: ir.Node, rois: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """Where each region starts along an axis, and how long it is, in pixels of the image, [R, 1]."""
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    scaled = rois * node.attributes.get_float("spatial_scale", 1.0)
    if mode == "half_pixel":
        scaled = scaled - 0.5
    start, end = (op.Gather(scaled, [column], axis=1) for column in (1 - axis, 3 - axis))
    return start, end - start if mode == "half_pixel" else op.Max(end - start, 1.0)


def _of_means(op: Builder, node: ir.Node, dy: ir.Value, rows: _Samples, columns: _Samples) -> ir.Value:
    """Y[r, c] = A[r]·X[n, c]·B[r]ᵀ for a region r of image n: dX[n, c] = Σ A[r]ᵀ·dY[r, c]·B[r] over these r.

    Rows and columns separate: A [R, OH, H] and B [R, OW, W] hold the mean weight of each row and column of
    pixels in each bin.
    """
    x, batch_indices = known.operand(node, 0), known.operand(node, 2)
    batch, channels, height, width = (op.Shape(x, start=i, end=i + 1) for i in range(4))
    a = op.CastLike(_mean_weights(op, rows, height), dy)
    b = op.CastLike(_mean_weights(op, columns, width), dy)
    # [R, C, OH, W], then every row of every region's bins as a row of one matrix.
    products = op.Transpose(op.MatMul(dy, op.Unsqueeze(b, [1])), perm=[0, 2, 1, 3])
    products = op.Reshape(products, op.Concat([-1], op.Mul(channels, width), axis=0))
    image_numbers = op.Unsqueeze(op.Range(0, op.Squeeze(batch), 1), [1])
    is_of_image = op.CastLike(op.Equal(image_numbers, op.Unsqueeze(batch_indices, [0])), x)
    spread = op.Unsqueeze(is_of_image, [2, 3]) * op.Unsqueeze(a, [0])
    spread = op.Transpose(spread, perm=[0, 3, 1, 2])
    spread = op.Reshape(spread, op.Concat(batch, height, [-1], axis=0))
    total = op.Reshape(op.MatMul(spread, products), op.Concat(batch, height, channels, width, axis=0))
    return op.Transpose(total, perm=[0, 2, 1, 3])


def _mean_weights(op: Builder, samples: _Samples, length: ir.Value) -> ir.Value:
    """The mean weight of each of `length` rows of pixels in each row of bins, [R, bins, pixels]."""
    pixels = op.CastLike(op.Range(0, op.Squeeze(length), 1), samples.points)
    weights = op.Relu(1.0 - op.Abs(op.Unsqueeze(samples.points, [3]) - pixels))
    taken = op.CastLike(op.And(samples.inside, samples.counts), weights)
    return op.ReduceSum(weights * op.Unsqueeze(taken, [3]), [2], keepdims=0) / samples.divisor


def _of_maxima(op: Builder, node: ir.Node, dy: ir.Value, rows: _Samples, columns: _Samples) -> ir.Value:
    """y[r, c, b] = max w·x[n, c, p] over the four pixels around each sample: dx = w·dy at the first maximum.

    The maximum of weighted pixels, not of their sum, is what onnx's reference evaluator and ONNX Runtime
    take; a sample far outside takes part as zero.
    """
    x = known.operand(node, 0)
    width = op.Shape(x, start=3, end=4)
    (row, row_weight), (column, column_weight) = _taps(op, rows), _taps(op, columns)
    # [R, rows of bins, columns of bins, rows of samples, columns of samples, upper or lower, left or right].
    pixels = op.Add(op.Mul(_across(op, row), width), _along(op, column))
    weights = op.Mul(_across(op, row_weight), _along(op, column_weight))
    counts = op.And(
        _across(op, op.Unsqueeze(rows.counts, [3])), _along(op, op.Unsqueeze(columns.counts, [3]))
    )
    bins = op.ReduceProd(op.Shape(pixels, start=1, end=3), keepdims=1)
    taps = op.ReduceProd(op.Shape(pixels, start=3), keepdims=1)
    shape = op.Concat(op.Shape(pixels, end=1), bins, taps, axis=0)
    counts = op.Expand(counts, op.Shape(pixels))
    candidates = Candidates(
        images=op.Cast(known.operand(node, 2), to=ir.DataType.INT64),
        pixels=op.Reshape(pixels, shape, allowzero=1),
        weights=op.Reshape(weights * op.CastLike(counts, weights), shape, allowzero=1),
        counts=op.Reshape(counts, shape, allowzero=1),
    )
    return spread_to_first_maxima(op, dy, x, candidates)


def _taps(op: Builder, samples: _Samples) -> tuple[ir.Value, ir.Value]:
    """The two rows of pixels around each sample, int64, and their weights, both [R, bins, samples, 2]."""
    below = op.Floor(samples.points)
    above = op.Min(below + 1.0, samples.length - 1.0)
    fraction = samples.points - below
    inside = op.Unsqueeze(op.CastLike(samples.inside, fraction), [3])
    pixels = op.Concat(op.Unsqueeze(below, [3]), op.Unsqueeze(above, [3]), axis=3)
    weights = op.Concat(op.Unsqueeze(1.0 - fraction, [3]), op.Unsqueeze(fraction, [3]), axis=3)
    return op.Cast(pixels, to=ir.DataType.INT64), weights * inside


def _across(op: Builder, rows: ir.Value) -> ir.Value:
    """[R, bins, samples, taps] along rows, with axes between for those along columns."""
    return op.Unsqueeze(rows, [2, 4, 6])


def _along(op: Builder, columns: ir.Value) -> ir.Value:
    """[R, bins, samples, taps] along columns, with axes between for those along rows."""
    return op.Unsqueeze(columns, [1, 3, 5])
