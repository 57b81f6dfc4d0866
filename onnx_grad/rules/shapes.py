"""Operators that only rearrange, repeat or convert elements."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, derivative_is_zero, gradient, refused

derivative_is_zero("Shape", "Size", reason="the output is an integer that depends on the shape only")
refused(
    "BitCast", reason="the bits of a number are no differentiable function of it; cut the flow with stop=[…]"
)


@gradient("Identity")
def identity(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x: dx = dy."""
    return dy


@gradient("Reshape")
def reshape(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x in another shape: dx = dy in the shape of x."""
    return op.reshape_like(dy, known.operand(node, 0))


@gradient("Flatten")
def flatten(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x as a matrix: dx = dy in the shape of x."""
    return op.reshape_like(dy, known.operand(node, 0))


@gradient("Squeeze")
def squeeze(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x without some axes of length 1: dx = dy with them."""
    # An empty list of axes means "all" to ONNX Runtime's Squeeze and "none" to Unsqueeze.
    axes = known.constant_integers(known.optional_operand(node, 1))
    return op.Unsqueeze(dy, axes) if axes else op.reshape_like(dy, known.operand(node, 0))


@gradient("Unsqueeze")
def unsqueeze(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x with further axes of length 1: dx = dy without them."""
    axes = known.constant_integers(known.operand(node, 1))
    return op.Squeeze(dy, axes) if axes else op.reshape_like(dy, known.operand(node, 0))


@gradient("Expand")
def expand(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x stretched to a shape: dx = dy summed over the stretched axes."""
    return undo_broadcast(op, dy, known.operand(node, 0), node.outputs[0])


def _quantises(node: ir.Node) -> str | None:
    """Why a conversion cannot be differentiated, if it is one to or from eight bits or fewer."""
    for value in (node.inputs[0], node.outputs[0]):
        if value is not None and known.is_narrow_float(value):
            return (
                f"numbers of type {value.dtype} are quantised, so a derivative is zero or undefined; "
                'quantization="straight-through" takes rounding for the identity, or leave the conversion '
                "out of the model to be differentiated"
            )
    return None


@gradient("Cast", refuses=_quantises)
def cast(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x in another dtype: dx = dy in the dtype of x."""
    return op.CastLike(dy, known.operand(node, 0))


@gradient("CastLike", frozen=(1,), refuses=_quantises)
def cast_like(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = x in the dtype of another tensor: dx = dy in the dtype of x."""
    return op.CastLike(dy, known.operand(node, 0)), None


@gradient("Transpose")
def transpose(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x with permuted axes: dx = dy with the inverse permutation."""
    perm = node.attributes.get_ints("perm", ())
    inverse = sorted(range(len(perm)), key=perm.__getitem__)
    return op.Transpose(dy, perm=inverse or None)


@gradient("Concat")
def concat(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = [a, b, …] along an axis: da, db, … = dy, split."""
    operands = [value for value in node.inputs if value is not None]
    if len(operands) == 1:
        return (dy,)
    axis = node.attributes.get_int("axis", 0)
    return op.Split(dy, _lengths(op, operands, axis), axis=axis, outputs=len(operands))


@gradient("Split")
def split(op: Builder, node: ir.Node, *dys: ir.Value | None) -> InputCotangent:
    """a, b, … = x, split along an axis: dx = [da, db, …]."""
    parts = [op.zeros_like(y) if dy is None else dy for y, dy in zip(node.outputs, dys, strict=True)]
    if len(parts) == 1:
        return parts[0]
    return op.Concat(*parts, axis=node.attributes.get_int("axis", 0))


def _lengths(op: Builder, values: Sequence[ir.Value], axis: int) -> ir.Value:
    """The length of each value along `axis`, as a 1-D tensor."""
    shapes = [known.dimensions(value) for value in values]
    static = [dims[axis] for dims in shapes if dims is not None and isinstance(dims[axis], int)]
    if len(static) == len(values):
        return op.constant(static, ir.DataType.INT64)
    # The last axis has no end: -1 + 1 would be the first.
    each = [op.Shape(value, start=axis, end=axis + 1 or None) for value in values]
    return op.Concat(*each, axis=0)


@gradient("Tile")
def tile(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x repeated along each axis: dx = the sum of the repetitions."""
    x, repeats = known.operand(node, 0), known.operand(node, 1)
    counts, lengths = known.constant_integers(repeats), known.static_shape(x)
    if counts is None or lengths is None:
        pairs = op.Concat(op.Unsqueeze(repeats, [1]), op.Unsqueeze(op.Shape(x), [1]), axis=1)
        interleaved = op.Reshape(pairs, [-1])
        axes = op.Range(0, op.Size(interleaved), 2)
        repetitions = op.Reshape(dy, interleaved, allowzero=1)
        return op.ReduceSum(repetitions, axes, keepdims=0, noop_with_empty_axes=1)
    shape: list[int] = []
    repeated = []
    for count, length in zip(counts, lengths, strict=True):
        if count != 1:
            repeated.append(len(shape))
            shape.append(count)
        shape.append(length)
    if not repeated:
        return dy
    return op.ReduceSum(op.Reshape(dy, shape, allowzero=1), repeated, keepdims=0)


@gradient("DepthToSpace")
def depth_to_space(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x with channels spread over blocks of pixels: dx = dy with these gathered again."""
    blocksize = node.attributes.get_int("blocksize")
    if node.attributes.get_string("mode", "DCR") == "DCR":
        return op.SpaceToDepth(dy, blocksize=blocksize)
    # Column-row-depth order: y[n, c, h·b + i, w·b + j] = x[n, (c·b + i)·b + j, h, w].
    x = known.operand(node, 0)
    block = [blocksize]
    batch, height, width = (op.Shape(x, start=i, end=i + 1) for i in (0, 2, 3))
    shape = op.Concat(batch, op.Shape(dy, start=1, end=2), height, block, width, block, axis=0)
    blocks = op.Transpose(op.Reshape(dy, shape, allowzero=1), perm=[0, 1, 3, 5, 2, 4])
    return op.reshape_like(blocks, x)


@gradient("SpaceToDepth")
def space_to_depth(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = x with blocks of pixels stacked in channels: dx = dy with these spread again."""
    mode = node.attributes.get_string("mode", "DCR")
    return op.DepthToSpace(dy, blocksize=node.attributes.get_int("blocksize"), mode=mode)
