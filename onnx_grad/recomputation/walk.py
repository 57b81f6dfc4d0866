"""A graph after the reverse walk: what is forward, what is backward, and what one reads of the other."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.liveness import read_values
from onnx_grad.repeatable import is_random, obstacle


class BackwardPass:
    """A graph that a reverse walk has appended its nodes to.

    Args:
        graph: The graph.
        recorded: The nodes that the walk has recorded; some of them are in the graph.
        ends: The values that are differentiated.
        seeds: Their cotangents.

    Attributes:
        forward: The forward nodes, in order.
        nodes: The backward nodes, in order, without those that read the shape of a forward value.
        shapes: The latter: they stand next to what produces the value.
    """

    def __init__(
        self,
        graph: ir.Graph,
        recorded: Collection[ir.Node],
        ends: Iterable[ir.Value],
        seeds: Iterable[ir.Value],
    ) -> None:
        self.graph = graph
        self.opset = graph.opset_imports[""]
        self.ends = tuple(ends)
        self.seeds = tuple(seeds)
        recorded = set(recorded)
        appended = [node for node in graph if node in recorded]
        self.forward = [node for node in graph if node not in recorded]
        self.shapes = [node for node in appended if _reads_a_shape(node, recorded)]
        among_forward = set(self.shapes)
        self.nodes = [node for node in appended if node not in among_forward]

    def copied(self, graph: ir.Graph) -> BackwardPass:
        """The same on `graph`, a copy of the graph."""
        nodes = dict(zip(self.graph, graph, strict=True))
        values = dict(zip(self.graph.inputs, graph.inputs, strict=True))
        for node, copy in nodes.items():
            values.update(zip(node.outputs, copy.outputs, strict=True))
        recorded = [nodes[node] for node in (*self.nodes, *self.shapes)]
        ends, seeds = ([values[value] for value in found] for found in (self.ends, self.seeds))
        return BackwardPass(graph, recorded, ends, seeds)

    @cached_property
    def activations(self) -> frozenset[ir.Value]:
        """What forward nodes compute of the graph's inputs, or at random: all save functions of weights."""
        inputs = {value for value in self.graph.inputs if known.constant(value) is None}
        found = set(inputs)
        for node in self.forward:
            if is_random(node) or not found.isdisjoint(read_values(node)):
                found.update(node.outputs)
        return frozenset(found - inputs)

    @cached_property
    def kept(self) -> frozenset[ir.Value]:
        """The activations whose content the backward pass reads."""
        return frozenset(v for node in self.nodes for v in read_values(node) if v in self.activations)

    @cached_property
    def repeatable(self) -> frozenset[ir.Value]:
        """The activations that can be computed twice, and are worth it: more than the sizes of tensors."""
        sizes: set[ir.Value] = set()
        found: set[ir.Value] = set()
        for node in self.forward:
            operands = [value for value in read_values(node) if value in self.activations]
            if node.op_type in ("Shape", "Size") or (operands and sizes.issuperset(operands)):
                sizes.update(value for value in node.outputs if value.dtype is ir.DataType.INT64)
            if obstacle(node) is None:
                found.update(value for value in node.outputs if value in self.activations)
        return frozenset(found - sizes)


def _reads_a_shape(node: ir.Node, recorded: Collection[ir.Node]) -> bool:
    operand = node.inputs[0] if node.op_type == "Shape" else None
    return operand is not None and operand.producer() not in recorded
