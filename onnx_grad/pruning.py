"""Taking from a graph what nothing needs: nodes, outputs of branches, states and slices of iterations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, MutableSequence, Sequence

import onnx_ir as ir

from onnx_grad.liveness import drop, read_values, remove
from onnx_grad.wiring import bodies, iteration, wiring


def prune(graph: ir.Graph, spared: Iterable[ir.Node]) -> None:
    """Take from `graph`, and from bodies, what its outputs do not depend on.

    Args:
        graph: A main graph.
        spared: Nodes of it that stay, and what they read, though no output depends on them.
    """
    spared = set(spared)
    needed = _needed(graph, [*graph.outputs, *(value for node in spared for value in node.outputs)])
    _prune(graph, needed, spared)


def _needed(graph: ir.Graph, results: Iterable[ir.Value]) -> set[ir.Value]:
    """The values, those of bodies included, that `results` depend on, one by one through control flow."""
    sources = _sources(graph)
    pending = list(results)
    needed = set(pending)
    while pending:
        value = pending.pop()
        producer = value.producer()
        read = sources.get(value, [])
        if producer is not None and wiring(producer) is None:
            read = [*read, *read_values(producer)]
        new = set(read) - needed
        needed |= new
        pending.extend(new)
    return needed


def _sources(graph: ir.Graph) -> dict[ir.Value, list[ir.Value]]:
    """For results of control flow and inputs of its bodies, what they come from."""
    sources: dict[ir.Value, list[ir.Value]] = {}
    for scope in (graph, *graph.subgraphs()):
        for node in scope:
            wires = wiring(node)
            if wires is None:
                continue
            started = [] if node.op_type == "If" else [(s.initial, s.result) for s in iteration(node).states]
            for source, target in (*wires.edges(), *started):
                sources.setdefault(target, []).append(source)
            operands = {source for source, _ in wires.entering}
            control = [value for value in node.inputs if value is not None and value not in operands]
            if node.op_type == "Loop":
                control.append(wires.bodies[0].outputs[0])
            elif node.op_type == "Scan":
                # It says how many iterations there are.
                control += [read.whole for read in iteration(node).reads[:1]]
            for output in node.outputs:
                sources.setdefault(output, []).extend(control)
    return sources


def _prune(graph: ir.Graph, needed: set[ir.Value], spared: Collection[ir.Node] = ()) -> None:
    for node in reversed(tuple(graph)):
        if node in spared:
            continue
        if needed.isdisjoint(node.outputs):
            remove(graph, [node])
            continue
        if node.domain == "" and node.op_type == "If":
            node = _prune_branches(node, needed)
        elif node.domain == "" and node.op_type in ("Loop", "Scan"):
            node = _prune_iteration(node, needed)
        for body in bodies(node):
            _prune(body, needed)


def _prune_branches(node: ir.Node, needed: set[ir.Value]) -> ir.Node:
    kept = [index for index, output in enumerate(node.outputs) if output in needed]
    if len(kept) == len(node.outputs):
        return node
    for branch in bodies(node):
        _keep(branch.outputs, kept)
    return _rebuilt(node, list(node.inputs), list(node.attributes.values()), kept, needed)


def _prune_iteration(node: ir.Node, needed: set[ir.Value]) -> ir.Node:
    form = iteration(node)
    states = [i for i, state in enumerate(form.states) if not needed.isdisjoint((state.before, state.result))]
    reads = [i for i, read in enumerate(form.reads) if i == 0 or read.slice in needed]
    writes = [i for i, write in enumerate(form.writes) if write.whole in needed]
    if (len(states), len(reads), len(writes)) == (len(form.states), len(form.reads), len(form.writes)):
        return node
    first_input = len(form.body.inputs) - len(form.states) - len(form.reads)
    first_output = len(form.body.outputs) - len(form.states) - len(form.writes)
    inputs = _positions(first_input, states, len(form.states), reads)
    operands = [node.inputs[i] if i < len(node.inputs) else None for i in inputs]
    _keep(form.body.inputs, inputs)
    _keep(form.body.outputs, _positions(first_output, states, len(form.states), writes))
    results = _positions(0, states, len(form.states), writes)
    return _rebuilt(node, operands, _attributes(node, reads, writes), results, needed)


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


def _rebuilt(
    node: ir.Node,
    operands: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr],
    kept: Sequence[int],
    needed: set[ir.Value],
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
        if value in needed:
            needed.add(instead)
    drop(node)
    return new
