"""A loss that is an ONNX model over the outputs of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import taken_names
from onnx_grad.errors import InputError, ModelError
from onnx_grad.prepare import prepare
from onnx_grad.prepare.lift import OLDEST_OPSET


def append_loss_model(model: ir.Model, loss: ir.Model) -> str:
    """Append the nodes of `loss` to `model`, which is changed.

    The inputs of `loss` are tensors of `model` where it has one of that name, and become inputs of it where
    it has none. All other names are made new.

    Returns:
        The name of the scalar: the only float output of `loss`.
    """
    loss = _same_opset(loss, model.graph.opset_imports.setdefault("", OLDEST_OPSET))
    graph, appended = model.graph, loss.graph
    result = _scalar(appended)
    present = {v.name: v for v in (*graph.inputs, *(o for node in graph for o in node.outputs))}
    joined = [value for value in appended.inputs if value.name and value.name in present]
    _check_joined(joined, present, appended, graph)
    initializers, nodes = list(appended.initializers.values()), list(appended)
    _make_names_new(graph, appended)
    for value in joined:
        value.replace_all_uses_with(present[value.name])
    added = [value for value in appended.inputs if value not in joined]
    appended.inputs.clear()
    appended.outputs.clear()
    appended.initializers.clear()
    appended.remove(nodes)
    graph.inputs.extend(added)
    for value in initializers:
        graph.register_initializer(value)
    graph.extend(nodes)
    graph.outputs.append(result)
    for domain, version in appended.opset_imports.items():
        graph.opset_imports.setdefault(domain, version)
    return str(result.name)


def _scalar(loss: ir.Graph) -> ir.Value:
    outputs = [value for value in loss.outputs if known.may_be_float(value)]
    if len(outputs) != 1:
        names = ", ".join(f"'{value.name}'" for value in loss.outputs)
        raise InputError(f"loss: a loss model has one float output, a scalar, and this one has {names}")
    return outputs[0]


def _check_joined(
    joined: Sequence[ir.Value], present: Mapping[str | None, ir.Value], loss: ir.Graph, graph: ir.Graph
) -> None:
    if all(present[value.name].is_graph_input() for value in joined):
        names, outputs = (", ".join(f"'{v.name}'" for v in values) for values in (loss.inputs, graph.outputs))
        raise InputError(
            f"loss: the inputs of the loss model ({names}) name no output of the model ({outputs}); "
            "rename them"
        )
    for value in joined:
        other = present[value.name]
        if None not in (value.dtype, other.dtype) and value.dtype != other.dtype:
            raise ModelError(f"loss: '{value.name}' is {other.dtype} in the model, {value.dtype} in the loss")


def _same_opset(loss: ir.Model, opset: int) -> ir.Model:
    own = loss.graph.opset_imports.get("", opset)
    if own == opset:
        return loss
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(loss), opset)
    except (RuntimeError, onnx.version_converter.ConvertError) as error:
        raise ModelError(
            f"loss: the loss model uses opset {own}, the model {opset}, and it cannot be converted: {error}; "
            f"export it with opset {opset}"
        ) from error
    return prepare(converted).model


def _make_names_new(graph: ir.Graph, appended: ir.Graph) -> None:
    """Rename what `appended` computes and holds where `graph` has such a name; its inputs keep theirs."""
    taken = taken_names(graph)
    inputs = set(appended.inputs)
    values = [*appended.initializers.values(), *(v for node in appended.all_nodes() for v in node.outputs)]
    for value in values:
        if value not in inputs and value.name in taken:
            value.name = _new(f"{value.name}_of_loss", taken)
    for node in appended.all_nodes():
        if node.name in taken:
            node.name = _new(f"{node.name}_of_loss", taken)


def _new(name: str, taken: set[str]) -> str:
    candidate, number = name, 0
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
