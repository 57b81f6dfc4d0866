"""What a loop appends, where the sizes along one axis differ from one iteration to the next.

A loop can only stack what has one shape. So a loop before it finds out the sizes, the pieces are padded to
the largest, and the padding is taken out of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.liveness import detach
from onnx_grad.prepare.sequences.bodies import copied, give_out
from onnx_grad.prepare.sequences.choosing import either
from onnx_grad.prepare.sequences.context import Walk
from onnx_grad.prepare.sequences.runs import Stack
from onnx_grad.prepare.sequences.sites import Site


@dataclass(frozen=True)
class Lengths:
    """The sizes of the pieces that a loop appends.

    Attributes:
        axis: Along which axis.
        sizes: One for each iteration, as a 1-D int64 tensor.
        longest: The largest of them, or 0, as a scalar.
    """

    axis: int
    sizes: ir.Value
    longest: ir.Value


def measured(
    walk: Walk,
    node: ir.Node,
    operands: Sequence[ir.Value | None],
    body: ir.Graph,
    state_count: int,
    pieces: Sequence[tuple[int, int]],
) -> list[Lengths]:
    """Find out sizes of what a loop stacks by another loop in front of it, and let it pad to the largest.

    Args:
        walk: Writes the nodes.
        node: The loop that is to be replaced.
        operands: What the new loop reads.
        body: Its body, complete; some of its outputs will be padded.
        state_count: How many states it has.
        pieces: The outputs of the body that differ in size, each with the axis.

    Returns:
        The sizes of each of them.
    """
    if not pieces:
        return []
    measuring = _measuring_loop(walk, node, operands, body, state_count, pieces)
    walk.before(node).put([measuring])
    found = []
    for (index, axis), sizes in zip(pieces, measuring.outputs[state_count:], strict=True):
        with walk.before(node).writing() as op:
            longest = op.ReduceMax(op.Concat([0], sizes, axis=0), keepdims=0)
        with Site.end(walk.writer, body, str(node.name)).writing() as op:
            body.outputs[index] = _padded(op, body.outputs[index], axis, longest)
        found.append(Lengths(axis, sizes, longest))
    return found


def _measuring_loop(
    walk: Walk,
    node: ir.Node,
    operands: Sequence[ir.Value | None],
    body: ir.Graph,
    state_count: int,
    pieces: Sequence[tuple[int, int]],
) -> ir.Node:
    scope = f"{node.name}/sizes"
    copy = copied(walk.writer, body, scope)
    walk.adopt_body(copy)
    outputs = list(copy.outputs)
    copy.outputs.clear()
    with Site.end(walk.writer, copy, scope).writing() as op:
        sizes = [_size(op, outputs[index], axis) for index, axis in pieces]
    give_out(walk.writer, copy, [*outputs[: 1 + state_count], *sizes], scope)
    _drop_unread(copy)
    count = state_count + len(pieces)
    loop = ir.Node("", "Loop", operands, [ir.AttrGraph("body", copy)], num_outputs=count, name=scope)
    for result, value in zip(loop.outputs, copy.outputs[1:], strict=True):
        result.name, result.type = walk.writer.unique_name(f"{scope}/{value.name}"), value.type
    return loop


def _drop_unread(body: ir.Graph) -> None:
    for node in reversed(tuple(body)):
        if not any(output.uses() or output.is_graph_output() for output in node.outputs):
            detach([node])
            body.remove(node)


def _size(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    return op.Gather(op.Shape(value), axis)


def _padded(op: Builder, piece: ir.Value, axis: int, size: ir.Value) -> ir.Value:
    """`piece` with zeros behind it along `axis`."""
    missing = op.Reshape(op.Sub(size, _size(op, piece, axis)), [1])
    return op.Pad(piece, op.Concat([0], missing, axis=0), None, [axis])


def without_padding(op: Builder, stack: ir.Value, lengths: Lengths, site: Site) -> ir.Value:
    """The pieces that were padded and stacked, joined without their padding.

    Args:
        op: Builds the nodes.
        stack: The padded pieces, along a new first axis.
        lengths: Their sizes.
        site: Where they can be read.
    """
    whole = Stack(stack, 0, site).joined(op, lengths.axis, new_axis=False)

    def used(inner: Builder) -> ir.Value:
        is_used = inner.Less(inner.Range(0, lengths.longest, 1), inner.Unsqueeze(lengths.sizes, [1]))
        positions = inner.Squeeze(inner.NonZero(inner.Reshape(is_used, [-1])), [0])
        return inner.Gather(whole, positions, axis=lengths.axis)

    # What a loop stacks in no iteration has no sizes that anything could be taken from.
    return either(op, op.Greater(lengths.longest, 0), used, lambda inner: whole)
