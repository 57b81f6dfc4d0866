"""A folder with all that a training needs in any language that ONNX Runtime speaks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.errors import InputError, ModelError, OutputError
from onnx_grad.prepare import Model
from onnx_grad.registry import Quantization
from onnx_grad.runtime import read_model
from onnx_grad.saving import save, write_whole
from onnx_grad.signature import InputSpec, dtype_name
from onnx_grad.training.checkpoints import write_tensors
from onnx_grad.training.evaluation_graph import evaluation_graph
from onnx_grad.training.initialization import initial_weights
from onnx_grad.training.loss_graph import LossSpec
from onnx_grad.training.modes import in_training_mode
from onnx_grad.training.optimizer_graph import OptimizerNotes, OptimizerSpec, ParameterGroup, optimizer_graph
from onnx_grad.training.parameters import Patterns
from onnx_grad.training.step_graph import step_model
from onnx_grad.training.training_graph import TrainingNotes, training_graph

Array: TypeAlias = np.ndarray[Any, Any]

FORMAT = "onnx_grad artifacts 1"
DESCRIPTION = "artifacts.json"
PARAMETERS = "parameters.safetensors"


@dataclass(frozen=True)
class Artifacts:
    """What is in a folder of artifacts.

    Attributes:
        folder: The folder.
        description: The content of `artifacts.json`.
    """

    folder: Path
    description: dict[str, Any]


def write_artifacts(
    folder: str | os.PathLike[str],
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
    training_mode: bool = True,
    reinitialize: int | None = None,
    quantization: Quantization | None = None,
) -> Artifacts:
    """Write the models of a training, its parameters and a description into a folder.

    - `training.onnx`: forward, loss and gradients (`training_model`).
    - `optimizer.onnx`: one update out of gradients (`optimizer_model`).
    - `step.onnx`: both in one (`step_model`): run it, let `<name>_updated` be the next `<name>`, repeat.
    - `evaluation.onnx`: forward and loss of the model as it is in use (`evaluation_model`).
    - `parameters.safetensors`: parameters and running statistics at the start.
    - `artifacts.json`: which input is what, and which output is the next value of which input.

    Args:
        folder: Where to write; it is made if need be.
        model: As for `training_model`.
        loss: As for `training_model`.
        optimizer: As for `optimizer_model`.
        parameters: As for `training_model`.
        frozen: As for `training_model`.
        output: As for `training_model`.
        target: As for `training_model`.
        groups: As for `optimizer_model`.
        clip_norm: As for `optimizer_model`.
        average: As for `optimizer_model`.
        training_mode: Whether `Dropout` and `BatchNormalization` are as in training.
        reinitialize: A seed for fresh random parameters in the place of the model's.
        quantization: As for `onnx_grad.vjp`.

    Raises:
        OutputError: The folder cannot be written.
        OnnxGradError: As for `training_model` and `optimizer_model`.
    """
    target_folder = Path(folder)
    source = read_model(model)
    trained = in_training_mode(source) if training_mode else source
    common: dict[str, Any] = {"output": output, "target": target}
    training = training_graph(
        trained,
        loss,
        parameters,
        frozen=frozen,
        gradient_norm=clip_norm is not None,
        quantization=quantization,
        **common,
    )
    notes = TrainingNotes.of(training)
    inputs = {str(value.name): value for value in training.graph.inputs}
    changes: dict[str, Any] = {"groups": groups, "clip_norm": clip_norm, "average": average}
    update = optimizer_graph([(inputs[n], g) for n, g in notes.parameters.items()], optimizer, **changes)
    step = step_model(
        trained, loss, optimizer, parameters, frozen=frozen, quantization=quantization, **common, **changes
    )
    held = [*notes.parameters, *notes.statistics]
    evaluation = evaluation_graph(source, notes.parameters, notes.statistics, loss, **common)
    weights: Mapping[str, Array] = {name: _content(source, name) for name in held}
    if reinitialize is not None:
        weights = initial_weights(source.graph, held, reinitialize)
    description = _described(training, update, held)
    models = {"training": training, "optimizer": update, "step": step, "evaluation": evaluation}
    try:
        target_folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write into '{folder}': {error.strerror or error}") from error
    for name, made in models.items():
        save(made, target_folder / f"{name}.onnx")
    write_tensors(target_folder / PARAMETERS, weights)
    text = json.dumps(description, indent=1).encode()
    write_whole(target_folder / DESCRIPTION, lambda file: file.write(text))
    return Artifacts(target_folder, description)


def read_artifacts(folder: str | os.PathLike[str]) -> Artifacts:
    """The description of a folder that `write_artifacts` wrote.

    Raises:
        InputError: There is none, or it is of another kind.
    """
    path = Path(folder) / DESCRIPTION
    try:
        description = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"cannot read '{path}': {error.strerror or error}; write the folder with: onnx-grad artifacts"
        ) from error
    except ValueError as error:
        raise InputError(f"'{path}' is no JSON: {error}") from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise InputError(f"'{path}' is not the description of artifacts of this version ('{FORMAT}')")
    return Artifacts(Path(folder), description)


def _described(training: ir.Model, update: ir.Model, held: Sequence[str]) -> dict[str, Any]:
    notes, names = TrainingNotes.of(training), OptimizerNotes.of(update)
    specs = {str(value.name): InputSpec.of(value) for value in training.graph.inputs}
    return {
        "format": FORMAT,
        "models": {name: f"{name}.onnx" for name in ("training", "optimizer", "step", "evaluation")},
        "tensors": PARAMETERS,
        "batch": {name: _spec(specs[name]) for name in notes.inputs},
        "targets": notes.targets,
        "outputs": notes.outputs,
        "loss": notes.loss,
        "parameters": {name: _spec(specs[name]) for name in held if name in notes.parameters},
        "gradients": notes.parameters,
        "statistics": notes.statistics,
        "state": {
            name: {"parameter": parameter, "start": names.initial.get(name, "parameter")}
            for name, parameter in names.slot_of.items()
        },
        "updates": {**names.parameters, **names.slots, names.step: names.step_updated},
        "averages": names.averages,
        "learning_rate": names.learning_rate,
        "step": names.step,
        "gradient_norm": names.gradient_norm,
        "seed": notes.seed,
    }


def _spec(spec: InputSpec) -> dict[str, Any]:
    return {"type": None if spec.dtype is None else dtype_name(spec.dtype), "shape": spec.shape}


def _content(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    if tensor is None:
        raise ModelError(f"initializer '{name}' has no data")
    return tensor.numpy()
