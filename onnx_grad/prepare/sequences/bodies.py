"""Bodies of control flow: their nodes put in the place of their node, and what they give out."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.prepare.sequences.sites import Site, Writer


def copied(writer: Writer, body: ir.Graph, scope: str) -> ir.Graph:
    """A copy of `body` under names that are new in the model, without the shapes of its results.

    Args:
        writer: Knows the names.
        body: The graph.
        scope: What the copies are named after.
    """
    copy = body.clone(allow_outer_scope_values=True)
    for graph in (copy, *copy.subgraphs()):
        for value in list(graph.initializers.values()):
            _rename_initializer(writer, graph, value, scope)
        for value in graph.inputs:
            if not value.is_initializer():
                value.name = writer.unique_name(f"{scope}/{value.name}")
        for node in graph:
            node.name = writer.unique_name(f"{scope}/{node.name}")
            for output in node.outputs:
                output.name = writer.unique_name(f"{scope}/{output.name}") if output.name else output.name
                output.shape = None
    return copy


def _rename_initializer(writer: Writer, graph: ir.Graph, value: ir.Value, scope: str) -> None:
    del graph.initializers[str(value.name)]
    value.name = writer.unique_name(f"{scope}/{value.name}")
    graph.initializers.add(value)


def unfold(
    writer: Writer, body: ir.Graph, arguments: Sequence[ir.Value], site: Site, scope: str
) -> tuple[list[ir.Node], list[ir.Value]]:
    """Put a copy of the nodes of `body` at `site`.

    Args:
        writer: Writes them.
        body: The graph.
        arguments: What they read in the place of the body's inputs.
        site: Where they go.
        scope: What they are named after.

    Returns:
        The nodes, and what they give in the place of the body's outputs.
    """
    copy = copied(writer, body, scope)
    instead = dict(zip(copy.inputs, arguments, strict=True))
    outputs = [instead.get(output, output) for output in copy.outputs]
    copy.outputs.clear()
    for parameter, argument in instead.items():
        parameter.replace_all_uses_with(argument)
    nodes = list(copy)
    copy.remove(nodes)
    initializers = list(copy.initializers.values())
    copy.initializers.clear()
    writer.hold(initializers)
    site.put(nodes)
    return nodes, outputs


def loop_inputs(writer: Writer, scope: str) -> list[ir.Value]:
    """The first two inputs of the body of a `Loop`: which iteration it is, and whether it goes on."""
    types = {"iteration": ir.DataType.INT64, "goes_on": ir.DataType.BOOL}
    return [
        ir.Value(name=writer.unique_name(f"{scope}/{name}"), shape=ir.Shape([]), type=ir.TensorType(dtype))
        for name, dtype in types.items()
    ]


def give_out(writer: Writer, body: ir.Graph, values: Sequence[ir.Value], scope: str) -> None:
    """Add `values` to the outputs of `body`, those through an `Identity` that no node of it gives."""
    for value in values:
        producer = value.producer()
        if producer is None or producer.graph is not body or value in body.outputs:
            with Site.end(writer, body, scope).writing() as op:
                handed = op.Identity(value)
                handed.type = value.type
            value = handed
        body.outputs.append(value)
