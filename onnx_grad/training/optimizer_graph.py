"""The transform `optimizer_model`: one update of all parameters, out of their gradients, as a graph.

Each output that is the new value of an input can be written over that input: whatever reads the old value is
computed before, and element by element (`onnx_grad.training.in_place` sees to that).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX, Builder
from onnx_grad.errors import InputError, ModelError, UnknownNameError
from onnx_grad.prepare import Model
from onnx_grad.prepare.lift import OLDEST_OPSET
from onnx_grad.recording import recording
from onnx_grad.runtime import read_model
from onnx_grad.saving import check_target
from onnx_grad.training.optimizers import OPTIMIZERS, Optimizer, Step
from onnx_grad.training.parameters import Patterns, check_patterns, fits, listed
from onnx_grad.training.training_graph import TrainingNotes, delivered
from onnx_grad.transforms.tracing import PathLike

NOTES = METADATA_PREFIX + "optimizer"

# What PyTorch's clip_grad_norm_ adds to the norm before it divides by it.
_CLIP_EPSILON = 1e-6


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained differently from the others.

    Attributes:
        parameters: Names or patterns of the parameters, as `"*.bias"`. The first group that fits counts.
        learning_rate_factor: What the learning rate is multiplied with.
        options: Other options of the optimizer: `{"weight_decay": 0.0}`.
    """

    parameters: Patterns
    learning_rate_factor: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict)


OptimizerSpec: TypeAlias = "str | Optimizer"


@dataclass
class OptimizerNotes:
    """What is what in an optimizer model, as it is noted in its metadata.

    Attributes:
        parameters: For each parameter, an input, the output with its new value.
        gradients: For each parameter, the input for its gradient.
        slots: For each input that is state of the optimizer, the output with its new value.
        initial: For each input that is state, the number that it is filled with at the start.
        slot_of: For each input that is state, its parameter, whose shape it has.
        learning_rate: The input for the learning rate, a float32 scalar.
        step: The input for the number of updates so far, an int64 scalar.
        step_updated: The output with that number plus one.
        gradient_norm: The input for the norm of all gradients, where they are clipped.
        gradient_scale: The input for what gradients are multiplied with first, where there is one.
        averages: For each parameter, the input that is its exponential moving average, where there is one.
    """

    parameters: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, str] = field(default_factory=dict)
    slots: dict[str, str] = field(default_factory=dict)
    initial: dict[str, float] = field(default_factory=dict)
    slot_of: dict[str, str] = field(default_factory=dict)
    learning_rate: str = "learning_rate"
    step: str = "step"
    step_updated: str = "step_updated"
    gradient_norm: str | None = None
    gradient_scale: str | None = None
    averages: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> OptimizerNotes:
        """The notes in the metadata of an optimizer model.

        Raises:
            ModelError: It has none.
        """
        text = model.metadata_props.get(NOTES)
        if text is None:
            raise ModelError(
                f"the model has no metadata '{NOTES}', so it was not made by "
                "onnx_grad.training.optimizer_model"
            )
        return cls(**json.loads(text))

    def note(self, model: ir.Model) -> None:
        """Write the notes into the metadata of `model`."""
        model.metadata_props[NOTES] = json.dumps(vars(self))


def optimizer_model(
    training: Model,
    optimizer: OptimizerSpec = "adamw",
    *,
    groups: Sequence[ParameterGroup] = (),
    clip_norm: float | None = None,
    average: float | None = None,
    scaled: bool = False,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """One update θ, g, state → θ′, state′ of all parameters of a training model, as an ONNX model.

    Args:
        training: What `training_model` made; its metadata names the parameters and gradients.
        optimizer: The name of an optimizer (`"adamw"`, see `OPTIMIZERS`), or an `Optimizer` with its options.
        groups: Parameters that are trained differently.
        clip_norm: The norm of all gradients together that they are scaled down to where it is larger, as by
            PyTorch's `clip_grad_norm_`. The norm is an input, which a training model with
            `gradient_norm=True` gives out.
        average: The decay d of an exponential moving average of the parameters, a = d·a + (1 − d)·θ′.
        scaled: Whether there is an input `gradient_scale` that all gradients are multiplied with first.
        save_as: Where to write the result as well.

    Returns:
        A model of the kind that was given. Its inputs are the parameters, their gradients `<name>_grad`, the
        state of the optimizer, `learning_rate` and `step` (the number of updates so far); its outputs the new
        parameters `<name>_updated`, the new state, and `step_updated`. The metadata
        `pkg.onnx_grad.optimizer` says what is what (`OptimizerNotes`).

    Raises:
        InputError: An option is out of its range.
        UnknownNameError: There is no such optimizer, or the pattern of a group fits no parameter.
        ModelError: `training` was not made by `training_model`.
    """
    if save_as is not None:
        check_target(save_as)
    source = read_model(training)
    shapes = {str(value.name): value for value in source.graph.inputs}
    notes = TrainingNotes.of(source)
    result = optimizer_graph(
        [(shapes[name], gradient) for name, gradient in notes.parameters.items()],
        optimizer,
        groups=groups,
        clip_norm=clip_norm,
        average=average,
        scaled=scaled,
    )
    return delivered(result, training, save_as)


def optimizer_graph(
    parameters: Sequence[tuple[ir.Value, str]],
    optimizer: OptimizerSpec,
    *,
    groups: Sequence[ParameterGroup] = (),
    clip_norm: float | None = None,
    average: float | None = None,
    scaled: bool = False,
    opset: int = OLDEST_OPSET,
    taken: Iterable[str] = (),
) -> ir.Model:
    """As `optimizer_model`, for parameters that are given with the names of their gradients."""
    _check(clip_norm, average)
    chosen = optimizer_of(optimizer)
    names = [str(value.name) for value, _ in parameters]
    check_groups(groups, names)
    writer = _Writer(opset, {*names, *(gradient for _, gradient in parameters), *taken})
    op = writer.op
    with recording(op), op.serving("step"):
        step = writer.step()
        scale = writer.gradient_scale(scaled, clip_norm)
        for value, gradient in parameters:
            own, factor = group_of(chosen, groups, str(value.name))
            rate = step.learning_rate if factor == 1.0 else op.Mul(step.learning_rate, float(factor))
            with op.serving(str(value.name)):
                writer.update(Step(op, rate, step.number), own, value, gradient, scale, average)
    return writer.model()


def _check(clip_norm: float | None, average: float | None) -> None:
    if clip_norm is not None and not clip_norm > 0.0:
        raise InputError(f"clip_norm={clip_norm} is not positive")
    if average is not None and not 0.0 <= average < 1.0:
        raise InputError(f"average={average} is no decay; give a number from 0 up to, but not, 1")


def check_groups(groups: Iterable[ParameterGroup], names: Sequence[str]) -> None:
    """See that each pattern of `groups` fits one of the parameters `names`.

    Raises:
        UnknownNameError: One fits none.
    """
    for group in groups:
        check_patterns("groups", listed(group.parameters), names)


def optimizer_of(optimizer: OptimizerSpec) -> Optimizer:
    """The optimizer that is meant by a name, or given.

    Raises:
        UnknownNameError: There is none of that name.
    """
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str):
        raise InputError(f"optimizer: {optimizer!r} is neither the name of an optimizer nor an Optimizer")
    if optimizer not in OPTIMIZERS:
        raise UnknownNameError.near("optimizer", optimizer, OPTIMIZERS, "optimizer")
    return OPTIMIZERS[optimizer]()


def group_of(optimizer: Optimizer, groups: Iterable[ParameterGroup], name: str) -> tuple[Optimizer, float]:
    """How the parameter `name` is updated, and what the learning rate is multiplied with for it."""
    for group in groups:
        if fits(name, listed(group.parameters)):
            return optimizer.replaced(group.options), group.learning_rate_factor
    return optimizer, 1.0


class _Writer:
    """Collects the inputs, nodes and outputs of an optimizer model."""

    def __init__(self, opset: int, taken: set[str]) -> None:
        self.op = Builder(opset, taken)
        self.notes = OptimizerNotes()
        self.inputs: list[ir.Value] = []
        self.outputs: list[ir.Value] = []

    def step(self) -> Step:
        """The inputs that all parameters share, in float64, and the count."""
        op, notes = self.op, self.notes
        rate = self._input("learning_rate", ir.DataType.FLOAT)
        count = self._input("step", ir.DataType.INT64)
        number = op.Add(count, 1)
        number.name = op.unique_name("step_updated")
        number.shape = ir.Shape([])
        self.outputs.append(number)
        notes.learning_rate, notes.step, notes.step_updated = str(rate.name), str(count.name), number.name
        return Step(op, op.Cast(rate, to=ir.DataType.DOUBLE), op.Cast(number, to=ir.DataType.DOUBLE))

    def gradient_scale(self, scaled: bool, clip_norm: float | None) -> ir.Value | None:
        """What gradients are multiplied with: the input for it, and the factor that clips them."""
        op, notes = self.op, self.notes
        scale: ir.Value | None = None
        if scaled:
            scale = self._input("gradient_scale", ir.DataType.FLOAT)
            notes.gradient_scale = str(scale.name)
        if clip_norm is None:
            return scale
        norm = self._input("gradient_norm", ir.DataType.FLOAT)
        notes.gradient_norm = str(norm.name)
        actual = norm if scale is None else op.Mul(norm, scale)
        factor = op.Div(op.scalar_like(clip_norm, actual), op.Add(actual, _CLIP_EPSILON))
        factor = op.Min(factor, op.scalar_like(1.0, factor))
        return factor if scale is None else op.Mul(scale, factor)

    def update(
        self,
        step: Step,
        optimizer: Optimizer,
        parameter: ir.Value,
        gradient: str,
        scale: ir.Value | None,
        average: float | None,
    ) -> None:
        """One parameter: its inputs, its update, and its outputs."""
        op, notes, name = self.op, self.notes, str(parameter.name)
        theta = ir.Value(name=name, shape=parameter.shape, type=parameter.type)
        g = ir.Value(name=gradient, shape=parameter.shape, type=parameter.type)
        self.inputs += [theta, g]
        slots = {slot: self._slot(theta, slot, start) for slot, start in optimizer.slots.items()}
        scaled = g if scale is None else op.Mul(g, op.CastLike(scale, g))
        wide = known.HALF_TYPES
        if theta.dtype in wide:
            raise InputError(
                f"parameter '{name}' is of type {theta.dtype}, in which small updates are lost; "
                "train with float32 master weights (precision=)"
            )
        moved, new_slots = optimizer.update(step, theta, scaled, slots)
        notes.gradients[name] = gradient
        notes.parameters[name] = self._output(moved, theta)
        for slot, value in new_slots.items():
            notes.slots[str(slots[slot].name)] = self._output(value, slots[slot])
        if average is not None:
            before = self._slot(theta, "average", 0.0)
            del notes.initial[str(before.name)]
            after = op.Add(before, op.Mul(op.Sub(moved, before), 1.0 - average))
            notes.slots[str(before.name)] = self._output(after, before)
            notes.averages[name] = str(before.name)

    def model(self) -> ir.Model:
        """All of it as a model, with its notes."""
        graph = ir.Graph(
            self.inputs,
            self.outputs,
            nodes=self.op.nodes,
            initializers=[value for value in self.op.initializers if value.uses()],
            opset_imports={"": self.op.opset},
            name="optimizer",
        )
        model = ir.Model(graph, ir_version=10, producer_name="onnx_grad")
        self.notes.note(model)
        return model

    def _slot(self, theta: ir.Value, slot: str, start: float) -> ir.Value:
        name = self.op.unique_name(f"{theta.name}_{slot}")
        value = ir.Value(name=name, shape=theta.shape, type=theta.type)
        self.inputs.append(value)
        self.notes.initial[name] = start
        self.notes.slot_of[name] = str(theta.name)
        return value

    def _output(self, value: ir.Value, before: ir.Value) -> str:
        if value.producer() is None or value in self.outputs:
            value = self.op.node("Identity", value, shared=False)
        value.name = self.op.unique_name(f"{before.name}_updated")
        value.shape, value.type = before.shape, before.type
        self.outputs.append(value)
        return value.name

    def _input(self, name: str, dtype: ir.DataType) -> ir.Value:
        value = ir.Value(name=self.op.unique_name(name), shape=ir.Shape([]), type=ir.TensorType(dtype))
        self.inputs.append(value)
        return value
