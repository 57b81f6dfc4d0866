"""What a `Gradient` node sees: the tensors of its graph and of those around it, and how they depend."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx_ir as ir

from onnx_grad.liveness import read_values
from onnx_grad.rules.bodies import values_of
from onnx_grad.wiring import bodies

Owners = Mapping[ir.Graph, ir.Node]


def owners(graph: ir.Graph) -> dict[ir.Graph, ir.Node]:
    """The node that holds each body in `graph`, at any depth."""
    found = {}
    for node in graph:
        for body in bodies(node):
            found[body] = node
            found |= owners(body)
    return found


def visible_values(graph: ir.Graph, owner: Owners) -> dict[str, ir.Value]:
    """The tensors that nodes of `graph` can read, by name; those nearer come first."""
    found: dict[str, ir.Value] = {}
    around: ir.Graph | None = graph
    while around is not None:
        for value in values_of(around):
            if value.name:
                found.setdefault(value.name, value)
        around = owner[around].graph if around in owner else None
    return found


def nodes_below(values: Collection[ir.Value], cut: Collection[ir.Value] = ()) -> list[ir.Node]:
    """The nodes that `values` depend on, in topological order, without those behind a value in `cut`."""
    order: dict[ir.Node, None] = {}
    met: set[ir.Node] = set()
    waiting = [(node, False) for node in _producers(values, cut)]
    while waiting:
        node, is_ready = waiting.pop()
        if is_ready:
            order[node] = None
        elif node not in met:
            met.add(node)
            waiting.append((node, True))
            waiting.extend((before, False) for before in _producers(read_values(node), cut))
    return list(order)


def _producers(values: Iterable[ir.Value], cut: Collection[ir.Value]) -> Iterator[ir.Node]:
    for value in values:
        producer = value.producer()
        if producer is not None and value not in cut:
            yield producer
