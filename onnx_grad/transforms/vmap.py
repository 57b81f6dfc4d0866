"""The batching transform: a model of one example becomes a model of a batch of them."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, overload

import onnx
import onnx_ir as ir

from onnx_grad import known, registry, tidy
from onnx_grad.batching import Batch, Batched, batch
from onnx_grad.batching.axes import from_front, to_front
from onnx_grad.batching.dependence import dependents
from onnx_grad.batching.extents import concatenated, extents
from onnx_grad.batching.registry import is_declared
from onnx_grad.builder import Builder, recording
from onnx_grad.errors import InputError, ModelError, UnknownNameError
from onnx_grad.liveness import detach, live_nodes, read_values
from onnx_grad.prepare import Forward, Model, prepare
from onnx_grad.prepare.sequences import handles_sequences
from onnx_grad.registry import State
from onnx_grad.saving import check_target
from onnx_grad.transforms.tracing import PathLike, builder, deliver, garbage_collector_paused

Axes: TypeAlias = "int | Mapping[str, int | None]"

# The symbol of the new dimension, with a number where the model has one of that name.
_SYMBOL = "vmap"


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
        axes = _mapped(forward.model.graph, in_axes)
        sliced = {name: a for name, a in axes.items() if name in forward.model.graph.initializers}
        _check_initializers(forward.model.graph, sliced)
        forward, tensors = forward.for_slices(sliced)
        forward = _expanded(forward, axes)
        _check_outputs(forward.model.graph, out_axes)
        _vmap(forward.model.graph, _Request(axes, out_axes, tensors, axis_size))
        return deliver(forward, model, {}, save_as)


@dataclass(frozen=True)
class _Request:
    """What is mapped.

    Attributes:
        in_axes: The axis of each mapped input or initializer, by name.
        out_axes: As given.
        tensors: The mapped initializers.
        size: The number of examples, where it is given.
    """

    in_axes: Mapping[str, int]
    out_axes: Axes
    tensors: Mapping[str, ir.TensorProtocol]
    size: int | None


def _mapped(graph: ir.Graph, in_axes: Axes) -> dict[str, int]:
    """The axis of each input or initializer that is mapped."""
    if isinstance(in_axes, Mapping):
        names = [str(value.name) for value in (*graph.inputs, *graph.initializers.values())]
        for name in in_axes:
            if name not in names:
                raise UnknownNameError.near("in_axes", name, names, "input or initializer")
        axes = {name: axis for name, axis in in_axes.items() if axis is not None}
    elif in_axes is not None:
        axes = {str(v.name): in_axes for v in graph.inputs if not v.is_initializer()}
    else:
        axes = {}
    if not axes:
        raise InputError("in_axes: nothing is mapped; name at least one input and the axis of the examples")
    for value in graph.inputs:
        if value.name in axes:
            _check_input(value, axes[value.name])
    return axes


def _check_input(value: ir.Value, axis: int) -> None:
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise InputError(f"in_axes: '{value.name}' is a {value.type}, not a tensor, and has no axes")
    rank = known.rank(value)
    if rank is not None and not value.is_initializer() and not -rank - 1 <= axis <= rank:
        raise InputError(
            f"in_axes: with the new axis '{value.name}' has {rank + 1} axes, and {axis} is not one of them"
        )


def _check_initializers(graph: ir.Graph, axes: Mapping[str, int]) -> None:
    for name, axis in axes.items():
        rank = known.rank(graph.initializers[name]) or 0
        if not -rank <= axis < rank:
            raise InputError(
                f"in_axes: the initializer '{name}' has {rank} axes, and {axis} is not one of them"
            )


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


def _vmap(graph: ir.Graph, request: _Request) -> None:
    """Replace the nodes that depend on what is mapped by their batched counterparts."""
    op = builder(graph)
    live = live_nodes(graph, graph.outputs)
    mapped = {name: _mapped_input(graph, request, name) for name in request.in_axes}
    with recording(op):
        axis = _batch_axis(op, graph, request, mapped)
        examples = _examples(op, graph, request, mapped, axis)
        batched = batch(op, list(graph), examples, axis.size)
        outputs = [_output(op, request, batched, axis, y) for y in graph.outputs]
    graph.outputs.clear()
    remove(graph, [node for node in graph if any(y in batched for y in node.outputs)])
    _replace_inputs(graph, mapped)
    _name_as_before(op, batched, {output.name for output in outputs})
    tidy.insert(graph, op, outputs)
    alive = set(live_nodes(graph, graph.outputs))
    remove(graph, [node for node in live if node.graph is graph and node not in alive])


def _mapped_input(graph: ir.Graph, request: _Request, name: str) -> ir.Value:
    """The input or initializer with all examples that takes the place of the one for one of them."""
    (example,) = (value for value in graph.inputs if value.name == name)
    tensor, dims = request.tensors.get(name), known.dimensions(example)
    if tensor is not None:
        example_shape = ir.Shape([d if isinstance(d, int) else d.value for d in tensor.shape])
        whole = ir.Value(name=name, shape=example_shape, type=example.type, const_value=tensor)
    else:
        whole = ir.Value(name=name, type=example.type)
        if dims is not None:
            axis = request.in_axes[name] % (len(dims) + 1)
            whole.shape = ir.Shape([*dims[:axis], None, *dims[axis:]])
    return whole


def _batch_axis(op: Builder, graph: ir.Graph, request: _Request, mapped: Mapping[str, ir.Value]) -> Batch:
    """The number of examples: one that is given, that of an initializer, or that of the first input."""
    sizes = {} if request.size is None else {"axis_size": request.size}
    for name in request.tensors:
        sizes[name] = int(mapped[name].shape[request.in_axes[name]])  # type: ignore[index, arg-type]
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} by '{name}'" for name, size in sizes.items())
        raise InputError(f"in_axes: the number of examples is {told}; the sizes have to agree")
    if sizes:
        size: int | ir.Value = next(iter(sizes.values()))
        if not isinstance(size, int) or size < 0:
            raise InputError(f"axis_size: {size} is no number of examples; give an integer from 0 on")
        return _with_dimension(request, mapped, Batch(size, size))
    first, axis = next((mapped[name], axis) for name, axis in request.in_axes.items())
    own = op.Shape(first, start=axis or None, end=axis + 1 or None)
    return _with_dimension(request, mapped, Batch(own, ir.SymbolicDim(_symbol(graph))))


def _with_dimension(request: _Request, mapped: Mapping[str, ir.Value], axis: Batch) -> Batch:
    """The batch axis, with its dimension in the shapes of the inputs."""
    for name, value in mapped.items():
        if name not in request.tensors and value.shape is not None:
            dims = list(value.shape.dims)
            dims[request.in_axes[name]] = axis.dimension
            value.shape = ir.Shape(dims)
    return axis


def _symbol(graph: ir.Graph) -> str:
    """A name for the new dimension that no other has."""
    values = [*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)]
    taken = {d.value for v in values for d in known.dimensions(v) or () if isinstance(d, ir.SymbolicDim)}
    numbered = (f"{_SYMBOL}_{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([_SYMBOL], numbered) if name not in taken)


def _examples(
    op: Builder, graph: ir.Graph, request: _Request, mapped: Mapping[str, ir.Value], axis: Batch
) -> dict[ir.Value, ir.Value]:
    """What stands for one example, with the batch of them, whose axis is in front.

    ONNX Runtime does not compare symbolic dimensions, and a single example would be stretched to the number
    of the others: so that running fails instead, every other input is given that number in a `Reshape`.
    """
    found = {}
    inputs = {str(value.name): value for value in graph.inputs}
    for position, (name, whole) in enumerate(mapped.items()):
        with op.serving(name):
            batch_first = to_front(op, whole, request.in_axes[name])
            if not isinstance(axis.size, int) and position > 0:
                shape = concatenated(op, [axis.size, *extents(batch_first, 1)])
                batch_first = op.Reshape(batch_first, shape, allowzero=1)
        axis.annotate(batch_first, inputs[name])
        found[inputs[name]] = batch_first
    return found


def _output(op: Builder, request: _Request, batched: Batched, axis: Batch, y: ir.Value) -> tidy.Output:
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


def _replace_inputs(graph: ir.Graph, mapped: Mapping[str, ir.Value]) -> None:
    """Let the mapped inputs take the places of those for one example, and initializers be that again."""
    inputs = [mapped.get(str(value.name), value) for value in graph.inputs]
    graph.inputs.clear()
    graph.inputs.extend(value for value in inputs if value.const_value is None or value.name not in mapped)
    for value in mapped.values():
        if value.const_value is not None:
            graph.register_initializer(value)


def remove(graph: ir.Graph, nodes: Sequence[ir.Node]) -> None:
    """Take `nodes`, which nothing else reads, out of `graph`, with the initializers that only they read."""
    read = {value for node in nodes for value in read_values(node)}
    detach(nodes)
    graph.remove(nodes)
    for name, value in list(graph.initializers.items()):
        if value in read and not value.uses() and not value.is_graph_input():
            del graph.initializers[name]


def _name_as_before(op: Builder, batched: Batched, outputs: Collection[str]) -> None:
    """Give the counterparts the names of what they replace, and their nodes those of its nodes."""
    new, named = set(op.nodes), set[ir.Value]()
    for value, counterpart in batched.counterparts:
        before, after = value.producer(), counterpart.producer()
        if after is None or counterpart in named or value.name in outputs:
            continue
        if after in new or value.graph is None:
            named.add(counterpart)
            counterpart.name = value.name
        if before is not None and before.outputs[0] is value:
            after.name = before.name
