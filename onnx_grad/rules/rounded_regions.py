"""Pooling over regions of interest with corners rounded to pixels: MaxRoiPool."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.region_maxima import Candidates, largest, spread_to_first_maxima


@gradient("MaxRoiPool", frozen=[1], convention="the first maximum of a bin takes all")
def max_roi_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y[r, c, b] = the maximum over bin b of region r, 0 if empty: dx = dy at the first maximum.

    The specification does not say which pixels a bin has. These are the ones of ONNX Runtime 1.32 (and of
    Fast R-CNN, R. Girshick, 2015): corners are rounded, halves away from zero, the last pixel belongs to the
    region, and bins overlap where the region's size is no multiple of theirs.
    """
    x, rois = known.operand(node, 0), known.operand(node, 1)
    rows, has_row = _pixels_of_bins(op, node, axis=0)
    columns, has_column = _pixels_of_bins(op, node, axis=1)
    # [R, bins, pixels] for each axis; side by side, [R, rows of bins, columns of bins, rows, columns].
    pixels = op.Add(
        op.Mul(op.Unsqueeze(rows, [2, 4]), op.Shape(x, start=3, end=4)), op.Unsqueeze(columns, [1, 3])
    )
    counts = op.And(op.Unsqueeze(has_row, [2, 4]), op.Unsqueeze(has_column, [1, 3]))
    bins = op.Concat(op.Shape(rois, end=1), _joined(op, pixels, 1), _joined(op, pixels, 3), axis=0)
    counts = op.Reshape(counts, bins, allowzero=1)
    candidates = Candidates(
        images=op.Cast(op.Squeeze(op.Gather(rois, [0], axis=1), [1]), to=ir.DataType.INT64),
        pixels=op.Reshape(pixels, bins, allowzero=1),
        weights=op.CastLike(counts, x),
        counts=counts,
    )
    return spread_to_first_maxima(op, dy, x, candidates)


def _pixels_of_bins(op: Builder, node: ir.Node, axis: int) -> tuple[ir.Value, ir.Value]:
    """The rows of pixels in each row of bins, [R, bins, pixels], and which count; columns for axis 1."""
    x, rois = known.operand(node, 0), known.operand(node, 1)
    bins = node.attributes.get_ints("pooled_shape", ())[axis]
    scale = node.attributes.get_float("spatial_scale", 1.0)
    # In float32, as in ONNX Runtime, which has no other kernel: rounding decides where a bin ends.
    corners = _rounded(op, op.Cast(rois, to=ir.DataType.FLOAT) * scale)
    start, end = (op.Gather(corners, [column], axis=1) for column in (2 - axis, 4 - axis))
    size = op.Max(end - start + 1.0, 1.0) / float(bins)
    numbers = op.constant(range(bins + 1), ir.DataType.FLOAT)
    borders = op.Unsqueeze(numbers, [0]) * size
    length = op.Shape(x, start=axis + 2, end=axis + 3)
    limit = op.Squeeze(op.Cast(length, to=ir.DataType.FLOAT))
    first = op.Clip(op.Floor(op.Slice(borders, [0], [bins], [1])) + start, 0.0, limit)
    behind = op.Clip(op.Ceil(op.Slice(borders, [1], [bins + 1], [1])) + start, 0.0, limit)
    offsets = op.Cast(op.Range(0, largest(op, behind - first), 1), to=ir.DataType.FLOAT)
    pixels = op.Unsqueeze(first, [2]) + offsets
    counts = op.Less(pixels, op.Unsqueeze(behind, [2]))
    # What does not count still has to be a pixel.
    return op.Cast(op.Mul(pixels, op.Cast(counts, to=ir.DataType.FLOAT)), to=ir.DataType.INT64), counts


def _rounded(op: Builder, value: ir.Value) -> ir.Value:
    """The nearest whole number, of two the one further from zero, where `Round` takes the even one."""
    magnitude = op.Abs(value)
    whole = op.Floor(magnitude)
    up = op.GreaterOrEqual(magnitude - whole, 0.5)
    return op.Sign(value) * (whole + op.Cast(up, to=ir.DataType.FLOAT))


def _joined(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """How many elements `value` has along `axis` and the axis behind it, in a tensor of shape [1]."""
    return op.ReduceProd(op.Shape(value, start=axis, end=axis + 2), keepdims=1)
