"""The transform `step_model`: forward, loss, gradients and update in one graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
import onnx_ir as ir

from onnx_grad.builder import taken_names
from onnx_grad.prepare import Model
from onnx_grad.prepare.lift import OLDEST_OPSET
from onnx_grad.registry import Quantization
from onnx_grad.saving import check_target
from onnx_grad.training.loss_graph import LossSpec
from onnx_grad.training.optimizer_graph import OptimizerNotes, OptimizerSpec, ParameterGroup, optimizer_graph
from onnx_grad.training.parameters import Patterns
from onnx_grad.training.training_graph import TrainingNotes, delivered, training_graph
from onnx_grad.transforms.tracing import PathLike


def step_model(
    model: Model,
    loss: LossSpec,
    optimizer: OptimizerSpec = "adamw",
    parameters: Patterns = None,
    *,
    frozen: Patterns = None,
    output: str | None = None,
    target: str | None = None,
    groups: Sequence[ParameterGroup] = (),
    clip_norm: float | None = None,
    average: float | None = None,
    quantization: Quantization | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """One step of a training as an ONNX model: θ, state, batch → loss, θ′, state′.

    A loop in any language is: run it, let each `<name>_updated` be the next `<name>`, repeat.

    Args:
        model: As for `training_model`.
        loss: As for `training_model`.
        optimizer: As for `optimizer_model`.
        parameters: As for `training_model`.
        frozen: As for `training_model`.
        output: As for `training_model`.
        target: As for `training_model`.
        groups: As for `optimizer_model`.
        clip_norm: As for `optimizer_model`; no input is needed for the norm.
        average: As for `optimizer_model`.
        quantization: As for `onnx_grad.vjp`.
        save_as: Where to write the result as well.

    Returns:
        A model of the kind that was given. Its inputs are those of `model`, the targets, the parameters, the
        running statistics of a model in training mode, the state of the optimizer, `learning_rate` and
        `step`; its outputs those of `model`, the loss, and `<name>_updated` of everything that a step
        changes. The metadata `pkg.onnx_grad.training` and `pkg.onnx_grad.optimizer` say what is what.

    Raises:
        OnnxGradError: As for `training_model` and `optimizer_model`.
    """
    if save_as is not None:
        check_target(save_as)
    training = training_graph(
        model,
        loss,
        parameters,
        frozen=frozen,
        output=output,
        target=target,
        gradient_norm=clip_norm is not None,
        quantization=quantization,
    )
    notes = TrainingNotes.of(training)
    inputs = {str(value.name): value for value in training.graph.inputs}
    update = optimizer_graph(
        [(inputs[name], gradient) for name, gradient in notes.parameters.items()],
        optimizer,
        groups=groups,
        clip_norm=clip_norm,
        average=average,
        opset=training.graph.opset_imports.get("", OLDEST_OPSET),
        taken=taken_names(training.graph),
    )
    _join(training.graph, update.graph, notes, OptimizerNotes.of(update))
    training.metadata_props.update(update.metadata_props)
    notes.note(training)
    return delivered(training, model, save_as)


def _join(graph: ir.Graph, update: ir.Graph, notes: TrainingNotes, names: OptimizerNotes) -> None:
    """Move the nodes of `update` into `graph`, reading the gradients and parameters there."""
    inputs = {value.name: value for value in graph.inputs}
    outputs = {value.name: value for value in graph.outputs}
    known = {names.gradients[name]: outputs[gradient] for name, gradient in notes.parameters.items()}
    known.update({name: inputs[name] for name in names.parameters})
    if names.gradient_norm is not None:
        known[names.gradient_norm] = outputs[notes.gradient_norm]
    added = [value for value in update.inputs if value.name not in known]
    for value in update.inputs:
        if value.name in known:
            value.replace_all_uses_with(known[value.name])
    results, constants, nodes = list(update.outputs), list(update.initializers.values()), list(update)
    update.inputs.clear()
    update.outputs.clear()
    update.initializers.clear()
    update.remove(nodes)
    hidden = {outputs[gradient] for gradient in notes.parameters.values()}
    kept = [value for value in graph.outputs if value not in hidden]
    graph.inputs.extend(added)
    for value in constants:
        graph.register_initializer(value)
    graph.extend(nodes)
    graph.outputs.clear()
    graph.outputs.extend([*kept, *results])
