"""The transform `evaluation_model`: forward and loss, with the parameters of a training as inputs."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx_ir as ir

from onnx_grad.prepare import Model
from onnx_grad.runtime import read_model
from onnx_grad.saving import check_target
from onnx_grad.training.loss_graph import LossSpec
from onnx_grad.training.parameters import make_inputs, make_master_inputs
from onnx_grad.training.training_graph import TrainingNotes, delivered, loss_graph
from onnx_grad.transforms.tracing import PathLike


def evaluation_model(
    model: Model,
    training: Model,
    loss: LossSpec,
    *,
    output: str | None = None,
    target: str | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """Forward and loss of a model as it is in use, without gradients, for the parameters of a training.

    Args:
        model: The forward model that `training` was made of, not in training mode.
        training: What `training_model` made; its metadata names the parameters.
        loss: As for `training_model`.
        output: As for `training_model`.
        target: As for `training_model`.
        save_as: Where to write the result as well.

    Returns:
        A model of the kind of `model`. Its inputs are those of `model`, the targets, and the parameters and
        running statistics of `training`; its outputs those of `model`, and the loss.
    """
    if save_as is not None:
        check_target(save_as)
    notes = TrainingNotes.of(read_model(training))
    result = evaluation_graph(model, notes.parameters, notes.statistics, loss, output=output, target=target)
    return delivered(result, model, save_as)


def evaluation_graph(
    model: Model,
    parameters: Iterable[str],
    statistics: Iterable[str],
    loss: LossSpec,
    *,
    output: str | None = None,
    target: str | None = None,
) -> ir.Model:
    """As `evaluation_model`, for the parameters and statistics of these names, always as an `ir.Model`."""
    forward, notes, _ = loss_graph(model, loss, output=output, target=target)
    initializers = forward.graph.initializers
    trained, updated = (
        [name for name in names if name in initializers] for names in (parameters, statistics)
    )
    make_master_inputs(forward.graph, trained)
    make_inputs(forward.graph, updated)
    notes.parameters = dict.fromkeys([*trained, *updated], "")
    notes.inputs = [name for name in notes.inputs if name not in notes.parameters]
    notes.note(forward)
    return forward
