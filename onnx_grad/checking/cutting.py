"""Models cut open at tensors, so that these can be perturbed.

The derivative with respect to an intermediate tensor is that of the model in which the tensor is an input and
whatever made it is gone. Two tensors of which one depends on the other need a cut each: perturbing the
first must move the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from onnx_grad.known import captured_values


@dataclass(frozen=True)
class CutModel:
    """A model whose inputs include chosen tensors.

    Attributes:
        model: The model; its inputs are those of the original, then the tensors that were cut.
        cut: The tensors that became inputs: intermediate ones and initializers.
        outputs: For each tensor asked for, the name of the graph output that holds it.
    """

    model: ir.Model
    cut: tuple[str, ...]
    outputs: dict[str, str]


def cut_model(model: ir.Model, at: Iterable[str], outputs: Iterable[str]) -> CutModel:
    """A copy of `model` that reads the tensors `at` from its inputs and gives back `outputs`.

    Args:
        model: The model.
        at: Names of graph inputs (which stay as they are), initializers and intermediate tensors.
        outputs: Names of the tensors wanted; everything that none of them depends on is removed.
    """
    copy = model.clone()
    graph = copy.graph
    values = named_values(graph)
    wanted = list(dict.fromkeys(outputs))
    cut = []
    for name in dict.fromkeys(at):
        value = values[name]
        if value.is_initializer():
            _release(graph, value)
        elif not value.is_graph_input():
            values[name] = _replaced_by_input(graph, value)
        else:
            continue
        cut.append(name)
    graph.outputs.clear()
    names = {name: _add_output(graph, values[name]) for name in wanted}
    RemoveUnusedNodesPass()(copy)
    return CutModel(copy, tuple(cut), names)


def independent_groups(model: ir.Model, names: Sequence[str]) -> list[list[str]]:
    """Split `names` into groups in which no tensor depends on another one of its group."""
    values = named_values(model.graph)
    wanted = {values[name]: name for name in names}
    ancestors = _ancestors(model.graph, set(wanted))
    groups: list[list[str]] = []
    for value, name in wanted.items():
        for group in groups:
            if not any(
                values[other] in ancestors[value] or value in ancestors[values[other]] for other in group
            ):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def named_values(graph: ir.Graph) -> dict[str, ir.Value]:
    """Every tensor of the main graph by name."""
    produced = (value for node in graph for value in node.outputs)
    values = (*graph.inputs, *graph.initializers.values(), *produced)
    return {value.name: value for value in values if value.name}


def _ancestors(graph: ir.Graph, marked: set[ir.Value]) -> dict[ir.Value, frozenset[ir.Value]]:
    """For every value, which of the `marked` ones it depends on."""
    found: dict[ir.Value, frozenset[ir.Value]] = {}
    for value in (*graph.inputs, *graph.initializers.values()):
        found[value] = frozenset()
    for node in graph:
        read = [value for value in (*node.inputs, *captured_values(node)) if value is not None]
        above = frozenset().union(
            *(found.get(value, frozenset()) for value in read),
            (value for value in read if value in marked),
        )
        for output in node.outputs:
            found[output] = above
    return found


def _release(graph: ir.Graph, value: ir.Value) -> None:
    """Take its content from an initializer, which becomes a required input."""
    assert value.name is not None
    del graph.initializers[value.name]
    value.const_value = None
    if not value.is_graph_input():
        graph.inputs.append(value)


def _replaced_by_input(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """A new graph input that takes the name and all the readers of an intermediate `value`."""
    # Of any size: the dimensions inferred for the original need not bind to those of the inputs.
    shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
    new = ir.Value(name=value.name, shape=shape, type=value.type)
    value.replace_all_uses_with(new, replace_graph_outputs=True)
    value.name = f"{value.name}/before the cut"
    graph.inputs.append(new)
    return new


def _add_output(graph: ir.Graph, value: ir.Value) -> str:
    """Make `value` a graph output; an input or initializer through a copy, as it cannot be one itself."""
    if value.is_graph_input() or value.is_initializer():
        node = ir.Node("", "Identity", [value], name=f"{value.name}/output")
        node.outputs[0].name = f"{value.name}/output"
        node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
        graph.append(node)
        value = node.outputs[0]
    graph.outputs.append(value)
    assert value.name is not None
    return value.name
