"""Resampling of images: Resize, and regions of interest."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import merged
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import extents, reshape
from onnx_grad.batching.folds import folded_into, lengths_of
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import folded, unfolded
from onnx_grad.builder import Builder


@batching("Resize", sizes=[2, 3])
def resize(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Images [N, …] are folded where their number stays; else all axes but that of the batch are resized."""
    if not x.only(0):
        return None
    rank, axes = x.rank(0), node.attributes.get_ints("axes", None)
    if rank is None:
        return None
    resized = [axis % rank for axis in axes] if axes is not None else list(range(rank))
    if axes is not None and 0 not in resized:
        return folded(op, node, x, [0])
    if axes is None and (rank >= 4 or _keeps_number(node, x)):
        return _with_images(op, node, x)
    if x.get(1) is not None:
        return None
    if node.attributes.get_string("mode", "nearest") == "nearest" or rank > 3:
        return again(op, node, *x.all(), axes=[axis + 1 for axis in resized])
    # Images of one channel: ONNX Runtime interpolates along at most three axes behind two others.
    images = reshape(op, x[0], [*extents(x[0], 0, 1), 1, *extents(x[0], 1)])
    (result,) = again(op, node, images, *x.all()[1:], axes=[axis + 2 for axis in resized])
    return op.Squeeze(result, [1])


def _with_images(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The batch folded into the number of images, by which a size for that is multiplied.

    ONNX Runtime interpolates images of four and more axes only if their number stays.
    """
    sizes = x.get(3)
    if sizes is None:
        return folded(op, node, x, [0])
    number = op.Mul(op.Slice(sizes, [0], [1]), x.batch.length(op))
    target = op.Concat(number, op.Slice(sizes, [1], [9]), axis=0)
    (result,) = again(op, node, folded_into(op, x[0], 0), x.get(1), None, target)
    return unfolded(op, node.outputs[0], result, 0, lengths_of(x[0], 0))


def _keeps_number(node: ir.Node, x: Operands) -> bool:
    """Whether the first axis certainly keeps its length."""
    scales = known.constant(x.get(2))
    if scales is not None and scales.size:
        return bool(scales[0] == 1)
    before, after = known.dimensions(known.operand(node, 0)), known.dimensions(node.outputs[0])
    return bool(before and after and known.same_dimension(before[0], after[0]))


@batching("RoiAlign")
def roi_align(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Regions, with the number of the image that each is of, among those of all examples."""
    images, regions, numbers = x.repeated(0), x.repeated(1), x.repeated(2)
    offsets = _first_images(op, x, images)
    numbers = numbers + op.CastLike(op.Unsqueeze(offsets, [1]), numbers)
    operands = (folded_into(op, images, 0), merged(op, regions), op.Reshape(numbers, [-1]))
    (result,) = again(op, node, *operands)
    return unfolded(op, node.outputs[0], result, 0, lengths_of(regions, 0))


@batching("MaxRoiPool")
def max_roi_pool(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The same, with the number of the image in the first column of the regions."""
    images, regions = x.repeated(0), x.repeated(1)
    offsets = op.CastLike(op.Unsqueeze(_first_images(op, x, images), [1, 2]), regions)
    column = op.Slice(regions, [0], [1], [2]) + offsets
    rest = op.Slice(regions, [1], [5], [2])
    numbered = op.Reshape(op.Concat(column, rest, axis=2), [-1, 5])
    (result,) = again(op, node, folded_into(op, images, 0), numbered)
    return unfolded(op, node.outputs[0], result, 0, lengths_of(regions, 0))


def _first_images(op: Builder, x: Operands, images: ir.Value) -> ir.Value:
    """The number of the first image of each example: 0, N, 2N and so on."""
    examples = op.Range(0, op.Squeeze(x.batch.length(op), [0]), 1)
    return examples * op.Shape(images, start=1, end=2)
