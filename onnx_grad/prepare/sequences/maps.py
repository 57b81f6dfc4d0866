"""SequenceMap: its body for each element, or in a loop."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.prepare.sequences.bodies import give_out, loop_inputs, unfold
from onnx_grad.prepare.sequences.context import Walk, holds_tensors
from onnx_grad.prepare.sequences.forms import LARGEST_SPLIT, Form
from onnx_grad.prepare.sequences.runs import NoTensorFormError
from onnx_grad.prepare.sequences.sites import Site
from onnx_grad.wiring import body as body_of


def sequence_map(walk: Walk, node: ir.Node) -> None:
    """The body once for each element; in a loop that stacks the results where their number is not known."""
    if not any(map(walk.active, node.outputs)):
        return
    forms = [walk.form(operand) for operand in node.inputs if operand is not None and holds_tensors(operand)]
    count = forms[0].count()
    if count is None or (count > LARGEST_SPLIT and all(form.is_even() for form in forms)):
        _in_a_loop(walk, node)
    else:
        _unfolded(walk, node)


def _unfolded(walk: Walk, node: ir.Node) -> None:
    body, operands = body_of(node, "body"), [known.operand(node, i) for i in range(len(node.inputs))]
    count = len(walk.form(operands[0]).elements())
    columns = [walk.form(o).elements() if holds_tensors(o) else [o] * count for o in operands]
    site = walk.before(node)
    nodes, rows = [], []
    for index, arguments in enumerate(zip(*columns, strict=True)):
        copies, results = unfold(walk.writer, body, arguments, site, f"{node.name}/{index}")
        nodes += copies
        rows.append(results)
    sequences = []
    for position, output in enumerate(node.outputs):
        with site.writing() as op:
            elements = [row[position] for row in rows]
            dtype = output.dtype
            sequences.append(op.SequenceConstruct(*elements) if elements else op.SequenceEmpty(dtype=dtype))
        nodes.append(op.nodes[-1])
    walk.adopt(nodes)
    walk.replace(node, sequences)
    walk.visit(nodes)


def _in_a_loop(walk: Walk, node: ir.Node) -> None:
    operands = [known.operand(node, i) for i in range(len(node.inputs))]
    length, forms = walk.form(operands[0]), [walk.form(o) if holds_tensors(o) else o for o in operands]
    if not all(form.is_even() for form in forms if isinstance(form, Form)):
        raise NoTensorFormError(
            f"'{operands[0].name}' holds tensors that may differ in shape, and how many is only known when "
            "the model runs"
        )
    scope = str(node.name)
    index, runs_on = loop_inputs(walk.writer, scope)
    loop_body = ir.Graph([index, runs_on], [], nodes=[], name=walk.writer.unique_name(f"{scope}/body"))
    end = Site.end(walk.writer, loop_body, scope)
    with end.writing() as op:
        arguments = [form.at(op, index) if isinstance(form, Form) else form for form in forms]
    _, results = unfold(walk.writer, body_of(node, "body"), arguments, end, scope)
    give_out(walk.writer, loop_body, [runs_on, *results], scope)
    with walk.before(node).writing() as op:
        stacks = op.Loop(
            length.length(op), op.constant(True, ir.DataType.BOOL), outputs=len(node.outputs), body=loop_body
        )
        sequences = [op.SplitToSequence(stack, keepdims=0) for stack in stacks]
    nodes = [*op.nodes]
    walk.adopt(nodes)
    walk.replace(node, sequences)
    walk.visit(nodes)
