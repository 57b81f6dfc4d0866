"""Operators that read a tensor of a sequence or an optional, or how many there are."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.prepare.sequences.context import Walk, holds_tensors
from onnx_grad.prepare.sequences.forms import Form
from onnx_grad.prepare.sequences.makers import position_of
from onnx_grad.prepare.sequences.runs import NoTensorFormError


def sequence_at(walk: Walk, node: ir.Node) -> None:
    """One element."""
    sequence = known.operand(node, 0)
    if walk.active(sequence):
        form = walk.form(sequence)
        with walk.before(node).writing() as op:
            element = form.at(op, position_of(op, known.operand(node, 1)))
        walk.replace(node, [element])


def concat_from_sequence(walk: Walk, node: ir.Node) -> None:
    """All elements, joined."""
    sequence = known.operand(node, 0)
    if walk.active(sequence):
        form = walk.form(sequence)
        with walk.before(node).writing() as op:
            new_axis = bool(node.attributes.get_int("new_axis", 0))
            joined = form.joined(op, node.attributes.get_int("axis"), new_axis)
        walk.replace(node, [joined])


def sequence_length(walk: Walk, node: ir.Node) -> None:
    """How many elements there are."""
    sequence = known.operand(node, 0)
    if walk.active(sequence):
        form = walk.form(sequence)
        count = form.count()
        with walk.before(node).writing() as op:
            length = form.length(op) if count is None else op.constant(count, ir.DataType.INT64)
        walk.replace(node, [length])


def optional_has_element(walk: Walk, node: ir.Node) -> None:
    """Whether there is something; a tensor or a sequence is."""
    operand = known.optional_operand(node, 0)
    if operand is None or not walk.active(operand):
        return
    present = walk.option(operand).present if isinstance(operand.type, ir.OptionalType) else True
    with walk.before(node).writing() as op:
        is_there = op.constant(present, ir.DataType.BOOL) if isinstance(present, bool) else present
    walk.replace(node, [is_there])


def optional_get_element(walk: Walk, node: ir.Node) -> None:
    """What is in it."""
    operand, (element,) = known.operand(node, 0), node.outputs
    if not holds_tensors(operand):
        if walk.active(operand):
            walk.replace(node, [operand])
        return
    content = (
        walk.option(operand).content if isinstance(operand.type, ir.OptionalType) else walk.form(operand)
    )
    if isinstance(content, Form):
        walk.forms[element] = content
    elif content is None:
        raise NoTensorFormError(f"there is nothing in the optional '{operand.name}'")
    elif walk.active(operand):
        walk.replace(node, [content])
