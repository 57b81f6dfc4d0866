"""Other values in the place of some tensors: the nodes that depend on them computed once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.composition import infer_composition
from onnx_grad.liveness import read_values
from onnx_grad.rules.bodies import copy_node, values_of
from onnx_grad.wiring import bodies, redirect

Counterparts = dict[ir.Value, ir.Value]


def substitute(
    op: Builder, nodes: Sequence[ir.Node], replaced: Mapping[ir.Value, ir.Value]
) -> tuple[list[ir.Node], Counterparts]:
    """Copies of those of `nodes` that depend on a replaced value, reading what replaces it.

    Args:
        op: Names the copies.
        nodes: Nodes in topological order.
        replaced: Values, with what takes their place.

    Returns:
        The nodes with copies where there are any, and for each value that changes its counterpart.
    """
    counterparts = dict(replaced)
    # Symbols and sizes of a shape hold for the value that it was inferred for.
    keeps_shapes = all(known.same_shape(value, given) for value, given in replaced.items())
    result = []
    for node in nodes:
        if counterparts.keys().isdisjoint(read_values(node)):
            result.append(node)
            continue
        copy = copy_node(op, node)
        redirect(copy, counterparts)
        if not keeps_shapes:
            _forget_shapes(copy)
        counterparts.update(zip(node.outputs, copy.outputs, strict=True))
        result.append(copy)
    if not keeps_shapes:
        infer_composition([node for node in result if node.graph is None], op.opset)
    return result, counterparts


def _forget_shapes(node: ir.Node) -> None:
    for output in node.outputs:
        output.shape = None
    for body in bodies(node):
        for value in values_of(body):
            if value.const_value is None:
                value.shape = None
        for inner in body:
            _forget_shapes(inner)
