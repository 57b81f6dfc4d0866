"""Appending a loss to a forward model: by name, as an object, a function, a model, or an own output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx
import onnx_ir as ir

from onnx_grad import known, tidy
from onnx_grad.batch_statistics import updates_statistic
from onnx_grad.builder import Builder, taken_names
from onnx_grad.errors import InputError, NotDifferentiableError, UnknownNameError
from onnx_grad.prepare import prepare
from onnx_grad.prepare.lift import OLDEST_OPSET
from onnx_grad.recording import recording
from onnx_grad.training.loss_model import append_loss_model
from onnx_grad.training.losses import LOSSES, Labels, Loss
from onnx_grad.transforms.tracing import PathLike


class Tensors(Mapping[str, ir.Value]):
    """The tensors of a forward model by name, for a loss that is a Python function.

    `tensors["logits"]` is an output, an input or a tensor between; `tensors.input("labels", "int64",
    ["batch"])` declares one more input of the training model: a target.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        produced = (value for node in graph for value in node.outputs)
        values = (*graph.inputs, *graph.initializers.values(), *produced)
        self._values = {value.name: value for value in values if value.name}
        self.declared: list[str] = []

    def __getitem__(self, name: str) -> ir.Value:
        if name not in self._values:
            raise UnknownNameError.near("loss", name, self._values)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def input(
        self, name: str, dtype: str | ir.DataType, shape: Sequence[int | str | None] | ir.Shape | None
    ) -> ir.Value:
        """The graph input `name`: one that is there already, or a new one of this type and shape."""
        for value in self._graph.inputs:
            if value.name == name:
                return value
        if name in self._values:
            raise InputError(f"loss: '{name}' is a tensor of the model already; give the target another name")
        code = dtype.name if isinstance(dtype, ir.DataType) else _TYPE_NAMES.get(dtype, dtype.upper())
        if code not in ir.DataType.__members__:
            raise InputError(f"loss: there is no element type '{dtype}' for the input '{name}'")
        kind = ir.DataType[code]
        dims = None if shape is None else ir.Shape(shape)
        value = ir.Value(name=name, shape=dims, type=ir.TensorType(kind))
        self._graph.inputs.append(value)
        self._values[name] = value
        self.declared.append(name)
        return value


_TYPE_NAMES = {"float32": "FLOAT", "float64": "DOUBLE"}

LossFunction: TypeAlias = Callable[[Builder, Tensors], ir.Value]


@dataclass(frozen=True)
class Term:
    """One of several losses that are added up.

    Attributes:
        output: The output of the model that is compared.
        loss: The name of a loss, or a `Loss`.
        target: The name of the input for the target; `None` for `<output>_target`.
        weight: What this loss is multiplied with.
    """

    output: str
    loss: str | Loss
    target: str | None = None
    weight: float = 1.0


LossSpec: TypeAlias = (
    "str | Loss | Term | Sequence[Term] | LossFunction | onnx.ModelProto | ir.Model | PathLike"
)


@dataclass
class Appended:
    """What a loss has added to a model.

    Attributes:
        loss: The name of the scalar.
        targets: For each output that is compared, the graph input with its target.
        inputs: The graph inputs that were added, in order.
        labels: For each input of integer labels, what it may hold.
    """

    loss: str
    targets: dict[str, str] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    labels: dict[str, Labels] = field(default_factory=dict)


def append_loss(
    model: ir.Model, loss: LossSpec, output: str | None = None, target: str | None = None
) -> Appended:
    """Append `loss` to the graph of `model`, which is changed.

    Args:
        model: A prepared forward model.
        loss: See `onnx_grad.training.training_model`.
        output: The output that is compared; `None` where there is one float output only.
        target: The name of the input for the target.
    """
    graph = model.graph
    if isinstance(loss, str) and any(value.name == loss for value in graph.outputs):
        return Appended(_checked_scalar(next(v for v in graph.outputs if v.name == loss)))
    if isinstance(loss, Term):
        loss = [loss]
    if isinstance(loss, Loss) or (isinstance(loss, str) and loss in LOSSES):
        loss = [Term(output or _only_output(graph), loss, target)]
    if isinstance(loss, str) and not loss.endswith(".onnx"):
        known_names = [*LOSSES, *(str(value.name) for value in graph.outputs)]
        raise UnknownNameError.near("loss", loss, known_names, "loss or output")
    if isinstance(loss, Sequence) and not isinstance(loss, str):
        return _append_terms(graph, loss)
    if callable(loss):
        return _append_function(graph, loss)
    return _append_model(model, loss)


def _append_terms(graph: ir.Graph, terms: Sequence[Term]) -> Appended:
    if not terms:
        raise InputError("loss: the list of losses is empty; give one term at least")
    tensors = Tensors(graph)
    appended = Appended("")

    def total(op: Builder, tensors: Tensors) -> ir.Value:
        parts = [_term(op, tensors, graph, term, appended) for term in terms]
        result = parts[0]
        for part in parts[1:]:
            result = op.Add(result, op.CastLike(part, result))
        return result

    appended.loss = _build(graph, tensors, total)
    appended.inputs = tensors.declared
    return appended


def _term(op: Builder, tensors: Tensors, graph: ir.Graph, term: Term, appended: Appended) -> ir.Value:
    loss = _loss_object(term.loss)
    prediction = _output(graph, tensors, term.output)
    name = term.target or f"{term.output}_target"
    dtype, shape = loss.target_of(prediction)
    target = tensors.input(name, dtype, shape)
    if target.dtype != dtype:
        raise InputError(
            f"loss: the target '{name}' is an input of the model of type {target.dtype}, and "
            f"{type(loss).__name__} needs {dtype}"
        )
    appended.targets[term.output] = name
    labels = loss.labels(prediction)
    if labels is not None:
        appended.labels[name] = labels
    value = loss.build(op, prediction, target)
    return value if term.weight == 1.0 else op.Mul(value, float(term.weight))


def _loss_object(loss: str | Loss) -> Loss:
    if isinstance(loss, Loss):
        return loss
    if loss not in LOSSES:
        raise UnknownNameError.near("loss", loss, LOSSES, "loss")
    return LOSSES[loss]()


def _append_function(graph: ir.Graph, function: LossFunction) -> Appended:
    tensors = Tensors(graph)
    name = _build(graph, tensors, function)
    return Appended(name, inputs=tensors.declared)


def _build(graph: ir.Graph, tensors: Tensors, function: LossFunction) -> str:
    """Record what `function` builds, and give it out as `loss`."""
    op = Builder(graph.opset_imports.setdefault("", OLDEST_OPSET), {*taken_names(graph), *tensors})
    with recording(op), op.serving("loss"):
        try:
            value = function(op, tensors)
        except onnx.defs.SchemaError as error:
            raise InputError(f"loss: the function builds what is no operator: {error}") from error
        if not isinstance(value, ir.Value):
            raise InputError(
                f"loss: the function gave {type(value).__name__}; it must return a value it built"
            )
        value = op.Cast(value, to=ir.DataType.FLOAT) if value.dtype in known.HALF_TYPES else value
    like = ir.Value(name="loss", shape=ir.Shape([]), type=ir.TensorType(value.dtype or ir.DataType.FLOAT))
    name = op.unique_name("loss")
    tidy.insert(graph, op, [tidy.Output(name, value, like)])
    return name


def _append_model(model: ir.Model, loss: onnx.ModelProto | ir.Model | PathLike) -> Appended:
    before = {value.name for value in model.graph.inputs}
    name = append_loss_model(model, prepare(loss).model)
    added = [str(value.name) for value in model.graph.inputs if value.name not in before]
    return Appended(name, inputs=added)


def _only_output(graph: ir.Graph) -> str:
    given = [value for value in graph.outputs if not updates_statistic(value.producer())]
    outputs = [value for value in given if known.may_be_float(value)]
    if len(outputs) == 1:
        return str(outputs[0].name)
    names = ", ".join(f"'{value.name}'" for value in given)
    if not outputs:
        raise NotDifferentiableError(
            f"loss: the model has no float output that a loss could compare (its outputs: {names})"
        )
    raise InputError(
        f"loss: the model has {len(outputs)} float outputs ({names}); name one with output=, or give a "
        "list of Term(output, loss, target, weight)"
    )


def _output(graph: ir.Graph, tensors: Tensors, name: str) -> ir.Value:
    value = tensors[name]
    if not known.may_be_float(value):
        raise NotDifferentiableError(
            f"loss: '{name}' is of type {value.dtype}, and a loss on it has no derivative; name the float "
            "tensor that it is made of"
        )
    return value


def _checked_scalar(value: ir.Value) -> str:
    shape = known.static_shape(value)
    if not known.may_be_float(value):
        raise NotDifferentiableError(f"loss: the output '{value.name}' is of type {value.dtype}, not a float")
    if shape is not None and any(size != 1 for size in shape):
        raise NotDifferentiableError(
            f"loss: the output '{value.name}' has shape {list(shape)}, and a loss has one element; give a "
            "function that reduces it"
        )
    return str(value.name)
