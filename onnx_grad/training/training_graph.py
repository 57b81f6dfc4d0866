"""The transform `training_model`: forward, loss and gradients in one graph, its parameters inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import overload

import onnx
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import METADATA_PREFIX, Builder
from onnx_grad.errors import ModelError
from onnx_grad.prepare import Model, prepare
from onnx_grad.recomputation import Recompute
from onnx_grad.recording import recording
from onnx_grad.registry import Quantization
from onnx_grad.saving import check_target, save
from onnx_grad.training.loss_graph import LossSpec, append_loss
from onnx_grad.training.mixed_precision import precision_of, use_half_precision
from onnx_grad.training.parameters import Patterns, chosen, make_inputs, make_master_inputs, reaching
from onnx_grad.transforms import grad
from onnx_grad.transforms.tracing import PathLike, builder, expand_path, garbage_collector_paused

NOTES = METADATA_PREFIX + "training"


@dataclass
class TrainingNotes:
    """What is what in a training model, as it is noted in its metadata.

    Attributes:
        loss: The output that is the loss.
        parameters: For each parameter, an input, the output that is its gradient.
        statistics: For each running statistic, an input, the output with its next value.
        targets: For each output of the forward model that is compared, the input for its target.
        labels: For inputs of integer labels, how many classes there are (`None`: unknown) and which label is
            ignored.
        axes: For inputs of integer labels, the axis of the classes.
        inputs: The inputs that change with every batch: those of the model, and targets.
        outputs: The outputs of the forward model.
        seed: The input for the seed of random masks, if there is one.
        gradient_norm: The output with the norm of all gradients, if there is one.
        loss_scale: The input that the loss is multiplied with before it is differentiated, if there is one.
        gradient_sums: For each parameter, the input that its gradient is added to, if there is one.
    """

    loss: str
    parameters: dict[str, str]
    statistics: dict[str, str] = field(default_factory=dict)
    targets: dict[str, str] = field(default_factory=dict)
    labels: dict[str, tuple[int | None, int]] = field(default_factory=dict)
    axes: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    seed: str | None = None
    gradient_norm: str | None = None
    loss_scale: str | None = None
    gradient_sums: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: ir.Model) -> TrainingNotes:
        """The notes in the metadata of a training model.

        Raises:
            ModelError: It has none.
        """
        text = model.metadata_props.get(NOTES)
        if text is None:
            raise ModelError(
                f"the model has no metadata '{NOTES}', so it was not made by "
                "onnx_grad.training.training_model"
            )
        return cls(**json.loads(text))

    def note(self, model: ir.Model) -> None:
        """Write the notes into the metadata of `model`."""
        model.metadata_props[NOTES] = json.dumps(vars(self))


@overload
def training_model(
    model: ir.Model,
    loss: LossSpec,
    parameters: Patterns = None,
    *,
    frozen: Patterns = None,
    output: str | None = None,
    target: str | None = None,
    gradient_norm: bool = False,
    accumulate: bool = False,
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> ir.Model: ...
@overload
def training_model(
    model: PathLike | onnx.ModelProto,
    loss: LossSpec,
    parameters: Patterns = None,
    *,
    frozen: Patterns = None,
    output: str | None = None,
    target: str | None = None,
    gradient_norm: bool = False,
    accumulate: bool = False,
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto: ...
def training_model(
    model: Model,
    loss: LossSpec,
    parameters: Patterns = None,
    *,
    frozen: Patterns = None,
    output: str | None = None,
    target: str | None = None,
    gradient_norm: bool = False,
    accumulate: bool = False,
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
    save_as: PathLike | None = None,
) -> onnx.ModelProto | ir.Model:
    """Forward, loss and gradients in one graph: loss(θ) and ∂loss/∂θ for parameters θ that are inputs.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed. It is taken as it is:
            put it through `onnx_grad.training_mode` first for `Dropout` and `BatchNormalization` as in
            training.
        loss: The name of a loss (`"cross_entropy"`, see `LOSSES`) or of an output that already is the loss; a
            `Loss` with its options; a `Term`, or a list of them that are added up; a function
            `(op, tensors) -> value` that builds it; or an ONNX model whose inputs are named after tensors of
            the model, or are targets.
        parameters: Names or patterns (`"encoder/*"`) of the weights to train; `None` for every weight that
            matters for the loss.
        frozen: Names or patterns of those that are not trained after all.
        output: The output that `loss` compares, where the model has several.
        target: The name of the input for the target; `<output>_target` by default.
        gradient_norm: Whether to give out the norm of all gradients together, √Σ g².
        accumulate: Whether gradients are added to an input `<name>_grad_sum` of each parameter.
        quantization: As for `onnx_grad.vjp`.
        recompute: As for `onnx_grad.vjp`.
        sizes: As for `onnx_grad.vjp`.
        save_as: Where to write the result as well.

    Returns:
        A model of the kind that was given (a `ModelProto` for a path). Its inputs are those of `model`, the
        targets, and every parameter under its name; its outputs are those of `model`, the loss, and a
        gradient `<name>_grad` of each parameter. Running statistics of a model in training mode are inputs
        too. The metadata `pkg.onnx_grad.training` says what is what (`TrainingNotes`).

    Raises:
        UnknownNameError: A pattern fits no parameter, or there is no such loss or output.
        NotDifferentiableError: There is nothing to train, or the loss has no derivative.
        OnnxGradError: As for `onnx_grad.grad`.
    """
    if save_as is not None:
        check_target(save_as)
    with garbage_collector_paused():
        result = training_graph(
            model,
            loss,
            parameters,
            frozen=frozen,
            output=output,
            target=target,
            gradient_norm=gradient_norm,
            accumulate=accumulate,
            quantization=quantization,
            recompute=recompute,
            sizes=sizes,
        )
    return delivered(result, model, save_as)


def delivered(result: ir.Model, given: Model, save_as: PathLike | None) -> onnx.ModelProto | ir.Model:
    """`result` as the kind of model that was `given`, and written to `save_as` if it is named."""
    if save_as is not None:
        save(result, save_as)
    return result if isinstance(given, ir.Model) else ir.to_proto(result)


def training_graph(
    model: Model,
    loss: LossSpec,
    parameters: Patterns = None,
    *,
    frozen: Patterns = None,
    output: str | None = None,
    target: str | None = None,
    gradient_norm: bool = False,
    accumulate: bool = False,
    scaled: bool = False,
    precision: str | None = None,
    quantization: Quantization | None = None,
    recompute: Recompute | None = None,
    sizes: Mapping[str, int] | None = None,
) -> ir.Model:
    """As `training_model`, always as an `ir.Model`.

    With `scaled` there is an input `loss_scale` that the loss is multiplied with before it is differentiated.
    With `precision`, products are computed in that (`onnx_grad.training.mixed_precision`).
    """
    forward, notes, own = loss_graph(model, loss, output=output, target=target, precision=precision)
    names = chosen(forward.graph, own, parameters, frozen)
    of = _scale(forward.graph, notes) if scaled else notes.loss
    ready, _, path, _ = expand_path(prepare(forward), names, of, (), quantization)
    graph = ready.model.graph
    if parameters is None:
        names = reaching(path, graph, names)
    statistics = [name for name in notes.statistics if name in graph.initializers]
    make_master_inputs(graph, names)
    make_inputs(graph, statistics)
    result = grad(ready.model, names, of, quantization=quantization, recompute=recompute, sizes=sizes)
    gradients: dict[str, str] = json.loads(result.metadata_props[METADATA_PREFIX + "gradients"])
    notes.parameters = {name: gradients[name] for name in names}
    notes.statistics = {name: notes.statistics[name] for name in statistics}
    # In some files, initializers are inputs too.
    notes.inputs = [name for name in notes.inputs if name not in {*names, *statistics}]
    if accumulate:
        _accumulate(result.graph, notes)
    if gradient_norm:
        _give_norm(result.graph, notes)
    notes.note(result)
    return result


def loss_graph(
    model: Model,
    loss: LossSpec,
    *,
    output: str | None = None,
    target: str | None = None,
    precision: str | None = None,
) -> tuple[ir.Model, TrainingNotes, set[str]]:
    """The prepared `model` with `loss` appended, notes of it, and the names of its own initializers."""
    forward = prepare(model).model
    own = set(forward.graph.initializers)
    noted = {
        key: json.loads(forward.metadata_props.get(METADATA_PREFIX + key, "{}")) for key in _TRAINING_MODE
    }
    updated = noted["updated_statistics"]
    outputs = [str(v.name) for v in forward.graph.outputs if v.name not in updated.values()]
    seed = next(iter(noted["seed"].values()), None)
    if precision is not None:
        use_half_precision(forward, precision_of(precision))
    appended = append_loss(forward, loss, output, target)
    notes = TrainingNotes(
        loss=appended.loss,
        parameters={},
        statistics=updated,
        targets=appended.targets,
        labels={name: (labels.classes, labels.ignored) for name, labels in appended.labels.items()},
        axes={name: labels.axis for name, labels in appended.labels.items()},
        inputs=[str(value.name) for value in forward.graph.inputs if value.name != seed],
        outputs=outputs,
        seed=seed,
    )
    return forward, notes, own


_TRAINING_MODE = ("updated_statistics", "seed")


def _scale(graph: ir.Graph, notes: TrainingNotes) -> str:
    """Multiply the loss with an input `loss_scale`; returns the name of the product, an output too."""
    loss = next(value for value in graph.outputs if value.name == notes.loss)
    op = builder(graph)
    scale = ir.Value(
        name=op.unique_name("loss_scale"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    with op.serving(notes.loss):
        product = op.Mul(op.CastLike(loss, scale), scale)
    product.name = op.unique_name(f"{notes.loss}_scaled")
    graph.inputs.append(scale)
    graph.extend(op.nodes)
    graph.outputs.append(product)
    notes.loss_scale = str(scale.name)
    return product.name


def _accumulate(graph: ir.Graph, notes: TrainingNotes) -> None:
    """Let each gradient output be the sum of the gradient and an input `<name>_grad_sum`."""
    op = builder(graph)
    for name, output in notes.parameters.items():
        gradient = next(value for value in graph.outputs if value.name == output)
        position = list(graph.outputs).index(gradient)
        total = ir.Value(name=op.unique_name(f"{output}_sum"), shape=gradient.shape, type=gradient.type)
        with op.serving(name):
            summed = op.Add(total, gradient)
        gradient.name, summed.name = op.unique_name(f"{output}_of_batch"), output
        summed.shape = gradient.shape
        graph.inputs.append(total)
        graph.outputs[position] = summed
        notes.gradient_sums[name] = str(total.name)
    graph.extend(op.nodes)


def _give_norm(graph: ir.Graph, notes: TrainingNotes) -> None:
    """One more output: the norm of all gradients together."""
    op = builder(graph)
    gradients = {value.name: value for value in graph.outputs}
    with recording(op), op.serving("gradient_norm"):
        norm = global_norm(op, [gradients[name] for name in notes.parameters.values()])
    norm.name = op.unique_name("gradient_norm")
    norm.shape = ir.Shape([])
    for value in op.initializers:
        graph.register_initializer(value)
    graph.extend(op.nodes)
    graph.outputs.append(norm)
    notes.gradient_norm = norm.name


def global_norm(op: Builder, gradients: list[ir.Value]) -> ir.Value:
    """√Σ g² over all elements of all `gradients`, in float32 or their own wider type."""
    squares = [op.ReduceSumSquare(_wide(op, g), keepdims=0) for g in gradients]
    return op.Sqrt(op.Sum(*squares) if len(squares) > 1 else squares[0])


def _wide(op: Builder, value: ir.Value) -> ir.Value:
    return op.widened(value) if value.dtype in known.HALF_TYPES else value
