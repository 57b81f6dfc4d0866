"""From recorded backward nodes to a finished model: dead code, places, outputs, shapes, metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX, Builder
from onnx_grad.liveness import detach, live_nodes
from onnx_grad.prepare import OLDEST_IR_VERSION, Forward
from onnx_grad.prepare.infer import infer
from onnx_grad.prepare.weights import LightModel, lighten_ir
from onnx_grad.wiring import bodies


@dataclass(frozen=True)
class Output:
    """A graph output to be: `value`, given out as `name`, of the shape and type of `like`."""

    name: str
    value: ir.Value
    like: ir.Value


def insert(graph: ir.Graph, op: Builder, outputs: Sequence[Output], roots: Sequence[ir.Value] = ()) -> None:
    """Put what `op` recorded into `graph`, as far as `outputs` need it, and add them as graph outputs.

    A `Shape` of a forward value stands next to where that value is produced, so that the value itself need
    not live until the backward pass.

    Args:
        graph: The forward graph.
        op: The builder that recorded the backward nodes.
        outputs: The values to give out.
        roots: What nodes of the graph read of what `op` recorded: they are moved behind it.
    """
    graph.outputs.extend(place(graph, op, outputs, roots))
    if roots:
        graph.sort()


def place(
    graph: ir.Graph, op: Builder, outputs: Sequence[Output], roots: Sequence[ir.Value] = ()
) -> list[ir.Value]:
    """Put what `op` recorded into `graph`, as far as `outputs` need it; these become values of the graph.

    Args:
        graph: The forward graph, or a body.
        op: The builder that recorded the nodes.
        outputs: The values that are wanted.
        roots: What else is needed of it.

    Returns:
        The values, under their names, each produced by a node of its own.
    """
    given = _distinct_outputs(op, outputs)
    live = live_nodes(op.nodes, [*given, *roots])
    if _stretch_where_read(live):
        live = live_nodes(live, [*given, *roots])
    detach(set(op.nodes).difference(live))
    for value in op.initializers:
        if value.uses():
            graph.register_initializer(value)
    first = next(iter(graph), None)
    recorded = set(live)
    for node in live:
        _place(graph, node, recorded, first)
    return given


def _stretch_where_read(nodes: Sequence[ir.Node]) -> bool:
    """Let operators that broadcast read what an `Expand` among `nodes` stretches; whether any does now.

    Where their other operand has the shape that is stretched to, they stretch it themselves.
    """
    found = False
    for node in nodes:
        if node.op_type != "Expand" or node.domain != "":
            continue
        (stretched,), small = node.outputs, node.inputs[0]
        for user, index in tuple(stretched.uses()):
            if user.op_type not in _STRETCHING or user.domain != "" or small is None:
                continue
            if all(
                value is not None and known.same_shape(value, stretched)
                for position, value in enumerate(user.inputs)
                if position != index
            ):
                user.replace_input_with(index, small)
                found = True
    return found


_STRETCHING = frozenset("Add Sub Mul Div Equal Greater GreaterOrEqual Less LessOrEqual".split())


def _place(graph: ir.Graph, node: ir.Node, recorded: set[ir.Node], first: ir.Node | None) -> None:
    """Backward nodes follow the graph, in order; the `Shape` of a forward value follows its producer."""
    operand = node.inputs[0] if node.op_type == "Shape" else None
    producer = None if operand is None else operand.producer()
    if operand is None or producer in recorded or (producer is not None and producer.graph is not graph):
        graph.append(node)
    elif producer is not None:
        graph.insert_after(producer, node)
    elif first is not None:
        graph.insert_before(first, node)
    else:
        graph.append(node)


def _distinct_outputs(op: Builder, outputs: Sequence[Output]) -> list[ir.Value]:
    """The values under their names; one that cannot be renamed is handed through an `Identity`."""
    recorded = set(op.nodes)
    given: dict[ir.Value, None] = {}
    for output in outputs:
        result = output.value
        if result.producer() not in recorded or result in given:
            with op.serving(str(output.like.name)):
                result = op.node("Identity", output.value, shared=False)
        result.name = output.name
        result.shape, result.type = output.like.shape, output.like.type
        given[result] = None
    return list(given)


def finish(forward: Forward, metadata: Mapping[str, Mapping[str, Any]]) -> LightModel:
    """Infer the shapes of what was added and annotate the model.

    Args:
        forward: The model with its backward nodes.
        metadata: What to note in the model, by key.

    Returns:
        The finished model without its large weights.
    """
    for key, mapping in metadata.items():
        forward.model.metadata_props[METADATA_PREFIX + key] = json.dumps(mapping)
    light = forward.lightened()
    light.proto = infer(light.proto)
    return light


def settle(model: ir.Model) -> None:
    """Infer the shapes and types of what was added so far, for whoever goes on with `model`."""
    model.ir_version = max(model.ir_version, OLDEST_IR_VERSION)
    annotate(model, infer(lighten_ir(model).proto))


def annotate(model: ir.Model, proto: onnx.ModelProto) -> None:
    """Copy the shapes and types of `proto`, which was made from `model`, to the values that have none."""
    _annotate(model.graph, proto.graph)


def _annotate(graph: ir.Graph, proto: onnx.GraphProto) -> None:
    values = {value.name: value for node in graph for value in node.outputs}
    for info in (*proto.value_info, *proto.output):
        value = values.get(info.name)
        if value is not None and (value.shape is None or value.dtype is None):
            ir.serde.deserialize_value_info_proto(info, value)
    for node, same in zip(graph, proto.node, strict=True):
        inferred = [body for a in same.attribute for body in (*([a.g] if a.HasField("g") else ()), *a.graphs)]
        for body, infos in zip(bodies(node), inferred, strict=True):
            _annotate(body, infos)
