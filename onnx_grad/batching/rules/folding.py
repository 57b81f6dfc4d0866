"""Operators that have a batch axis of their own: the new one is folded into it, and out of the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import merged
from onnx_grad.batching.emission import again
from onnx_grad.batching.extents import Part, extents, reshape
from onnx_grad.batching.folds import folded_into, lengths_of, unfolded_from
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching, runs_in_scan
from onnx_grad.builder import Builder, Operand


@batching(
    *"AveragePool DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool LRN SpaceToDepth".split()
)
def images(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Operators on images [N, C, …], each by itself."""
    return folded(op, node, x, [0])


@batching("MaxPool")
def max_pool(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Maxima; their indices count the elements of all N images, and start again with each example."""
    values, *indices = folded(op, node, x, [0])
    if not indices:
        return [values]
    size = op.ReduceProd(op.Shape(x[0], start=1), keepdims=0)
    return [values, op.Mod(indices[0], size)]


@batching("Col2Im", sizes=[1, 2])
def column_to_image(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Columns [N, C·blocks, L] to images."""
    return folded(op, node, x, [0])


@batching("DeformConv")
def deformable_convolution(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Images, offsets and masks by example; weights that differ between examples run in a `Scan`."""
    if not x.only(0, 2, 4):
        return None
    return folded(op, node, x, [0, 2, 4])


@batching("GridSample")
def grid_sample(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Images [N, C, …] sampled at points [N, …]."""
    return folded(op, node, x, [0, 1])


@batching("ConvInteger", "QLinearConv")
def quantized_convolution(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Images by example, with weights, scales and zero points that all examples share."""
    return folded(op, node, x, [0]) if x.only(0) else None


@batching("STFT")
def short_time_fourier_transform(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Signals [N, L, 1 or 2], with a window that all examples share."""
    return folded(op, node, x, [0]) if x.only(0) else None


@batching("TensorScatter")
def tensor_scatter(op: Builder, node: ir.Node, x: Operands) -> Result:
    """A cache [N, …], an update of it, and where each of the N begins."""
    return folded(op, node, x, [0, 1, 2])


@batching("RotaryEmbedding")
def rotary_embedding(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Tokens [N, …] rotated by the angles of positions [N, S], or by angles [N, S, D/2] of their own."""
    if x.get(3) is None:
        return folded(op, node, x, [0, 1, 2])
    return folded(op, node, x, [0, 3]) if x.only(0, 3) else None


# Its indices count the elements of the result for one example.
runs_in_scan("MaxUnpool")


@batching("AffineGrid", sizes=[1])
def affine_grid(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Sampling points of N affine maps; the size of the result begins with N."""
    lead = extents(x[0], 0, 2)
    rest = op.Slice(x[1], [1], [9])
    folded_theta = merged(op, x[0])
    size = op.Concat(op.Shape(folded_theta, start=0, end=1), rest, axis=0)
    (result,) = again(op, node, folded_theta, size)
    return unfolded(op, node.outputs[0], result, 0, lead)


@batching("TfIdfVectorizer")
def tf_idf(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Counts by row."""
    rank = x.rank(0)
    if rank is None:
        return None
    return again(op, node, x[0]) if rank == 1 else folded(op, node, x, [0])


def folded(
    op: Builder,
    node: ir.Node,
    x: Operands,
    operands: Mapping[int, int] | Sequence[int],
    results: Sequence[int] = (),
    **changes: Any,
) -> list[ir.Value]:
    """The results of `node` with the batch axis folded into an axis of some operands, and out of the results.

    Args:
        op: Builds the graph.
        node: The node for one example.
        x: Its operands. Those that are batched are all among `operands`.
        operands: Positions of operands with the axis of each that is the operator's own batch axis; with 0
            where they are only listed.
        results: That axis of each result; 0 for those beyond.
        **changes: Attributes that change.
    """
    axes = operands if isinstance(operands, Mapping) else dict.fromkeys(operands, 0)
    first = next(i for i in axes if x.is_batched(i))
    lengths = lengths_of(x[first], axes[first])
    given: list[Operand] = [
        folded_into(op, x.repeated(i), axes[i]) if i in axes and value is not None else value
        for i, value in enumerate(x.all())
    ]
    made = again(op, node, *given, **changes)
    return [
        unfolded(op, node.outputs[i], result, results[i] if i < len(results) else 0, lengths)
        for i, result in enumerate(made)
    ]


def unfolded(
    op: Builder, example: ir.Value, result: ir.Value, axis: int, lengths: Sequence[Part]
) -> ir.Value:
    """The batch that was folded into `axis` of a result.

    Args:
        op: Builds the graph.
        example: The result for one example.
        result: The result with the batch folded in.
        axis: Where.
        lengths: The lengths of the batch axis and of the operator's own.
    """
    dims = known.dimensions(example)
    if dims is not None:
        result.shape = ir.Shape([None if i == axis else d for i, d in enumerate(dims)])
    return unfolded_from(op, result, axis, lengths)


def by_channel(op: Builder, x: Operands, index: int, rank: int) -> ir.Value:
    """Operand `index`, a number for each channel, aligned with the channels of images of the given rank."""
    ones: list[Part] = [1] * (rank - 2)
    value = x[index]
    if x.is_batched(index):
        return reshape(op, value, [*extents(value, 0, 1), 1, *extents(value, 1, 2), *ones])
    return reshape(op, value, [*extents(value, 0, 1), *ones])
