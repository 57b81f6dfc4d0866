"""Resize, as one matrix product along each axis.

Every mode of `Resize` is linear in the image and separable: y = (W₁ ⊗ … ⊗ Wₙ)·x, with one matrix of
interpolation weights for each axis.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient, refused
from onnx_grad.rules.interpolation import Interpolated, transposed_weights

refused("Upsample", reason="it ended with opset 9; lift the model to a newer opset, where it is Resize")

# As many axes as a tensor is taken to have where nothing tells; a graph with a larger one fails when it runs.
_MOST_AXES = 8

# Where these meet, enlarging by an integer n repeats every pixel n times.
_REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("half_pixel_symmetric", "round_prefer_floor"),
    ("half_pixel_symmetric", "round_prefer_ceil"),
}


@gradient("Resize", frozen=(1, 2))
def resize(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = (W₁ ⊗ … ⊗ Wₙ)·x: dx = (W₁ᵀ ⊗ … ⊗ Wₙᵀ)·dy. The region and the scales count as constants.

    The weights are those of the runtime at hand. Where ONNX Runtime differs from the specification, as with
    `align_corners` and a scale that makes a fraction of a pixel, the gradient is that of what it computes.
    Scales have no derivative, as they only act through whole numbers of pixels and through the places that
    are read; for these, and so for the region, PyTorch has none either.
    """
    repeats = _repeats(node)
    if repeats is not None:
        return op.AveragePool(dy, kernel_shape=repeats, strides=repeats) * float(math.prod(repeats))
    axes = _resized_axes(node)
    if axes is None:
        return _resize_any_rank(op, node, dy)
    x = known.operand(node, 0)
    for axis in sorted(axes, reverse=True):
        if not _keeps_length(node, axis, axes[axis]):
            dy = _resize_back(op, node, dy, axis, _interpolated(op, node, x, axis, axes[axis]))
    return dy


def _resize_any_rank(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """The same where the number of axes is unknown: axes of length 1 in front make it `_MOST_AXES`."""
    x = known.operand(node, 0)
    ones = op.Expand(op.constant(1, ir.DataType.INT64), _MOST_AXES - op.Shape(op.Shape(x)))
    image, dy = (op.Reshape(v, op.Concat(ones, op.Shape(v), axis=0), allowzero=1) for v in (x, dy))
    for axis in range(-1, -_MOST_AXES - 1, -1):
        dy = _resize_back(op, node, dy, axis, _interpolated(op, node, image, axis, axis + _MOST_AXES, ones))
    return op.reshape_like(dy, x)


def _resize_back(op: Builder, node: ir.Node, dy: ir.Value, axis: int, interpolated: Interpolated) -> ir.Value:
    """Wᵀ of one axis times `dy` along it."""
    matrix = op.CastLike(transposed_weights(op, node, interpolated), dy)
    if axis == -1:
        return op.MatMul(dy, op.Transpose(matrix, perm=[1, 0]))
    if axis == -2:
        return op.MatMul(matrix, dy)
    before, behind = op.Shape(dy, end=axis), op.Shape(dy, start=axis + 1)
    counts = [op.ReduceProd(shape, keepdims=1) for shape in (before, behind)]
    rows = op.Reshape(dy, op.Concat(counts[0], _length(op, dy, axis), counts[1], axis=0), allowzero=1)
    shape = op.Concat(before, interpolated.length, behind, axis=0)
    return op.Reshape(op.MatMul(matrix, rows), shape, allowzero=1)


def _interpolated(
    op: Builder, node: ir.Node, x: ir.Value, axis: int, index: int, ones: ir.Value | None = None
) -> Interpolated:
    """What the operands tell of an axis of x: element `index` of each, behind one for each of the `ones`."""

    def element(vector: ir.Value, missing: float = 1.0) -> ir.Value:
        if ones is not None:
            vector = op.Concat(op.CastLike(op.Mul(ones, missing), vector), vector, axis=0)
        return _element(op, vector, index)

    sizes = _sizes(node)
    region = deciding = None
    if _crops(node):
        starts, ends = _halves(op, known.operand(node, 1))
        region = element(starts, 0.0), element(ends)
    if _keeps_ratio(node) and sizes is not None:
        length, size = (op.Expand(number, op.Shape(sizes)) for number in _deciding(op, node, sizes))
        deciding = element(length), element(size)
    return Interpolated(
        _length(op, x, axis),
        region,
        element(known.operand(node, 2)) if sizes is None else None,
        None if sizes is None else element(sizes),
        deciding,
    )


def _deciding(op: Builder, node: ir.Node, sizes: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Length and size of the axis that all others take their scale from, as they keep the aspect ratio."""
    lengths = op.shape(known.operand(node, 0))
    axes = node.attributes.get_ints("axes", ())
    if axes:
        lengths = op.Gather(lengths, axes)
    ratios = op.Cast(sizes, to=ir.DataType.DOUBLE) / op.Cast(lengths, to=ir.DataType.DOUBLE)
    policy = node.attributes.get_string("keep_aspect_ratio_policy")
    deciding = (op.ArgMin if policy == "not_larger" else op.ArgMax)(ratios, axis=0, keepdims=1)
    return op.Gather(lengths, deciding), op.Gather(sizes, deciding)


def _halves(op: Builder, vector: ir.Value) -> tuple[ir.Value, ir.Value]:
    """The first and the second half of a vector."""
    content = known.constant(vector)
    if content is not None and vector.dtype is not None:
        first, second = content.reshape(2, -1)
        return op.constant(first, vector.dtype), op.constant(second, vector.dtype)
    halves = op.Split(vector, num_outputs=2, outputs=2)
    return halves[0], halves[1]


def _element(op: Builder, vector: ir.Value, index: int) -> ir.Value:
    """One element of a vector, as a vector of length 1."""
    content = known.constant(vector)
    if content is not None and vector.dtype is not None:
        return op.constant(content[index : index + 1], vector.dtype)
    # Inference takes what it picks from a vector of unknown length for empty, unless it is told otherwise.
    return op.Reshape(op.Gather(vector, [index]), [1])


def _length(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The length of an axis, in a tensor of shape [1]."""
    dims = known.dimensions(value)
    if dims is not None and isinstance(length := dims[axis], int):
        return op.constant([length], ir.DataType.INT64)
    return op.Shape(value, start=axis, end=axis + 1 or None)


def _resized_axes(node: ir.Node) -> dict[int, int] | None:
    """The axes, counted from the end where the rank is known, and which element of the operands is theirs."""
    rank = known.rank(known.operand(node, 0)) or known.rank(node.outputs[0])
    axes = node.attributes.get_ints("axes", ())
    if axes:
        return {axis if rank is None else axis % rank - rank: index for index, axis in enumerate(axes)}
    if rank is None:
        counted = known.static_shape(_sizes(node) or known.operand(node, 2))
        rank = None if counted is None else counted[0]
    return None if rank is None else {index - rank: index for index in range(rank)}


def _sizes(node: ir.Node) -> ir.Value | None:
    """The operand `sizes`, unless `scales` decides."""
    sizes = known.optional_operand(node, 3)
    return None if sizes is None or known.constant_integers(sizes) == () else sizes


def _crops(node: ir.Node) -> bool:
    return node.attributes.get_string("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"


def _keeps_ratio(node: ir.Node) -> bool:
    """Whether given sizes are bounds, in which all axes are scaled alike."""
    return node.attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch"


def _keeps_length(node: ir.Node, axis: int, index: int) -> bool:
    """Whether nothing happens along an axis."""
    return not _crops(node) and _ratio(node, axis, index) == 1


def _repeats(node: ir.Node) -> list[int] | None:
    """How often each pixel occurs along each spatial axis if that is all that happens, else `None`."""
    transformation = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
    mode = node.attributes.get_string("mode", "nearest")
    rank = known.rank(known.operand(node, 0))
    if mode != "nearest" or (transformation, rounding) not in _REPEATING or rank not in (3, 4, 5):
        return None
    ratios: list[float | None] = [1.0] * rank
    for axis, index in (_resized_axes(node) or {}).items():
        ratios[axis] = _ratio(node, axis, index)
    integers = [int(ratio) for ratio in ratios if ratio is not None and ratio.is_integer() and ratio >= 1]
    return integers[2:] if len(integers) == rank and integers[:2] == [1, 1] else None


def _ratio(node: ir.Node, axis: int, index: int) -> float | None:
    """The length along an axis of y over that of x, where it is known and is the scale."""
    if _sizes(node) is None:
        scales = known.constant(known.operand(node, 2))
        return None if scales is None else float(scales[index])
    lengths, resized = (known.dimensions(value) for value in (known.operand(node, 0), node.outputs[0]))
    if lengths is None or resized is None or _keeps_ratio(node):
        return None
    if known.same_dimension(lengths[axis], resized[axis]):
        return 1.0
    before, after = lengths[axis], resized[axis]
    return after / before if isinstance(before, int) and isinstance(after, int) and before > 0 else None
