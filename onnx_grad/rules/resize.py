"""Resize, as one matrix product along each axis.

Every mode of `Resize` is linear in the image and separable: y = (W₁ ⊗ … ⊗ Wₙ)·x, with one matrix of
interpolation weights for each axis. The operator itself computes these weights best: resizing the identity
matrix along one axis gives Wᵀ, whatever the mode, the coordinate transformation and the runtime's choices at
the borders.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient, refused

refused("Upsample", reason="it ended with opset 9; lift the model to a newer opset, where it is Resize")

# Attributes that shape the weights of one axis; the extrapolation value is not a weight.
_WEIGHTING = (
    "antialias",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "mode",
    "nearest_mode",
)
# Where these meet, enlarging by an integer n repeats every pixel n times.
_REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
    ("half_pixel_symmetric", "round_prefer_floor"),
    ("half_pixel_symmetric", "round_prefer_ceil"),
}


def _refusal(node: ir.Node) -> str | None:
    policy = node.attributes.get_string("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch" and _sizes(node) is not None:
        return (
            f"keep_aspect_ratio_policy='{policy}' makes the scale of each axis depend on the others; "
            "compute the sizes in the model and use 'stretch'"
        )
    if _resized_axes(node) is None:
        return "the rank of its input is not known; declare the shape of that input"
    return None


@gradient("Resize", frozen=(1, 2), refuses=_refusal)
def resize(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = (W₁ ⊗ … ⊗ Wₙ)·x: dx = (W₁ᵀ ⊗ … ⊗ Wₙᵀ)·dy. The region and the scales count as constants."""
    repeats = _repeats(node)
    if repeats is not None:
        return op.AveragePool(dy, kernel_shape=repeats, strides=repeats) * float(math.prod(repeats))
    axes = _resized_axes(node) or {}
    for axis in sorted(axes, reverse=True):
        if not _keeps_length(node, axis, axes[axis]):
            dy = _multiply_along(op, node, axis, _transposed_weights(op, node, axis, axes), dy)
    return dy


def _multiply_along(op: Builder, node: ir.Node, axis: int, matrix: ir.Value, dy: ir.Value) -> ir.Value:
    """`matrix` times `dy` along one axis; the axes behind it have the lengths of x already."""
    if axis == -1:
        return op.MatMul(dy, op.Transpose(matrix, perm=[1, 0]))
    if axis == -2:
        return op.MatMul(matrix, dy)
    x, (y,) = known.operand(node, 0), node.outputs
    before, behind = op.Shape(y, end=axis), op.Shape(x, start=axis + 1)
    counts = [op.ReduceProd(shape, keepdims=1) for shape in (before, behind)]
    rows = op.Reshape(dy, op.Concat(counts[0], _length(op, y, axis), counts[1], axis=0), allowzero=1)
    shape = op.Concat(before, _length(op, x, axis), behind, axis=0)
    return op.Reshape(op.MatMul(matrix, rows), shape, allowzero=1)


def _transposed_weights(op: Builder, node: ir.Node, axis: int, axes: dict[int, int]) -> ir.Value:
    """Wᵀ of one axis, of shape [length of x, length of y]: the identity matrix, resized in this way."""
    x, sizes = known.operand(node, 0), _sizes(node)
    position = op.Range(0, op.Squeeze(_length(op, x, axis)), 1)
    # In float32, the only type that the CPU provider interpolates.
    identity = op.Cast(op.Equal(op.Unsqueeze(position, [1]), position), to=ir.DataType.FLOAT)
    index = axes[axis]
    resized = op.Resize(
        op.Unsqueeze(identity, [0, 1]),
        _region(op, node, index, len(axes)),
        _element(op, known.operand(node, 2), index) if sizes is None else None,
        None if sizes is None else _element(op, sizes, index),
        axes=[3],
        **{name: node.attributes[name].value for name in _WEIGHTING if name in node.attributes},
    )
    return op.CastLike(op.Squeeze(resized, [0, 1]), x)


def _region(op: Builder, node: ir.Node, index: int, count: int) -> ir.Value | None:
    """Start and end of the region along one axis, for the mode that crops."""
    if not _crops(node):
        return None
    roi = known.operand(node, 1)
    return op.Concat(_element(op, roi, index), _element(op, roi, count + index), axis=0)


def _element(op: Builder, vector: ir.Value, index: int) -> ir.Value:
    """One element of a vector, as a vector of length 1."""
    content = known.constant(vector)
    if content is not None and vector.dtype is not None:
        return op.constant(content[index : index + 1], vector.dtype)
    return op.Slice(vector, [index], [index + 1])


def _length(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """The length of an axis that is counted from the end, in a tensor of shape [1]."""
    dims = known.dimensions(value)
    if dims is not None and isinstance(length := dims[axis], int):
        return op.constant([length], ir.DataType.INT64)
    return op.Shape(value, start=axis, end=axis + 1 or None)


def _resized_axes(node: ir.Node) -> dict[int, int] | None:
    """The axes, counted from the end, and which element of the scales or sizes is theirs."""
    rank = known.rank(known.operand(node, 0)) or known.rank(node.outputs[0])
    axes = node.attributes.get_ints("axes", ())
    if axes and rank is not None:
        return {axis % rank - rank: index for index, axis in enumerate(axes)}
    if axes:
        return {axis: index for index, axis in enumerate(axes)} if max(axes) < 0 else None
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
    """The length along an axis of y over that of x, where it is known."""
    if _sizes(node) is None:
        scales = known.constant(known.operand(node, 2))
        return None if scales is None else float(scales[index])
    lengths, resized = (known.dimensions(value) for value in (known.operand(node, 0), node.outputs[0]))
    if lengths is None or resized is None:
        return None
    if known.same_dimension(lengths[axis], resized[axis]):
        return 1.0
    before, after = lengths[axis], resized[axis]
    return after / before if isinstance(before, int) and isinstance(after, int) and before > 0 else None
