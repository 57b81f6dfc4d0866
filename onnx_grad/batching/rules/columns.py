"""Convolution as a product of matrices: of each example's filters with the columns of its images."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.extents import concatenated, extents, product, reshape
from onnx_grad.batching.operands import Operands
from onnx_grad.builder import Builder


def by_columns(op: Builder, node: ir.Node, x: Operands) -> ir.Value | None:
    """Y = X ∗ W for images and filters of unknown number of examples; `None` where padding is not explicit.

    A column holds what one window of an image covers: Y = W·columns(X) for each group of channels.
    """
    rank = (known.rank(known.operand(node, 0)) or 2) - 2
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank)
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        return None
    images, filters = x.repeated(0), x[1]
    if any(pads) and automatic == "NOTSET":
        images = op.Pad(images, [0, 0, 0, *pads[:rank], 0, 0, 0, *pads[rank:]])
    columns, counts = _columns(op, node, images, filters, rank)
    groups = node.attributes.get_int("group", 1)
    lead = [*extents(x.repeated(0), 0, 1), *extents(x.repeated(0), 1, 2)]
    width = product(extents(filters, 2))
    column_matrix = reshape(op, columns, [*lead, groups, width, product(counts)])
    share = _share(op, filters, groups)
    filter_matrix = reshape(op, filters, [*extents(filters, 0, 1), 1, groups, share, width])
    result = op.MatMul(filter_matrix, column_matrix)
    return reshape(op, result, [*lead, *extents(filters, 1, 2), *counts])


def _columns(
    op: Builder, node: ir.Node, images: ir.Value, filters: ir.Value, rank: int
) -> tuple[ir.Value, list[ir.Value]]:
    """Padded images [B, N, C, I…] as [B, N, C, taps…, windows…], and the numbers of windows."""
    strides = node.attributes.get_ints("strides", (1,) * rank)
    dilations = node.attributes.get_ints("dilations", (1,) * rank)
    counts: list[ir.Value] = []
    for axis in reversed(range(rank)):
        taps = op.Squeeze(concatenated(op, extents(filters, 3 + axis, 4 + axis)), [0])
        length = op.Squeeze(op.Shape(images, start=3 + axis, end=4 + axis), [0])
        offsets = op.Mul(op.Range(0, taps, 1), dilations[axis])
        reach = op.Mul(op.Sub(taps, 1), dilations[axis])
        starts = op.Range(0, op.Sub(length, reach), strides[axis])
        images = op.Gather(images, op.Add(op.Unsqueeze(offsets, [1]), starts), axis=3 + axis)
        counts.insert(0, op.Shape(starts))
    taps_first = [*range(3, 3 + 2 * rank, 2), *range(4, 4 + 2 * rank, 2)]
    return op.Transpose(images, perm=[0, 1, 2, *taps_first]), counts


def _share(op: Builder, filters: ir.Value, groups: int) -> int | ir.Value:
    """The number of filters of one group."""
    (count,) = extents(filters, 1, 2)
    if isinstance(count, int):
        return count // groups
    return op.Div(concatenated(op, [count]), [groups])
