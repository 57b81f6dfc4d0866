"""Places in a graph where nodes can be put, with the shapes of what they give."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.composition import infer_composition
from onnx_grad.liveness import detach

Place = Literal["before", "after", "start", "end"]


class Writer:
    """Writes nodes into the graphs of one model, under names that are new in it.

    Args:
        graph: The main graph of the model, where constants go.

    Attributes:
        opset: The version of the default domain that the model imports.
        written: The nodes written so far.
        named: The values among theirs that have taken the name of another.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.opset = graph.opset_imports[""]
        self._op = Builder(self.opset, set(_names(graph)))
        self.written: set[ir.Node] = set()
        self.named: set[ir.Value] = set()

    def builder(self, scope: str) -> Builder:
        """A builder that names what it records after `scope`."""
        op = self._op.apart()
        op.scope = scope
        return op

    def unique_name(self, name: str) -> str:
        """`name`, or the same with a numeric suffix that makes it new."""
        return self._op.unique_name(name)

    def hold(self, initializers: Sequence[ir.Value]) -> None:
        """Take in constants of a body whose nodes leave it."""
        self._op.initializers.extend(initializers)

    def finish(self) -> None:
        """Put the constants that are read into the main graph."""
        for value in self._op.initializers:
            if value.uses():
                self._graph.register_initializer(value)


class Site:
    """A place in a graph; what is put there later follows what was put there before.

    Args:
        writer: Writes the nodes.
        graph: The graph.
        place: Where new nodes go.
        node: The node beside it, for a place that has one.
        scope: What new nodes are named after.
    """

    def __init__(
        self, writer: Writer, graph: ir.Graph, place: Place, node: ir.Node | None, scope: str
    ) -> None:
        self.graph = graph
        self._writer = writer
        self._place: Place = place
        self._node = node
        self._scope = scope

    @classmethod
    def before(cls, writer: Writer, node: ir.Node) -> Site:
        """Where the inputs of `node` can be read."""
        return cls(writer, graph_of(node), "before", node, str(node.name))

    @classmethod
    def after(cls, writer: Writer, node: ir.Node) -> Site:
        """Where the outputs of `node` can be read, before any other node reads them."""
        return cls(writer, graph_of(node), "after", node, str(node.name))

    @classmethod
    def start(cls, writer: Writer, body: ir.Graph, scope: str) -> Site:
        """In front of all nodes of `body`."""
        return cls(writer, body, "start", None, scope)

    @classmethod
    def end(cls, writer: Writer, body: ir.Graph, scope: str) -> Site:
        """Behind all nodes of `body`."""
        return cls(writer, body, "end", None, scope)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Builder]:
        """A builder whose nodes are put here when the context ends."""
        op = self._writer.builder(self._scope)
        try:
            yield op
        except BaseException:
            detach(op.nodes)
            raise
        self.put(op.nodes)

    def put(self, nodes: Sequence[ir.Node]) -> None:
        """Put `nodes`, in topological order, here."""
        if not nodes:
            return
        if self._place == "before" and self._node is not None:
            self.graph.insert_before(self._node, nodes)
        elif self._place == "after" and self._node is not None:
            self.graph.insert_after(self._node, nodes)
            self._node = nodes[-1]
        elif self._place == "start" and len(self.graph):
            self.graph.insert_before(self.graph[0], nodes)
            self._place, self._node = "after", nodes[-1]
        else:
            self.graph.extend(nodes)
        self._writer.written.update(nodes)
        infer_composition(nodes, self._writer.opset)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph that `node` is in."""
    if not isinstance(node.graph, ir.Graph):
        raise ValueError(f"node '{node.name}' is in no graph")
    return node.graph


def _names(graph: ir.Graph) -> Iterator[str]:
    """The names of everything in the model."""
    for scope in (graph, *graph.subgraphs()):
        yield from (str(value.name) for value in (*scope.inputs, *scope.initializers.values()))
        for node in scope:
            yield str(node.name)
            yield from (str(output.name) for output in node.outputs)
