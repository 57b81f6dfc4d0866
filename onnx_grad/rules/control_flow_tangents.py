"""Tangents through If, Loop and Scan: the bodies compute them beside their primals.

Nothing is kept from one iteration to another: a loop hands the tangents of its states on as further states.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.liveness import drop
from onnx_grad.registry import ForwardFlow, structural_tangents
from onnx_grad.rules.bodies import extend_body, placeholder
from onnx_grad.rules.handing_on import hand_on, in_form_of
from onnx_grad.wiring import Scanned, body, iteration

Pairs = list[tuple[ir.Value, ir.Value]]

_BRANCHES = ("then_branch", "else_branch")


@structural_tangents("If")
def if_(op: Builder, node: ir.Node, flow: ForwardFlow) -> Pairs:
    """y = f(x) where the condition holds, else g(x): ẏ = f'(x)·ẋ where it holds, else g'(x)·ẋ.

    Each branch gives the tangents of its outputs out as well, zeros for those that do not vary in it.
    """
    branches = [body(node, name) for name in _BRANCHES]
    builders = [op.for_body(node) for _ in _BRANCHES]
    pushed = [flow.push_forward(inner, branch, []) for inner, branch in zip(builders, branches, strict=True)]
    varying = [
        index
        for index, y in enumerate(node.outputs)
        if y.name and any(b.outputs[index] in found for b, found in zip(branches, pushed, strict=True))
    ]
    for inner, branch, found in zip(builders, branches, pushed, strict=True):
        tangents = [_found_or_zeros(inner, found, branch.outputs[index]) for index in varying]
        branch.outputs.extend(extend_body(inner, branch, tangents, flow.roots()))
    flow.extended(node)
    primals = [node.outputs[index] for index in varying]
    node.resize_outputs(len(node.outputs) + len(varying))
    results = node.outputs[len(node.outputs) - len(varying) :]
    _describe(op, results, primals)
    return list(zip(primals, results, strict=True))


@structural_tangents("Loop")
def loop(op: Builder, node: ir.Node, flow: ForwardFlow) -> Pairs:
    """hₜ₊₁, yₜ = f(hₜ, θ): ḣₜ₊₁, ẏₜ = ∂f/∂hₜ · ḣₜ + ∂f/∂θ · θ̇."""
    return _iteration_with_tangents(op, node, flow)


@structural_tangents("Scan")
def scan(op: Builder, node: ir.Node, flow: ForwardFlow) -> Pairs:
    """hₜ₊₁, yₜ = f(hₜ, xₜ, θ): the same as for `Loop`, and the slices ẋₜ are read as those of x are."""
    return _iteration_with_tangents(op, node, flow)


def _iteration_with_tangents(op: Builder, node: ir.Node, flow: ForwardFlow) -> Pairs:
    """Put a node that hands on tangents as further states into the place of `node`."""
    form = iteration(node)
    inner = op.for_body(node)
    states = [s for s in form.states if any(map(flow.is_active, (s.before, s.after, s.result)))]
    handed = [hand_on(op, inner, s.initial, flow.tangent(s.initial), s.after, "tangent") for s in states]
    reads = [(r, dx) for r in form.reads if (dx := flow.tangent(r.whole)) is not None]
    slices = [placeholder(op, r.slice, f"{r.slice.name}/tangent") for r, _ in reads]
    seeds = [(s.before, d.value) for s, d in zip(states, handed, strict=True)]
    seeds += [(r.slice, t) for (r, _), t in zip(reads, slices, strict=True)]
    pushed = flow.push_forward(inner, form.body, seeds)
    writes = [w for w in form.writes if w.whole.name and w.slice in pushed]
    tangents = [
        in_form_of(inner, _found_or_zeros(inner, pushed, s.after), d.before)
        for s, d in zip(states, handed, strict=True)
    ]
    tangents += [in_form_of(inner, pushed[w.slice], w.slice) for w in writes]
    results = extend_body(inner, form.body, tangents, flow.roots())

    own_inputs, own_outputs = list(form.body.inputs), list(form.body.outputs)
    before = [d.before for d in handed]
    leading = len(own_inputs) - len(form.reads)
    behind = len(own_outputs) - len(form.writes)
    form.body.inputs.clear()
    form.body.inputs.extend([*own_inputs[:leading], *before, *own_inputs[leading:], *slices])
    form.body.outputs.clear()
    form.body.outputs.extend(
        [*own_outputs[:behind], *results[: len(states)], *own_outputs[behind:], *results[len(states) :]]
    )
    operands = list(node.inputs) + [None] * (leading - len(node.inputs))
    new = ir.Node(
        node.domain,
        node.op_type,
        [*operands[:leading], *(d.initial for d in handed), *operands[leading:], *(dx for _, dx in reads)],
        _attributes(node, reads=[r for r, _ in reads], writes=writes),
        num_outputs=len(node.outputs) + len(states) + len(writes),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    count = len(form.states)
    primals = list(node.outputs)
    places = [*new.outputs[:count], *new.outputs[count + len(states) : len(primals) + len(states)]]
    added = [*new.outputs[count : count + len(states)], *new.outputs[len(primals) + len(states) :]]
    varying = [*(s.result for s in states), *(w.whole for w in writes)]
    _describe(op, added, varying)
    _take_place(node, new, dict(zip(primals, places, strict=True)), flow)
    successors = dict(zip(primals, places, strict=True))
    for d, result in zip(handed, added, strict=False):
        result.shape = d.initial.shape if d.before is not d.value else result.shape
    pairs = [
        (successors[s.result], d.in_shape(op, result, successors[s.result]))
        for s, d, result in zip(states, handed, added, strict=False)
        if successors[s.result].name
    ]
    pairs += [(successors[w.whole], t) for w, t in zip(writes, added[len(states) :], strict=True)]
    return pairs


def _found_or_zeros(op: Builder, found: Mapping[ir.Value, ir.Value], value: ir.Value) -> ir.Value:
    return found[value] if value in found else op.zeros_like(value)


def _attributes(node: ir.Node, reads: Sequence[Scanned], writes: Sequence[Scanned]) -> list[ir.Attr]:
    """The attributes of `node`, with tangents read and written behind the others as those are."""
    further = {
        "scan_input_axes": [r.axis for r in reads],
        "scan_input_directions": [int(r.backward) for r in reads],
        "scan_output_axes": [w.axis for w in writes],
        "scan_output_directions": [int(w.backward) for w in writes],
    }
    attributes = dict(node.attributes)
    for name, more in further.items():
        if name in attributes:
            attributes[name] = ir.AttrInt64s(name, [*attributes[name].as_ints(), *more])
    if node.op_type == "Scan":
        count = node.attributes.get_int("num_scan_inputs", 0) + len(reads)
        attributes["num_scan_inputs"] = ir.AttrInt64("num_scan_inputs", count)
    return list(attributes.values())


def _describe(op: Builder, tangents: Sequence[ir.Value], primals: Sequence[ir.Value]) -> None:
    for tangent, primal in zip(tangents, primals, strict=True):
        tangent.name = op.unique_name(f"{primal.name}/tangent") if primal.name else ""
        tangent.type, tangent.shape = primal.type, primal.shape


def _take_place(
    old: ir.Node, new: ir.Node, places: Mapping[ir.Value, ir.Value], flow: ForwardFlow
) -> Mapping[ir.Value, ir.Value]:
    """Put `new` where `old` is; its outputs `places` are read, and called, as those of `old` were."""
    if old.graph is not None:
        old.graph.insert_after(old, new)
    for value, instead in places.items():
        instead.type, instead.shape = value.type, value.shape
        name, value.name = value.name, None
        value.replace_all_uses_with(instead, replace_graph_outputs=True)
        instead.name = name
        flow.replaced(value, instead)
    drop(old)
    flow.extended(new)
    return places
