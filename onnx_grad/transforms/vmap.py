"""The batching transform: a model of one example becomes a model of a batch of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad import known, registry, tidy
from onnx_grad.batching import Batch, Batched, batch
from onnx_grad.batching.axes import from_front
from onnx_grad.batching.dependence import dependents
from onnx_grad.batching.registry import is_declared
from onnx_grad.builder import Builder
from onnx_grad.errors import InputError, ModelError, UnknownNameError
from onnx_grad.liveness import live_nodes, read_values, remove
from onnx_grad.prepare import Forward, Model, prepare
from onnx_grad.prepare.sequences import handles_sequences
from onnx_grad.recording import recording
from onnx_grad.registry import State
from onnx_grad.saving import check_target
from onnx_grad.transforms.mapped_inputs import (
    Axes,
    Request,
    batch_axis,
    check_initializers,
    examples_of,
    mapped_axes,
    mapped_input,
    replace_inputs,
)
from onnx_grad.transforms.tracing import PathLike, builder, deliver, garbage_collector_paused


@overload
def vmap(
    model: ir.Model,
    in_axes: Axes = 0,
    out_axes: Axes = 0,
    *,
    axis_size: int | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def vmap(
    model: PathLike | onnx.ModelProto,
    in_axes: Axes = 0,
    out_axes: Axes = 0,
    *,
    axis_size: int | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def vmap(
    model: Model,
    in_axes: Axes = 0,
    out_axes: Axes = 0,
    *,
    axis_size: int | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """The model over a new axis: yᵢ = f(xᵢ, c) for every example xᵢ, as one graph without a loop over i.

    Each operator computes all examples at once; one that cannot runs in a `Scan` over the examples, which
    needs at least one of them. What depends on no mapped input is computed once.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        in_axes: Where the new axis is in the inputs. A number holds for every input without a default value;
            a mapping names those that have the axis, and the others are the same for all examples. An
            initializer that is named is mapped over an axis that it has. A negative axis counts from the end.
        out_axes: Where the new axis is in the outputs: a number, or a mapping by name, with 0 for the others.
            An output that depends on nothing mapped is repeated for every example; `None` gives it out once.
        axis_size: The number of examples, where it is to be fixed. It is needed for one thing only: a
            convolution of which both images and filters are mapped, which otherwise runs in a `Scan`.
        save_as: Where to write the result as well. Its external weights are shared with the original's.

    Returns:
        A model of the kind that was given (a `ModelProto` for a path) with the same inputs and outputs, those
        that are mapped with one more dimension. Its metadata stays, so that a model with gradients is one
        still: `vmap(grad(model, wrt="parameters"))` gives the gradients of every example by itself.

    Raises:
        ModelError: The model is damaged or inconsistent.
        UnknownNameError: A name in `in_axes` or `out_axes` is not an input or output.
        InputError: Nothing is mapped, an axis is not there, or sizes disagree.
        UnsupportedOpError: Operators cannot be batched, as their results would differ in shape between the
            examples; all of them are named.
        OutputError: `save_as` cannot be written.
    """
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        forward = prepare(model)
        axes = mapped_axes(forward.model.graph, in_axes)
        sliced = {name: a for name, a in axes.items() if name in forward.model.graph.initializers}
        check_initializers(forward.model.graph, sliced)
        forward, tensors = forward.for_slices(sliced)
        forward = _expanded(forward, axes)
        _check_outputs(forward.model.graph, out_axes)
        request = Request(axes, out_axes, tensors, forward.light.declared_inputs, axis_size)
        _vmap(forward.model.graph, request)
        return deliver(forward, model, {}, save_as)


def _expanded(forward: Forward, axes: Mapping[str, int]) -> Forward:
    """The same with bodies in the place of functions that have no batching rule, where they are batched."""
    kept: set[str] = set()
    while True:
        graph = forward.model.graph
        marked = dependents(graph, [value for value in graph.inputs if str(value.name) in axes])
        nodes = [n for n in graph.all_nodes() if any(v in marked for v in read_values(n))]
        if any(map(handles_sequences, nodes)):
            over_tensors = forward.over_tensors(marked.__contains__)
            if over_tensors is not None:
                forward = over_tensors
                continue
        functions = {(domain, name) for domain, name, _ in forward.model.functions}
        calls = {str(node.name) for node in nodes if _is_expanded(graph, node, functions)} - kept
        if not calls:
            return forward
        try:
            forward = forward.expanded(calls)
        except ModelError:
            # A body that depends on types that are not known: such nodes run in a `Scan`.
            kept |= calls


def _is_expanded(graph: ir.Graph, node: ir.Node, functions: set[tuple[str, str]]) -> bool:
    if is_declared(node.op_type, node.domain):
        return False
    entry = registry.lookup(node.domain, node.op_type, graph.opset_imports.get(""), functions=functions)
    return entry.state is State.EXPANDED


def _check_outputs(graph: ir.Graph, out_axes: Axes) -> None:
    names = [str(value.name) for value in graph.outputs]
    for name in out_axes if isinstance(out_axes, Mapping) else ():
        if name not in names:
            raise UnknownNameError.near("out_axes", name, names, "output")


def _vmap(graph: ir.Graph, request: Request) -> None:
    """Replace the nodes that depend on what is mapped by their batched counterparts."""
    op = builder(graph)
    live = live_nodes(graph, graph.outputs)
    mapped = {name: mapped_input(graph, request, name) for name in request.in_axes}
    with recording(op):
        axis = batch_axis(op, graph, request, mapped)
        examples = examples_of(op, graph, request, mapped, axis)
        batched = batch(op, list(graph), examples, axis.size)
        outputs = [_output(op, request, batched, axis, y) for y in graph.outputs]
    graph.outputs.clear()
    remove(graph, [node for node in graph if any(y in batched for y in node.outputs)])
    replace_inputs(graph, request, mapped)
    _name_as_before(op, batched, {output.name for output in outputs})
    tidy.insert(graph, op, outputs)
    alive = set(live_nodes(graph, graph.outputs))
    remove(graph, [node for node in live if node.graph is graph and node not in alive])


def _output(op: Builder, request: Request, batched: Batched, axis: Batch, y: ir.Value) -> tidy.Output:
    """A graph output with the batch axis where it is asked for."""
    name = str(y.name)
    where = request.out_axes.get(name, 0) if isinstance(request.out_axes, Mapping) else request.out_axes
    if y not in batched and y.producer() is not None:
        y.name = op.unique_name(f"{name}/example")
    if where is None:
        if y in batched:
            raise InputError(
                f"out_axes: '{name}' depends on what is mapped, so that it has the new axis; say where"
            )
        return tidy.Output(name, y, like=ir.Value(name=name, shape=y.shape, type=y.type))
    dims = known.dimensions(y)
    if dims is not None and not -len(dims) - 1 <= where <= len(dims):
        raise InputError(
            f"out_axes: with the new axis '{name}' has {len(dims) + 1} axes, and {where} is not one of them"
        )
    with op.serving(name):
        value = batched[y] if y in batched else axis.repeated(op, y)
        axis.annotate(value, y)
        moved = from_front(op, value, where)
    shape = None
    if dims is not None:
        where %= len(dims) + 1
        shape = ir.Shape([*dims[:where], axis.dimension, *dims[where:]])
    return tidy.Output(name, moved, like=ir.Value(name=name, shape=shape, type=y.type))


def _name_as_before(op: Builder, batched: Batched, outputs: Collection[str]) -> None:
    """Give the counterparts the names of what they replace, and their nodes those of its nodes."""
    new, named = set(op.nodes), set[ir.Value]()
    for value, counterpart in batched.counterparts:
        before, after = value.producer(), counterpart.producer()
        if after is None or counterpart in named or value.name in outputs:
            continue
        if after in new:
            named.add(counterpart)
            counterpart.name = value.name
        if before is not None and before.outputs[0] is value:
            after.name = before.name
