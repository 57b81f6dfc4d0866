"""Operators that make a sequence or an optional: what stands for it."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.prepare.sequences import settled
from onnx_grad.prepare.sequences.context import Walk, holds_tensors
from onnx_grad.prepare.sequences.forms import Listed
from onnx_grad.prepare.sequences.optionals import Option
from onnx_grad.prepare.sequences.runs import Chunks, Cuts, NoTensorFormError, Position, Run, Stack
from onnx_grad.prepare.sequences.sites import Site


def sequence_construct(walk: Walk, node: ir.Node) -> None:
    """The tensors themselves."""
    tensors = [known.operand(node, index) for index in range(len(node.inputs))]
    walk.forms[node.outputs[0]] = Listed(tensors, walk.after(node))


def sequence_empty(walk: Walk, node: ir.Node) -> None:
    """No tensor."""
    walk.forms[node.outputs[0]] = Listed([], walk.after(node))


def split_to_sequence(walk: Walk, node: ir.Node) -> None:
    """Slices or pieces of a tensor."""
    site = walk.after(node)
    walk.forms[node.outputs[0]] = Listed([_pieces(node, site)], site)


def _pieces(node: ir.Node, site: Site) -> Run:
    """What a `SplitToSequence` makes.

    With pieces of length 1 given as a scalar, ONNX Runtime drops the axis when `keepdims` says so, and
    PyTorch exports `unbind` like that; the specification ignores `keepdims` where there is a length.
    """
    x, split = known.operand(node, 0), known.optional_operand(node, 1)
    axis, keeps = node.attributes.get_int("axis", 0), bool(node.attributes.get_int("keepdims", 1))
    if split is None:
        return Chunks(x, axis, site, 1) if keeps else Stack(x, axis, site)
    rank = known.rank(split)
    if rank == 0:
        length = settled.number(split)
        if length == 1 and not keeps:
            return Stack(x, axis, site)
        if length is None and not keeps:
            raise NoTensorFormError(
                f"whether the pieces of '{x.name}' keep axis {axis} depends on its `split`"
            )
        with site.writing() as op:
            return Chunks(x, axis, site, _integer(op, split) if length is None else length)
    if rank is None:
        raise NoTensorFormError(f"whether '{split.name}' is one length or one for each piece is not known")
    sizes = settled.content(split)
    with site.writing() as op:
        lengths = _integer(op, split) if sizes is None else op.constant(sizes, ir.DataType.INT64)
        lengths.shape = lengths.shape or split.shape
        return Cuts(x, axis, site, lengths)


def sequence_insert(walk: Walk, node: ir.Node) -> None:
    """One tensor more."""
    sequence, tensor = walk.form(known.operand(node, 0)), known.operand(node, 1)
    site = walk.after(node)
    with site.writing() as op:
        place = known.optional_operand(node, 2)
        position = None if place is None else position_of(op, place)
        walk.forms[node.outputs[0]] = sequence.inserted(op, tensor, position, site)


def sequence_erase(walk: Walk, node: ir.Node) -> None:
    """One tensor less."""
    sequence = walk.form(known.operand(node, 0))
    site = walk.after(node)
    with site.writing() as op:
        place = known.optional_operand(node, 1)
        position = -1 if place is None else position_of(op, place)
        walk.forms[node.outputs[0]] = sequence.erased(op, position, site)


def identity(walk: Walk, node: ir.Node) -> None:
    """The same, where it is a sequence or an optional."""
    operand = known.operand(node, 0)
    if holds_tensors(operand):
        walk.forms[node.outputs[0]] = (
            walk.option(operand) if isinstance(operand.type, ir.OptionalType) else walk.form(operand)
        )


def optional(walk: Walk, node: ir.Node) -> None:
    """Something, or nothing."""
    operand = known.optional_operand(node, 0)
    content = walk.form(operand) if operand is not None and holds_tensors(operand) else operand
    walk.forms[node.outputs[0]] = Option(operand is not None, content)


def position_of(op: Builder, value: ir.Value) -> Position:
    """A position: a number where it is settled, else an int64 scalar."""
    settled_number = settled.number(value)
    if settled_number is not None:
        return settled_number
    position = _integer(op, value)
    return position if known.rank(value) == 0 else op.Squeeze(position)


def _integer(op: Builder, value: ir.Value) -> ir.Value:
    return value if value.dtype == ir.DataType.INT64 else op.Cast(value, to=ir.DataType.INT64)
