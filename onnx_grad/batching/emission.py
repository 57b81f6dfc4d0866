"""Building a node again with other operands and attributes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir

from onnx_grad.builder import Builder, Operand
from onnx_grad.wiring import bodies

_PLAIN = frozenset({ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING})
_LISTS = frozenset({ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS})


def attributes(node: ir.Node) -> dict[str, Any]:
    """The attributes of `node`, as a builder takes them."""
    return {name: _content(attribute) for name, attribute in node.attributes.items()}


def _content(attribute: ir.Attr) -> Any:
    if attribute.type in _PLAIN or (attribute.type in _LISTS and attribute.value):
        return attribute.value
    return attribute


def again(op: Builder, node: ir.Node, *operands: Operand, **changes: Any) -> tuple[ir.Value, ...]:
    """The results of the operator of `node` for other operands; attributes changed to `None` are left out."""
    count = len(node.outputs)
    while count > 1 and not node.outputs[count - 1].name:
        count -= 1
    made = op.node(
        node.op_type,
        *operands,
        outputs=None if count == 1 else count,
        domain=node.domain,
        **(attributes(node) | changes),
    )
    return (made,) if isinstance(made, ir.Value) else made


def copied(op: Builder, node: ir.Node, replaced: Callable[[ir.Value], ir.Value]) -> ir.Node:
    """A copy of `node` and of its bodies that reads other values from outside.

    Args:
        op: Records the copy.
        node: The node, of any domain.
        replaced: What is read in place of a value.
    """
    copy = ir.Node(
        node.domain,
        node.op_type,
        [None if value is None else replaced(value) for value in node.inputs],
        [_copied_attribute(attribute) for attribute in node.attributes.values()],
        overload=node.overload,
        num_outputs=len(node.outputs),
        name=op.unique_name(node.name or node.op_type),
        metadata_props=dict(node.metadata_props),
    )
    for body in bodies(copy):
        _read_instead(body, replaced)
    for output, result in zip(node.outputs, copy.outputs, strict=True):
        result.name = op.unique_name(output.name) if output.name else ""
        result.shape, result.type = output.shape, output.type
    op.nodes.append(copy)
    return copy


def _copied_attribute(attribute: ir.Attr) -> ir.Attr:
    if attribute.type == ir.AttributeType.GRAPH:
        return ir.AttrGraph(attribute.name, attribute.as_graph().clone(allow_outer_scope_values=True))
    if attribute.type == ir.AttributeType.GRAPHS:
        graphs = [graph.clone(allow_outer_scope_values=True) for graph in attribute.as_graphs()]
        return ir.AttrGraphs(attribute.name, graphs)
    return attribute


def _read_instead(body: ir.Graph, replaced: Callable[[ir.Value], ir.Value]) -> None:
    for node in body:
        for index, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(index, replaced(value))
        for inner in bodies(node):
            _read_instead(inner, replaced)
