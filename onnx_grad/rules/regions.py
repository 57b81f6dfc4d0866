"""Pooling over regions of interest: RoiAlign; MaxRoiPool is refused."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient, refused

refused(
    "MaxRoiPool",
    reason="its regions are rounded to pixels in a way that no specification describes; use RoiAlign, which "
    "succeeded it, or cut the flow with stop=[…]",
)


def _refusal(node: ir.Node) -> str | None:
    if node.attributes.get_string("mode", "avg") != "avg":
        return (
            "RoiAlign with mode='max' takes the maximum of weighted pixels; no gradient is offered for that; "
            "use  mode='avg', or cut the flow with stop=[…]"
        )
    return None


@gradient("RoiAlign", frozen=[1], refuses=_refusal, convention="regions get no cotangent")
def roi_align(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y[r, c] = A[r]·X[n, c]·B[r]ᵀ for a region r of image n: dX[n, c] = Σ A[r]ᵀ·dY[r, c]·B[r] over these r.

    A bin is the mean of bilinear samples at the points of a grid, so rows and columns separate: A [R, OH, H]
    and B [R, OW, W] hold the mean weight of each row and column of pixels in each bin. As in torchvision, the
    regions themselves get no cotangent.
    """
    x, batch_indices = known.operand(node, 0), known.operand(node, 2)
    a, b = _bin_weights(op, node, dy, axis=0), _bin_weights(op, node, dy, axis=1)
    batch, channels, height, width = (op.Shape(x, start=i, end=i + 1) for i in range(4))
    # [R, C, OH, W], then every row of every region's bins as a row of one matrix.
    rows = op.Transpose(op.MatMul(dy, op.Unsqueeze(b, [1])), perm=[0, 2, 1, 3])
    rows = op.Reshape(rows, op.Concat([-1], op.Mul(channels, width), axis=0))
    image_numbers = op.Unsqueeze(op.Range(0, op.Squeeze(batch), 1), [1])
    is_of_image = op.CastLike(op.Equal(image_numbers, op.Unsqueeze(batch_indices, [0])), x)
    spread = op.Unsqueeze(is_of_image, [2, 3]) * op.Unsqueeze(a, [0])
    spread = op.Transpose(spread, perm=[0, 3, 1, 2])
    spread = op.Reshape(spread, op.Concat(batch, height, [-1], axis=0))
    total = op.Reshape(op.MatMul(spread, rows), op.Concat(batch, height, channels, width, axis=0))
    return op.Transpose(total, perm=[0, 2, 1, 3])


def _bin_weights(op: Builder, node: ir.Node, dy: ir.Value, axis: int) -> ir.Value:
    """The mean weight of each row of pixels in each row of bins, [R, bins, pixels]; columns for axis 1."""
    x, rois = known.operand(node, 0), known.operand(node, 1)
    bins = node.attributes.get_int("output_width" if axis else "output_height", 1)
    start, size = _extent(op, node, rois, axis)
    bin_size = size / float(bins)
    ratio = node.attributes.get_int("sampling_ratio", 0)
    # An empty region has no samples, and is zero.
    count = op.Expand(op.scalar_like(float(ratio), rois), op.Shape(size)) if ratio > 0 else op.Ceil(bin_size)
    divisor = op.Max(count, 1.0)
    samples = op.CastLike(
        op.Range(0, op.Cast(op.ReduceMax(divisor, keepdims=0), to=ir.DataType.INT64), 1), rois
    )
    numbers = op.CastLike(op.constant(range(bins), ir.DataType.INT64), rois)
    within = op.Unsqueeze((samples + 0.5) / divisor, [1])
    points = op.Unsqueeze(start, [2]) + (op.Unsqueeze(numbers, [1]) + within) * op.Unsqueeze(bin_size, [2])
    length = op.Shape(x, start=axis + 2, end=axis + 3)
    last = op.CastLike(length, rois)
    inside = op.And(op.GreaterOrEqual(points, -1.0), op.LessOrEqual(points, last))
    taken = op.And(inside, op.Unsqueeze(op.Less(samples, count), [1]))
    nearest = op.Clip(points, op.scalar_like(0.0, rois), op.Squeeze(last - 1.0))
    pixels = op.CastLike(op.Range(0, op.Squeeze(length), 1), rois)
    weights = op.Relu(1.0 - op.Abs(op.Unsqueeze(nearest, [3]) - pixels))
    weights = weights * op.Unsqueeze(op.CastLike(taken, rois), [3])
    return op.CastLike(op.ReduceSum(weights, [2], keepdims=0) / op.Unsqueeze(divisor, [2]), dy)


def _extent(op: Builder, node: ir.Node, rois: ir.Value, axis: int) -> tuple[ir.Value, ir.Value]:
    """Where each region starts along an axis, and how long it is, in pixels of the image, [R, 1]."""
    mode = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    scaled = rois * node.attributes.get_float("spatial_scale", 1.0)
    if mode == "half_pixel":
        scaled = scaled - 0.5
    start, end = (op.Gather(scaled, [column], axis=1) for column in (1 - axis, 3 - axis))
    return start, end - start if mode == "half_pixel" else op.Max(end - start, 1.0)
