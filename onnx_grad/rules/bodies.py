"""Bodies of control flow: made of recorded nodes, copied, and made to give out more."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from onnx_grad.builder import METADATA_PREFIX, RANDOM_OPERATORS, Builder
from onnx_grad.liveness import detach, live_nodes
from onnx_grad.wiring import bodies


def placeholder(op: Builder, like: ir.Value, name: str) -> ir.Value:
    """An input of a body, of the type and shape of `like`."""
    return ir.Value(name=op.unique_name(name), shape=like.shape, type=like.type)


def body_graph(
    op: Builder,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    name: str,
) -> ir.Graph:
    """A body of `nodes` that `op` recorded; an output that no node of its own gives is handed through."""
    own = list(nodes)
    produced = {value for node in nodes for value in node.outputs}
    given: dict[ir.Value, None] = {}
    for value in outputs:
        if value in given or value not in produced:
            own.append(_handing_through(op, value))
            value = own[-1].outputs[0]
        given[value] = None
    constants = [value for value in op.initializers if value.uses()]
    return ir.Graph(inputs, list(given), nodes=own, initializers=constants, name=op.unique_name(name))


def extend_body(
    op: Builder, body: ir.Graph, values: Sequence[ir.Value], roots: Sequence[ir.Value]
) -> list[ir.Value]:
    """Put what `op` recorded into `body`, as far as `values` and `roots` need it.

    Args:
        op: The builder that recorded nodes of the body.
        body: The body of a forward node.
        values: What it is to give out.
        roots: What else is needed of the nodes.

    Returns:
        The values, those as results of an `Identity` that cannot be given out as they are.
    """
    live = live_nodes(op.nodes, [*values, *roots])
    detach(set(op.nodes).difference(live))
    for constant in op.initializers:
        if constant.uses():
            body.register_initializer(constant)
    body.extend(live)
    given: dict[ir.Value, None] = dict.fromkeys(body.outputs)
    results = []
    for value in values:
        if value in given or value.graph is not body or value.producer() is None:
            node = _handing_through(op, value)
            body.append(node)
            value = node.outputs[0]
        given[value] = None
        results.append(value)
    return results


def values_of(body: ir.Graph) -> list[ir.Value]:
    """What a body has of its own: inputs, initializers and results, without those of bodies in it."""
    results = (value for node in body for value in node.outputs)
    return [*body.inputs, *body.initializers.values(), *results]


def is_random(node: ir.Node) -> bool:
    """Whether `node` would give something else if it ran again."""
    return node.op_type in RANDOM_OPERATORS or any(is_random(n) for body in bodies(node) for n in body)


def copy_node(op: Builder, node: ir.Node) -> ir.Node:
    """A copy of `node` with copies of its bodies, that reads the same values and is in no graph."""
    copy = ir.Node(
        node.domain,
        node.op_type,
        node.inputs,
        [_copy_attribute(attribute) for attribute in node.attributes.values()],
        num_outputs=len(node.outputs),
        name=op.unique_name(f"{node.name or node.op_type}/again"),
        metadata_props={f"{METADATA_PREFIX}computes_again": node.name or node.op_type},
    )
    for output, result in zip(node.outputs, copy.outputs, strict=True):
        result.name = op.unique_name(f"{output.name}/again") if output.name else ""
        result.shape, result.type = output.shape, output.type
    return copy


class Keeper:
    """Hands values of a node's bodies out to its backward pass.

    The forward node itself gives them out. Only where the backward pass is part of an iteration, the node
    runs once more in it and gives them out there: kept from one iteration for another, they would have to be
    stacked, and what a branch or a loop gives out may change its shape.

    Args:
        op: Builds the graph that the backward node will be in.
        node: The forward node.

    Attributes:
        node: The node that gives the values out.
    """

    def __init__(self, op: Builder, node: ir.Node) -> None:
        self._op = op
        self.node = node
        if op.repeats and not is_random(node):
            self.node = copy_node(op, node)
            op.nodes.append(self.node)
        self._copies = dict(_counterparts(node, self.node))

    def counterpart(self, value: ir.Value) -> ir.Value:
        """The value in a body of the node that gives out, for one in a body of the forward node."""
        return self._copies.get(value, value)

    def give_out(self, body: ir.Graph, value: ir.Value) -> None:
        """Make `value` one more output of `body`, a body of the node that gives out."""
        if value in body.outputs or value.producer() is None or value.graph is not body:
            node = _handing_through(self._op, value)
            body.append(node)
            value = node.outputs[0]
        body.outputs.append(value)

    def add_output(self, like: ir.Value) -> ir.Value:
        """One more output of the node, for values of the type of `like` that its bodies give out."""
        self.node.resize_outputs(len(self.node.outputs) + 1)
        output = self.node.outputs[-1]
        output.name = self._op.unique_name(f"{like.name}/kept")
        if like.dtype is not None:
            output.type = ir.TensorType(like.dtype)
        return output


def _handing_through(op: Builder, value: ir.Value) -> ir.Node:
    node = ir.Node("", "Identity", [value], name=op.unique_name(f"{value.name}/Identity"))
    node.outputs[0].name = node.name
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    return node


def _copy_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, attribute.as_graph().clone(allow_outer_scope_values=True))
    if attribute.type == ir.AttributeType.GRAPHS:
        graphs = [graph.clone(allow_outer_scope_values=True) for graph in attribute.as_graphs()]
        return ir.AttrGraphs(attribute.name, graphs)
    return attribute


def _counterparts(node: ir.Node, copy: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    """The values of the bodies of `node`, each with the one of `copy` that is the same."""
    for body, same in zip(bodies(node), bodies(copy), strict=True):
        yield from zip(values_of(body), values_of(same), strict=True)
