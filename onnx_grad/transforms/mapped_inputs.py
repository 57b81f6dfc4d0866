"""Which inputs are mapped and where: from a request to a batch of each, and the batch axis."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching import Batch
from onnx_grad.batching.axes import to_front
from onnx_grad.batching.extents import concatenated, extents
from onnx_grad.builder import Builder
from onnx_grad.errors import InputError, UnknownNameError

Axes: TypeAlias = "int | Mapping[str, int | None]"

# The symbol of the new dimension, with a number where the model has one of that name.
_SYMBOL = "vmap"


@dataclass(frozen=True)
class Request:
    """What is mapped.

    Attributes:
        in_axes: The axis of each mapped input or initializer, by name.
        out_axes: As given.
        tensors: The mapped initializers.
        defaults: The inputs that have a default value.
        size: The number of examples, where it is given.
    """

    in_axes: Mapping[str, int]
    out_axes: Axes
    tensors: Mapping[str, ir.TensorProtocol]
    defaults: Collection[str]
    size: int | None


def mapped_axes(graph: ir.Graph, in_axes: Axes) -> dict[str, int]:
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


def check_initializers(graph: ir.Graph, axes: Mapping[str, int]) -> None:
    """See that mapped initializers have the axes that they are mapped over."""
    for name, axis in axes.items():
        rank = known.rank(graph.initializers[name]) or 0
        if not -rank <= axis < rank:
            raise InputError(
                f"in_axes: the initializer '{name}' has {rank} axes, and {axis} is not one of them"
            )


def mapped_input(graph: ir.Graph, request: Request, name: str) -> ir.Value:
    """The input or initializer with all examples that takes the place of the one for one of them."""
    (example,) = (value for value in graph.inputs if value.name == name)
    tensor, dims = request.tensors.get(name), known.dimensions(example)
    if tensor is not None:
        shape = ir.Shape([d if isinstance(d, int) else d.value for d in tensor.shape])
        whole = ir.Value(name=name, shape=shape, type=example.type, const_value=tensor)
    else:
        whole = ir.Value(name=name, type=example.type)
        if dims is not None:
            axis = request.in_axes[name] % (len(dims) + 1)
            whole.shape = ir.Shape([*dims[:axis], None, *dims[axis:]])
    return whole


def batch_axis(op: Builder, graph: ir.Graph, request: Request, mapped: Mapping[str, ir.Value]) -> Batch:
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


def _with_dimension(request: Request, mapped: Mapping[str, ir.Value], axis: Batch) -> Batch:
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


def examples_of(
    op: Builder, graph: ir.Graph, request: Request, mapped: Mapping[str, ir.Value], axis: Batch
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


def replace_inputs(graph: ir.Graph, request: Request, mapped: Mapping[str, ir.Value]) -> None:
    """Let the mapped inputs take the places of those for one example, and initializers be that again."""
    initializers = request.tensors.keys() - set(request.defaults)
    inputs = [mapped.get(str(v.name), v) for v in graph.inputs if v.name not in initializers]
    graph.inputs.clear()
    graph.inputs.extend(inputs)
    for value in mapped.values():
        if value.const_value is not None:
            graph.register_initializer(value)
