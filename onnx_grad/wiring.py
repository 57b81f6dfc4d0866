"""How values enter, leave and go round the bodies of `If`, `Loop` and `Scan`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnx_grad import known

Edge = tuple[ir.Value, ir.Value]


@dataclass(frozen=True)
class Carried:
    """A state that an iteration hands to the next.

    Attributes:
        initial: The operand it starts from.
        before: The body's input.
        after: The body's output.
        result: The node's output: what it ends as.
    """

    initial: ir.Value
    before: ir.Value
    after: ir.Value
    result: ir.Value


@dataclass(frozen=True)
class Scanned:
    """A tensor of which each iteration reads, or writes, one slice.

    Attributes:
        whole: The tensor: an operand or an output of the node.
        slice: The body's input or output.
        axis: The axis along which it is sliced.
        backward: Whether the first iteration meets the last slice.
    """

    whole: ir.Value
    slice: ir.Value
    axis: int = 0
    backward: bool = False


@dataclass(frozen=True)
class Iteration:
    """A `Loop` or `Scan` in one form.

    Attributes:
        body: What an iteration computes.
        states: What it hands to the next.
        reads: The operands it reads a slice of.
        writes: The outputs it writes a slice of.
    """

    body: ir.Graph
    states: list[Carried] = field(default_factory=list)
    reads: list[Scanned] = field(default_factory=list)
    writes: list[Scanned] = field(default_factory=list)


@dataclass(frozen=True)
class Wiring:
    """The edges between a node and its bodies, each from where a value is to where it goes.

    Attributes:
        bodies: The graphs that the node may run.
        entering: From operands to inputs of a body.
        leaving: From outputs of a body to outputs of the node.
        returning: From outputs of a body to its inputs in the next iteration.
        skipping: From operands to outputs of the node, for a loop that may run no iteration.
    """

    bodies: tuple[ir.Graph, ...]
    entering: list[Edge] = field(default_factory=list)
    leaving: list[Edge] = field(default_factory=list)
    returning: list[Edge] = field(default_factory=list)
    skipping: list[Edge] = field(default_factory=list)

    def edges(self) -> list[Edge]:
        """All of them."""
        return [*self.entering, *self.leaving, *self.returning, *self.skipping]


def wiring(node: ir.Node) -> Wiring | None:
    """The wiring of a control-flow node; `None` for any other."""
    if node.domain != "":
        return None
    if node.op_type == "If":
        branches = (body(node, "then_branch"), body(node, "else_branch"))
        return Wiring(branches, leaving=[e for b in branches for e in _pairs(b.outputs, node.outputs)])
    if node.op_type not in ("Loop", "Scan"):
        return None
    form = iteration(node)
    return Wiring(
        (form.body,),
        entering=[(s.initial, s.before) for s in form.states] + [(r.whole, r.slice) for r in form.reads],
        leaving=[(s.after, s.result) for s in form.states] + [(w.slice, w.whole) for w in form.writes],
        returning=[(s.after, s.before) for s in form.states],
        skipping=[] if certainly_runs(node) else [(s.initial, s.result) for s in form.states],
    )


def certainly_runs(node: ir.Node) -> bool:
    """Whether a `Loop` or `Scan` certainly runs its body at least once."""
    if node.op_type == "Scan":
        return True
    trips, condition = known.optional_operand(node, 0), known.optional_operand(node, 1)
    return (trips is None or _is_positive(trips)) and (condition is None or _is_positive(condition))


def _is_positive(value: ir.Value) -> bool:
    content = known.constant(value)
    return content is not None and bool(np.all(np.greater(content, 0)))


def iteration(node: ir.Node) -> Iteration:
    """The states, operands and outputs of a `Loop` or `Scan` node."""
    return _loop(node) if node.op_type == "Loop" else _scan(node)


def body(node: ir.Node, name: str) -> ir.Graph:
    """The graph that the attribute `name` of `node` holds."""
    return node.attributes[name].as_graph()


def bodies(node: ir.Node) -> Iterator[ir.Graph]:
    """All graphs that the attributes of any node hold."""
    for attribute in node.attributes.data.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def redirect(node: ir.Node, counterparts: Mapping[ir.Value, ir.Value]) -> None:
    """Let `node` and its bodies read, in the place of values that have a counterpart, that one."""
    for index, value in enumerate(node.inputs):
        if value is not None and value in counterparts:
            node.replace_input_with(index, counterparts[value])
    for inside in bodies(node):
        for inner in inside:
            redirect(inner, counterparts)
        for index, value in enumerate(inside.outputs):
            if value in counterparts:
                inside.outputs[index] = counterparts[value]


def _loop(node: ir.Node) -> Iteration:
    graph = body(node, "body")
    count = len(graph.inputs) - 2
    initial = [known.operand(node, 2 + index) for index in range(count)]
    results, outputs = _outputs(node, len(graph.outputs) - 1), graph.outputs[1:]
    writes = zip(results[count:], outputs[count:], strict=True)
    return Iteration(
        graph,
        _states(initial, graph.inputs[2:], outputs[:count], results[:count]),
        writes=[Scanned(whole, piece) for whole, piece in writes],
    )


def _scan(node: ir.Node) -> Iteration:
    graph = body(node, "body")
    read = node.attributes.get_int("num_scan_inputs", 0)
    count = len(graph.inputs) - read
    operands = [known.operand(node, index) for index in range(len(graph.inputs))]
    results = _outputs(node, len(graph.outputs))
    return Iteration(
        graph,
        _states(operands[:count], graph.inputs[:count], graph.outputs[:count], results[:count]),
        reads=_scanned(node, "scan_input", operands[count:], graph.inputs[count:]),
        writes=_scanned(node, "scan_output", results[count:], graph.outputs[count:]),
    )


def _states(
    initial: Sequence[ir.Value],
    before: Sequence[ir.Value],
    after: Sequence[ir.Value],
    results: Sequence[ir.Value],
) -> list[Carried]:
    return [Carried(*parts) for parts in zip(initial, before, after, results, strict=True)]


def _scanned(
    node: ir.Node, prefix: str, wholes: Sequence[ir.Value], slices: Sequence[ir.Value]
) -> list[Scanned]:
    default = [0] * len(wholes)
    axes = node.attributes.get_ints(f"{prefix}_axes", default)
    directions = node.attributes.get_ints(f"{prefix}_directions", default)
    return [
        Scanned(whole, piece, axis, bool(direction))
        for whole, piece, axis, direction in zip(wholes, slices, axes, directions, strict=True)
    ]


def _outputs(node: ir.Node, count: int) -> Sequence[ir.Value]:
    """The outputs of `node`, of which a model may leave out the last ones."""
    present = len(node.outputs)
    if present < count:
        node.resize_outputs(count)
        for added in node.outputs[present:]:
            added.name = ""
    return node.outputs


def _pairs(sources: Sequence[ir.Value], targets: Sequence[ir.Value]) -> Iterator[Edge]:
    """Outputs of a body with those of its node, of which a model may leave out the last ones."""
    yield from zip(sources, targets, strict=False)
