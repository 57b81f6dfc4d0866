"""Maxima over regions of an image, turned round: the cotangent of each bin goes to its first maximum."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.masking import cast_like
from onnx_grad.rules.accumulate import add_flat
from onnx_grad.rules.precision import widen


@dataclass(frozen=True)
class Candidates:
    """What the bins of every region take the maximum of: pixels, each times a weight.

    Attributes:
        images: Which image of the batch each region lies in, int64, [R].
        pixels: The pixels of the candidates, counted through their image, int64, [R, bins, candidates].
        weights: Their weights, of the same shape; zero for those that do not count.
        counts: Which of them count, of the same shape.
    """

    images: ir.Value
    pixels: ir.Value
    weights: ir.Value
    counts: ir.Value


def spread_to_first_maxima(op: Builder, dy: ir.Value, x: ir.Value, candidates: Candidates) -> ir.Value:
    """dx for y[r, c, b] = max over k of w[r, b, k]·x[n, c, p[r, b, k]], with n the image of region r.

    The first of equal candidates takes all; a bin without candidates gives nothing.

    Args:
        op: Builds the nodes.
        dy: The cotangent of y, [R, C, bins…], its bins in the order of the candidates'.
        x: The images, [N, C, H, W].
        candidates: What there is to choose from.

    Returns:
        A value of the shape of `x`.
    """
    batch, channels = op.Shape(x, end=1), op.Shape(x, start=1, end=2)
    area = op.ReduceProd(op.Shape(x, start=2), keepdims=1)
    images, pixels = op.Unsqueeze(candidates.images, [1, 2]), candidates.pixels
    # A row for each pixel of each image, so that one look serves all channels.
    columns = op.Reshape(x, op.Concat(batch, channels, area, axis=0), allowzero=1)
    rows = op.Transpose(columns, perm=[0, 2, 1])
    rows = op.Reshape(rows, op.Concat(op.Mul(batch, area), channels, axis=0), allowzero=1)
    found = widen(op, op.Gather(rows, op.Add(op.Mul(images, area), pixels)), x)
    weights = cast_like(op, candidates.weights, found)
    values = op.Mul(found, op.Unsqueeze(weights, [3]))
    first = op.ArgMax(op.Where(op.Unsqueeze(candidates.counts, [3]), values, -np.inf), axis=2, keepdims=0)
    chosen = op.Add(_first_of_each(op, pixels), first)
    bins = op.Concat(op.Shape(pixels, end=1), channels, op.Shape(pixels, start=1, end=2), axis=0)
    share = op.Transpose(op.Reshape(dy, bins, allowzero=1), perm=[0, 2, 1])
    share = share * cast_like(op, _flat(op, weights, chosen), dy)
    # The image, the channel and the pixel, counted through all elements of x.
    planes = op.Add(op.Mul(images, channels), op.Range(0, op.Squeeze(channels), 1))
    positions = op.Add(op.Mul(planes, area), _flat(op, pixels, chosen))
    return add_flat(op, share, positions, x)


def _first_of_each(op: Builder, candidates: ir.Value) -> ir.Value:
    """The number of the first candidate of each bin, counted through all of them, [R, bins, 1]."""
    bins = op.Shape(candidates, end=2)
    numbers = op.Range(0, op.ReduceProd(bins, keepdims=0), 1)
    each = op.Shape(candidates, start=2, end=3)
    return op.Mul(op.Reshape(numbers, op.Concat(bins, [1], axis=0), allowzero=1), each)


def _flat(op: Builder, values: ir.Value, numbers: ir.Value) -> ir.Value:
    """The elements of `values` with the given numbers, counted through all of them."""
    return op.Gather(op.Reshape(values, [-1]), numbers)


def largest(op: Builder, sizes: ir.Value) -> ir.Value:
    """The largest of some sizes as an integer, at least 1, also where there are none."""
    integers = op.Cast(sizes, to=ir.DataType.INT64)
    return op.ReduceMax(op.Concat([1], op.Reshape(integers, [-1]), axis=0), keepdims=0)
