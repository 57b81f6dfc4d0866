"""Replacing the training operators of a model, each after those that it differentiates through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir
from onnx.defs import AI_ONNX_PREVIEW_TRAINING_DOMAIN as DOMAIN

from onnx_grad import tidy
from onnx_grad.batch_statistics import separate
from onnx_grad.builder import METADATA_PREFIX, Builder, taken_names
from onnx_grad.composition import infer_composition
from onnx_grad.errors import ModelError
from onnx_grad.liveness import detach
from onnx_grad.lowering.gradient import (
    Request,
    blocked_error,
    blocked_lines,
    differentiate,
    label,
    path_between,
)
from onnx_grad.lowering.optimizers import OPTIMIZERS, optimizer_step
from onnx_grad.lowering.scopes import owners, visible_values
from onnx_grad.path import Path
from onnx_grad.prepare import Forward
from onnx_grad.prepare.lift import OLDEST_OPSET
from onnx_grad.prepare.sequences import handles_sequences
from onnx_grad.registry import State
from onnx_grad.wiring import bodies


def holds_training_operators(model: ir.Model) -> bool:
    """Whether a node of the model, at any depth, is of the training domain."""
    return any(node.domain == DOMAIN for node in model.graph.all_nodes())


def lower_operators(forward: Forward) -> tuple[Forward, dict[str, str]]:
    """The model with standard operators in the place of the training operators.

    Args:
        forward: The model; it may be changed.

    Returns:
        The model, shapes and types of what is new not inferred, and the operator of every node that was
        replaced, by the node's name.

    Raises:
        UnsupportedOpError: Nodes that a `Gradient` would differentiate have no derivative here; all of them
            are named.
        OnnxGradError: A node names what is not there or does not fit.
    """
    lowered: dict[str, str] = {}
    while holds_training_operators(forward.model):
        try:
            _Lowering(forward, lowered).run()
        except _ChangedModelError as changed:
            forward = changed.forward
    for imports in (
        forward.model.opset_imports,
        *(f.opset_imports for f in forward.model.functions.values()),
    ):
        imports.pop(DOMAIN, None)
    return forward, lowered


class _ChangedModelError(Exception):
    """The model had to be changed in a way that makes new values of all: start again with that one."""

    def __init__(self, forward: Forward) -> None:
        self.forward = forward


class _Lowering:
    """One round over the training operators of a model.

    Args:
        forward: The model, which is changed.
        lowered: Where to note what is replaced.
    """

    def __init__(self, forward: Forward, lowered: dict[str, str]) -> None:
        self._forward = forward
        self._graph = forward.model.graph
        self._opset = self._graph.opset_imports.setdefault("", OLDEST_OPSET)
        self._functions = {(domain, name) for domain, name, _ in forward.model.functions}
        self._lowered = lowered
        self._owner = owners(self._graph)
        self._builders = {self._graph: Builder(self._opset, taken_names(self._graph))}
        self._waiting: set[ir.Node] = set()
        self._under_way: set[ir.Node] = set()
        self._blocked: dict[ir.Node, list[str]] = {}

    def run(self) -> None:
        """Replace them all.

        Raises:
            _ChangedModelError: Functions or sequences on the way had to be expanded first.
        """
        nodes = [node for node in self._graph.all_nodes() if node.domain == DOMAIN]
        self._waiting = {node for node in nodes if node.op_type == "Gradient"}
        # No other training operator matters for an optimizer, and a Gradient may lead through one.
        for node in sorted(nodes, key=lambda node: node.op_type == "Gradient"):
            if node.graph is not None:
                self._lower(node)
        if self._blocked:
            raise blocked_error(dict.fromkeys(line for lines in self._blocked.values() for line in lines))
        self._remove_unread()
        self._sort(self._graph)

    def _lower(self, node: ir.Node) -> None:
        """Replace `node`, unless nodes that it would differentiate have no derivative."""
        if node in self._under_way:
            raise ModelError(f"{label(node)} differentiates what is computed from its own output")
        if node in self._blocked:
            return
        if node.op_type in OPTIMIZERS:
            self._lower_optimizer(node)
        elif node.op_type == "Gradient":
            self._under_way.add(node)
            self._lower_gradient(node)
            self._under_way.discard(node)
        else:
            raise ModelError(f"{label(node)}: the domain {DOMAIN} has no operator of this type")

    def _lower_optimizer(self, node: ir.Node) -> None:
        op = self._builder(node)
        with op.differentiating(node, str(node.name)):
            results = optimizer_step(op, node)
        if len(node.outputs) > len(results):
            raise ModelError(f"{label(node)} has {len(node.outputs)} outputs for {len(results)} results")
        self._replace(node, op, dict(zip(range(len(node.outputs)), results, strict=False)))

    def _lower_gradient(self, node: ir.Node) -> None:
        request, nodes = self._read(node)
        if node in self._blocked:
            return
        separate(nodes, request.given)
        path = path_between(request, nodes, self._opset, self._functions)
        self._prepare(path)
        if blocked := blocked_lines(path):
            self._blocked[node] = blocked
            return
        op = self._builder(node)
        with op.differentiating(node, str(node.name)):
            gradients = differentiate(op, request, nodes)
        likes = {index: request.given[x] for index, x in request.wanted.items()}
        self._replace(node, op, {index: (dx, likes[index]) for index, dx in gradients.items()})

    def _read(self, node: ir.Node) -> tuple[Request, Sequence[ir.Node]]:
        """What `node` asks for, and the nodes between, in which no training operator is left."""
        while True:
            request = Request.of_node(node, visible_values(_graph_of(node), self._owner))
            nodes = request.nodes()
            pending = next(_training_operators(nodes), None)
            if pending is None:
                request.check_independent()
                return request, nodes
            self._lower(pending)
            if pending in self._blocked:
                self._blocked[node] = []
                return request, nodes

    def _prepare(self, path: Path) -> None:
        """Expand what has no rule of its own; then every value of the model is a new one."""
        expanded = [step.node for step in path.all_steps() if step.entry.state is State.EXPANDED]
        if expanded:
            names = {str(node.name) for node in expanded}
            self._sort(self._graph)
            raise _ChangedModelError(self._forward.inferred().expanded(names))
        if any(handles_sequences(step.node) for step in path.all_steps()):
            self._sort(self._graph)
            over_tensors = self._forward.over_tensors(path.is_active)
            if over_tensors is not None:
                raise _ChangedModelError(over_tensors)

    def _replace(self, node: ir.Node, op: Builder, results: Mapping[int, tuple[ir.Value, ir.Value]]) -> None:
        """Let what `op` recorded give, under the same names, what `node` did.

        Args:
            node: The node.
            op: What recorded its replacement.
            results: For the position of an output, its replacement, and a value of the same shape and type.
        """
        graph = _graph_of(node)
        replaced = [(node.outputs[index], *result) for index, result in results.items()]
        outputs = [tidy.Output(str(output.name), result, like) for output, result, like in replaced]
        self._waiting.discard(node)
        if self._waiting:
            # The next Gradient may lead through these nodes: what is known of their shapes makes it smaller.
            infer_composition(op.nodes, op.opset)
        for output in node.outputs:
            output.name = None
        for (output, _, _), result in zip(replaced, tidy.place(graph, op, outputs), strict=True):
            output.replace_all_uses_with(result, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        self._sort(graph)
        self._lowered[str(node.name)] = node.op_type

    def _remove_unread(self) -> None:
        """Take out what only an output serves that only attributes named, or that nothing reads at all."""
        for graph in (*reversed(self._owner), self._graph):
            for node in reversed(list(graph)):
                is_added = any(key.startswith(METADATA_PREFIX) for key in node.metadata_props)
                if is_added and not any(v.uses() or v.is_graph_output() for v in node.outputs):
                    detach([node])
                    graph.remove(node)
        for graph, op in self._builders.items():
            for value in op.initializers:
                if not value.uses():
                    graph.initializers.pop(str(value.name), None)

    def _builder(self, node: ir.Node) -> Builder:
        return self._builder_of(_graph_of(node)).apart()

    def _builder_of(self, graph: ir.Graph) -> Builder:
        if graph not in self._builders:
            owner = self._owner[graph]
            self._builders[graph] = self._builder_of(_graph_of(owner)).for_body(owner)
        return self._builders[graph]

    def _sort(self, graph: ir.Graph) -> None:
        try:
            graph.sort()
        except ValueError as error:
            raise ModelError(
                "the graph is cyclic: a Gradient differentiates what is computed from its own output"
            ) from error


def _training_operators(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    """Those of `nodes`, and of the nodes in their bodies."""
    for node in nodes:
        if node.domain == DOMAIN:
            yield node
        for body in bodies(node):
            yield from _training_operators(body)


def _graph_of(node: ir.Node) -> ir.Graph:
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise ModelError(f"{label(node)} is in no graph")
    return graph
