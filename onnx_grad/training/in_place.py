"""Whether the new value of a graph input can be written over the old one while the graph runs.

It can where whatever reads the old value has run before the node that gives the new one, or is that node, and
that node works element by element: then no element is read after it was written, in whatever order a runtime
runs the nodes, and whether or not it fuses them.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnx_grad import known

_ELEMENTWISE = frozenset({"Add", "Sub", "Mul", "Div", "Cast", "Identity", "Where"})


def overwritable(graph: ir.Graph, updates: Mapping[str, str]) -> set[str]:
    """The names of the inputs that their new values can be written over.

    Args:
        graph: A graph.
        updates: For each input that has one, the output with its new value.
    """
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    return {name for name, updated in updates.items() if _is_overwritable(inputs[name], outputs[updated])}


def _is_overwritable(old: ir.Value, new: ir.Value) -> bool:
    writer = new.producer()
    if writer is None or writer.op_type not in _ELEMENTWISE or writer.domain != "":
        return False
    if old.dtype != new.dtype or not known.same_shape(old, new) or old.is_graph_output():
        return False
    return all(reader is writer or _leads_to(reader, writer) for reader, _ in old.uses())


def _leads_to(reader: ir.Node, writer: ir.Node) -> bool:
    """Whether `writer` depends on what `reader`, a node of the same graph, computes."""
    if reader.graph is not writer.graph:
        return False
    seen, waiting = {reader}, [reader]
    while waiting:
        for value in waiting.pop().outputs:
            for user, _ in value.uses():
                if user is writer:
                    return True
                if user not in seen:
                    seen.add(user)
                    waiting.append(user)
    return False
