"""The order in which ONNX Runtime runs the nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnx_grad.liveness import read_values


def execution_order(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """The nodes in the order of ONNX Runtime's sequential executor.

    It goes back from the nodes that no other reads, the last of them first, and depth first through what they
    read, the last of it first: so a result that only a caller wants may come as late as it can.

    Args:
        nodes: The nodes of a graph in their order there, or some of them.
    """
    places = {node: place for place, node in enumerate(nodes)}
    before = {
        node: sorted({p for v in read_values(node) if (p := v.producer()) in places}, key=places.__getitem__)
        for node in places
    }
    read = {node for nodes_before in before.values() for node in nodes_before}
    waiting = [(node, False) for node in places if node not in read]
    entered: set[ir.Node] = set()
    order: list[ir.Node] = []
    while waiting:
        node, left = waiting.pop()
        if left:
            order.append(node)
        elif node not in entered:
            entered.add(node)
            waiting.append((node, True))
            waiting += ((other, False) for other in before[node] if other not in entered)
    return order
