"""Which recorded nodes are needed, and letting go of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.wiring import bodies


def live_nodes(nodes: Iterable[ir.Node], outputs: Iterable[ir.Value]) -> list[ir.Node]:
    """Those of `nodes`, in topological order, that `outputs` depend on."""
    needed = set(outputs)
    live = []
    for node in reversed(list(nodes)):
        if not needed.isdisjoint(node.outputs):
            needed.update(read_values(node))
            live.append(node)
    live.reverse()
    return live


def read_values(node: ir.Node) -> Iterator[ir.Value]:
    """What `node` reads: its operands, and what its bodies capture."""
    yield from (value for value in node.inputs if value is not None)
    yield from known.captured_values(node)


def detach(dead: Iterable[ir.Node]) -> None:
    """Let go of what dead nodes and their bodies read, so that nothing counts them as users."""
    for node in dead:
        for index in range(len(node.inputs)):
            node.replace_input_with(index, None)
        for body in bodies(node):
            detach(body)


def drop(node: ir.Node) -> None:
    """Take `node` out of its graph; its bodies may live on in another node."""
    for index in range(len(node.inputs)):
        node.replace_input_with(index, None)
    if node.graph is not None:
        node.graph.remove(node)


def remove(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Take `nodes`, which nothing else reads, out of `graph`, with the initializers that only they read."""
    read = {value for node in nodes for value in read_values(node)}
    detach(nodes)
    graph.remove(nodes)
    for name, value in list(graph.initializers.items()):
        if value in read and not value.uses() and not value.is_graph_input():
            del graph.initializers[name]
