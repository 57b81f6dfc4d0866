"""Control flow without what nothing reads: outputs of branches, states, slices and results of iterations."""

from __future__ import annotations

from collections.abc import Iterable, MutableSequence, Sequence

import onnx_ir as ir

from onnx_grad.liveness import detach, drop, live_nodes, read_values
from onnx_grad.wiring import Iteration, bodies, iteration


def prune(graph: ir.Graph) -> None:
    """Take from every `If`, `Loop` and `Scan` of `graph`, and of bodies, what nothing reads of its results.

    Args:
        graph: A graph; what becomes unread in it stays.
    """
    for node in reversed(tuple(graph)):
        if not any(map(_is_read, node.outputs)):
            continue
        if node.domain == "" and node.op_type == "If":
            node = _prune_branches(node)
        elif node.domain == "" and node.op_type in ("Loop", "Scan"):
            node = _prune_iteration(node)
        for body in bodies(node):
            prune(body)
            _drop_dead(body)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _prune_branches(node: ir.Node) -> ir.Node:
    kept = [index for index, output in enumerate(node.outputs) if _is_read(output)]
    if len(kept) == len(node.outputs):
        return node
    for branch in bodies(node):
        _keep(branch.outputs, kept)
        _drop_dead(branch)
    return _rebuilt(node, list(node.inputs), list(node.attributes.values()), kept)


def _prune_iteration(node: ir.Node) -> ir.Node:
    form = iteration(node)
    writes = [index for index, write in enumerate(form.writes) if _is_read(write.whole)]
    states = _live_states(form, [form.writes[index].slice for index in writes])
    reads = [index for index, read in enumerate(form.reads) if _is_needed(form, states, writes, read.slice)]
    if (len(states), len(reads), len(writes)) == (len(form.states), len(form.reads), len(form.writes)):
        return node
    first_state = len(form.body.inputs) - len(form.states) - len(form.reads)
    first_output = len(form.body.outputs) - len(form.states) - len(form.writes)
    inputs = _positions(first_state, states, len(form.states), reads)
    _keep(form.body.outputs, _positions(first_output, states, len(form.states), writes))
    _drop_dead(form.body)
    _keep(form.body.inputs, inputs)
    operands = [node.inputs[i] if i < len(node.inputs) else None for i in inputs]
    results = _positions(0, states, len(form.states), writes)
    return _rebuilt(node, operands, _attributes(node, reads, writes), results)


def _live_states(form: Iteration, needed: Sequence[ir.Value]) -> list[int]:
    """The states that are read, or that others which are read depend on."""
    live = {index for index, state in enumerate(form.states) if _is_read(state.result)}
    while True:
        read = _read_in(form, [*needed, *(form.states[index].after for index in live)])
        more = {index for index, state in enumerate(form.states) if state.before in read} - live
        if not more:
            return sorted(live)
        live |= more


def _read_in(form: Iteration, results: Sequence[ir.Value]) -> set[ir.Value]:
    """What the body reads for some of its results, and for whether it goes on."""
    condition = form.body.outputs[: len(form.body.outputs) - len(form.states) - len(form.writes)]
    wanted = [*results, *condition]
    return {*wanted, *(value for node in live_nodes(form.body, wanted) for value in read_values(node))}


def _is_needed(form: Iteration, states: Sequence[int], writes: Sequence[int], value: ir.Value) -> bool:
    results = [*(form.states[i].after for i in states), *(form.writes[i].slice for i in writes)]
    return value in _read_in(form, results)


def _positions(first: int, states: Sequence[int], count: int, rest: Sequence[int]) -> list[int]:
    """Where what is kept stands: what comes before the `count` states, the states, and what is behind."""
    return [*range(first), *(first + index for index in states), *(first + count + index for index in rest)]


def _attributes(node: ir.Node, reads: Sequence[int], writes: Sequence[int]) -> list[ir.Attr]:
    kept = {"scan_input": reads, "scan_output": writes}
    attributes = []
    for name, attribute in node.attributes.items():
        side = name.removesuffix("_axes").removesuffix("_directions")
        if name == "num_scan_inputs":
            attribute = ir.AttrInt64(name, len(reads))
        elif side in kept:
            numbers = attribute.as_ints()
            attribute = ir.AttrInt64s(name, [numbers[index] for index in kept[side]])
        attributes.append(attribute)
    return attributes


def _keep(values: MutableSequence[ir.Value], kept: Iterable[int]) -> None:
    """Take all but those at the positions `kept` from the inputs or outputs of a graph."""
    own = list(values)
    values.clear()
    values.extend(own[index] for index in kept)


def _drop_dead(body: ir.Graph) -> None:
    live = set(live_nodes(body, body.outputs))
    dead = [node for node in body if node not in live]
    detach(dead)
    body.remove(dead)


def _rebuilt(
    node: ir.Node, operands: Sequence[ir.Value | None], attributes: Sequence[ir.Attr], kept: Sequence[int]
) -> ir.Node:
    """A node with some of the outputs in the place of `node`."""
    new = ir.Node(
        node.domain,
        node.op_type,
        operands,
        attributes,
        num_outputs=len(kept),
        name=node.name,
        metadata_props=dict(node.metadata_props),
    )
    if node.graph is not None:
        node.graph.insert_after(node, new)
    for index, instead in zip(kept, new.outputs, strict=True):
        value = node.outputs[index]
        name, value.name = value.name, None
        value.replace_all_uses_with(instead, replace_graph_outputs=True)
        instead.name, instead.type, instead.shape = name, value.type, value.shape
    drop(node)
    return new
