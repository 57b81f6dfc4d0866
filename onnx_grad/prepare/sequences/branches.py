"""If: branches that make sequences, and branches that are known not to run."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.prepare.sequences import settled
from onnx_grad.prepare.sequences.bodies import give_out, unfold
from onnx_grad.prepare.sequences.context import Walk, holds_tensors
from onnx_grad.prepare.sequences.forms import Form, Listed
from onnx_grad.prepare.sequences.optionals import Option
from onnx_grad.prepare.sequences.runs import NoTensorFormError
from onnx_grad.prepare.sequences.sites import Site
from onnx_grad.wiring import body as body_of

_BRANCHES = ("then_branch", "else_branch")


def if_(walk: Walk, node: ir.Node) -> None:
    """The branch that runs, where that is settled; else tensors in the place of the sequences it gives."""
    condition = settled.content(known.operand(node, 0))
    if condition is not None and any(map(walk.active, node.outputs)):
        branch = body_of(node, _BRANCHES[0] if condition.all() else _BRANCHES[1])
        nodes, results = unfold(walk.writer, branch, [], walk.before(node), str(node.name))
        walk.adopt(nodes)
        walk.replace(node, results[: len(node.outputs)])
        walk.visit(nodes)
        return
    branches = [body_of(node, name) for name in _BRANCHES]
    for branch in branches:
        walk.visit(branch)
    positions = [i for i, y in enumerate(node.outputs) if holds_tensors(y) and walk.active(y)]
    if positions:
        _give_tensors(walk, node, branches, positions)


def _give_tensors(walk: Walk, node: ir.Node, branches: list[ir.Graph], positions: list[int]) -> None:
    scope = str(node.name)
    forms = []
    for position in positions:
        pair = [_form(walk, branch.outputs[position]) for branch in branches]
        sites = [Site.end(walk.writer, branch, scope) for branch in branches]
        forms.append(_alike(pair, sites, node.outputs[position]))
    kept = [i for i in range(len(node.outputs)) if i not in positions]
    for side, branch in enumerate(branches):
        outputs = list(branch.outputs)
        branch.outputs.clear()
        tensors = [tensor for pair in forms for tensor in pair[side].tensors()]
        give_out(walk.writer, branch, [*(outputs[i] for i in kept), *tensors], scope)
    given = [tensor for pair in forms for tensor in pair[0].tensors()]
    new = ir.Node("", "If", node.inputs, node.attributes, num_outputs=len(kept) + len(given), name=node.name)
    results = new.outputs[len(kept) :]
    for result, tensor in zip(results, given, strict=True):
        result.name, result.type = walk.writer.unique_name(f"{scope}/{tensor.name}"), tensor.type
    walk.supersede(node, new, dict(zip((node.outputs[i] for i in kept), new.outputs, strict=False)))
    site = walk.after(new)
    left = list(results)
    for position, (form, _) in zip(positions, forms, strict=True):
        count = len(form.tensors())
        walk.drop_sequence(node.outputs[position], form.of(left[:count], site), site)
        del left[:count]


def _form(walk: Walk, value: ir.Value) -> Form | Option:
    return walk.option(value) if isinstance(value.type, ir.OptionalType) else walk.form(value)


def _alike(pair: list[Form | Option], sites: list[Site], value: ir.Value) -> list[Form | Option]:
    """What both branches give, made of tensors in the same way."""
    if pair[0].kind == pair[1].kind:
        return pair
    same: list[Form | Option] = []
    for form, other, site in zip(pair, pair[::-1], sites, strict=True):
        if isinstance(form, Option) and isinstance(other, Option):
            with site.writing() as op:
                same.append(form.maybe(op, other))
        elif isinstance(form, Form) and isinstance(other, Form) and form.count() == other.count() is not None:
            same.append(Listed(form.elements(), site))
    if len(same) < len(pair) or same[0].kind != same[1].kind:
        raise NoTensorFormError(f"the branches give '{value.name}' in different lengths")
    return same
