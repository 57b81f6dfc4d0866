"""The `Trainer`: a model, a loss and an optimizer, run on data by ONNX Runtime."""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.errors import CheckpointError, DivergedError, InputError
from onnx_grad.prepare import Model
from onnx_grad.recomputation import Recompute
from onnx_grad.registry import Quantization
from onnx_grad.runtime import read_model
from onnx_grad.saving import check_target
from onnx_grad.selection import Names
from onnx_grad.sessions import Provider
from onnx_grad.training import loss_scaling
from onnx_grad.training.buffers import device_of
from onnx_grad.training.checkpoints import Checkpoint, newest_checkpoint, save_checkpoint
from onnx_grad.training.data import Batches, Data, batches_of, chosen
from onnx_grad.training.diagnosis import origin
from onnx_grad.training.engine import Engine, Evaluator
from onnx_grad.training.evaluation_graph import evaluation_graph
from onnx_grad.training.fitting import Fitting, checkpoint_folder
from onnx_grad.training.initialization import initial_weights
from onnx_grad.training.lora import Adapter, LoRA, merged_weights, with_adapters, write_adapter
from onnx_grad.training.loss_graph import LossSpec
from onnx_grad.training.metrics import Comparison, Meter, MetricSpec
from onnx_grad.training.mixed_precision import Precision
from onnx_grad.training.modes import in_training_mode
from onnx_grad.training.optimizer_graph import OptimizerSpec, ParameterGroup, optimizer_of
from onnx_grad.training.parameters import listed
from onnx_grad.training.schedules import ScheduleSpec, schedule_of
from onnx_grad.training.settings import check_numbers, check_same
from onnx_grad.training.state import StepResult, TrainingState
from onnx_grad.training.stopping import EarlyStopping
from onnx_grad.training.training_graph import training_graph
from onnx_grad.training.weights import with_weights

Array: TypeAlias = np.ndarray[Any, Any]
PathLike: TypeAlias = "str | os.PathLike[str]"


class Trainer:
    """Trains a model on stock ONNX Runtime.

    ```python
    trainer = Trainer("model.onnx", "cross_entropy", "adamw", target="labels", learning_rate=1e-3)
    trainer.fit("train.npz", epochs=10, evaluation="test.npz", metrics=["accuracy"])
    trainer.export("tuned.onnx")
    ```

    Parameters, their gradients and the state of the optimizer stay on the device, in place: parameters exist
    once.

    Args:
        model: A path, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        loss: As for `training_model`.
        optimizer: The name of an optimizer, or an `Optimizer` with its options.
        parameters: As for `training_model`.
        frozen: As for `training_model`.
        output: As for `training_model`.
        target: As for `training_model`.
        learning_rate: The learning rate that a schedule multiplies.
        schedule: `"constant"`, `"cosine"`, `"linear"`, or a `Schedule` with its options.
        groups: Parameters that are trained differently.
        clip_norm: The norm of all gradients that they are scaled down to where it is larger.
        accumulation: Batches whose gradients are averaged for one update.
        average: The decay of an exponential moving average of the weights, if one is kept.
        training_mode: Whether `Dropout` and `BatchNormalization` are as in training.
        batch_size: The examples of a batch, where data is arrays.
        seed: What the order of examples and random masks are drawn by.
        lora: Low-rank adapters of weights: only they are trained, and what `parameters` names.
        precision: `"float16"` or `"bfloat16"` for products, where the provider has such kernels; parameters
            stay float32, and losses are scaled in float16 (`onnx_grad.training.mixed_precision`).
        quantization: As for `onnx_grad.vjp`.
        recompute: As for `onnx_grad.vjp`: less memory for larger batches.
        sizes: As for `onnx_grad.vjp`.
        providers: As for `GradientFunction`; `None` is the CPU.
        provider_options: As for `GradientFunction`.
        session_options: As for `GradientFunction`.

    Raises:
        OnnxGradError: As `training_model`, and where ONNX Runtime cannot run the model.
    """

    def __init__(
        self,
        model: Model,
        loss: LossSpec,
        optimizer: OptimizerSpec = "adamw",
        *,
        parameters: Names = None,
        frozen: Names = None,
        output: str | None = None,
        target: str | None = None,
        learning_rate: float = 1e-3,
        schedule: ScheduleSpec = "constant",
        groups: Sequence[ParameterGroup] = (),
        clip_norm: float | None = None,
        accumulation: int = 1,
        average: float | None = None,
        training_mode: bool = True,
        batch_size: int = 32,
        seed: int = 0,
        lora: LoRA | None = None,
        precision: Precision | None = None,
        quantization: Quantization | None = None,
        recompute: Recompute | None = None,
        sizes: Mapping[str, int] | None = None,
        providers: Sequence[Provider] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        session_options: Any = None,
    ) -> None:
        check_numbers(learning_rate, accumulation, batch_size, seed)
        self.learning_rate, self.batch_size, self.seed = float(learning_rate), batch_size, seed
        self.accumulation, self.clip_norm = accumulation, clip_norm
        self.optimizer, self.schedule = optimizer_of(optimizer), schedule_of(schedule)
        self._original = model
        self._loss, self._output, self._target = loss, output, target
        self._settings: dict[str, Any] = {
            "providers": providers,
            "provider_options": provider_options,
            "session_options": session_options,
        }
        self._lora = lora
        source, self._adapters = self._forward()
        halves = (value.dtype == ir.DataType.FLOAT16 for value in source.graph.initializers.values())
        self._is_scaled = precision == "float16" or any(halves)
        if lora is not None:
            parameters = [*listed(parameters), *(n for adapter in self._adapters for n in adapter.names)]
        training = training_graph(
            in_training_mode(source) if training_mode else source,
            loss,
            parameters,
            frozen=frozen,
            output=output,
            target=target,
            accumulate=accumulation > 1,
            scaled=self._is_scaled,
            precision=precision,
            quantization=quantization,
            recompute=recompute,
            sizes=sizes,
        )
        self._engine = Engine(
            training,
            _contents(source),
            self.optimizer,
            groups,
            clip_norm,
            average,
            device_of(providers),
            self._settings,
        )
        # Graphs have cycles: only so is the memory of the model's own weights given back.
        del source, training
        gc.collect()
        self._evaluator: Evaluator | None = None
        self._has_average = average is not None
        self._best: dict[str, Array] = {}
        self.state = TrainingState()
        self._fingerprint = self._settings_that_count(groups, average, training_mode, precision)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of what is trained."""
        return tuple(self._engine.notes.parameters)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the arrays that a batch has: inputs of the model, and targets."""
        return tuple(self._engine.notes.inputs)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A line for each epoch: its number, updates, loss, learning rate and evaluation."""
        return self.state.history

    def weights(self, average: bool = False) -> dict[str, Array]:
        """Copies of the parameters, or of their moving averages, and of the running statistics, by name."""
        self._check_average(average)
        return {name: array.copy() for name, array in self._engine.weights(average)}

    def default_metrics(self) -> list[str]:
        """What an evaluation may tell without being asked: the accuracy, where there are labels."""
        return ["accuracy"] if self._engine.notes.labels else []

    def reinitialize(self, seed: int | None = None) -> None:
        """Let the parameters be random, and the running statistics zeros and ones, to learn from nothing.

        Args:
            seed: What they are drawn by; that of the trainer by default.
        """
        if self._lora is not None:
            raise InputError("adapters belong to the weights that are there; reinitialize without lora=")
        held = [name for block in self._engine.blocks() for name in block.layout.places]
        graph = self._forward()[0].graph
        self._engine.load(initial_weights(graph, held, self.seed if seed is None else seed))

    def step(self, *batches: Mapping[str, Array], learning_rate: float | None = None) -> StepResult:
        """Make one update with the mean of the gradients of `batches`.

        Args:
            *batches: Arrays by the names of the inputs; `accumulation` of them.
            learning_rate: The learning rate of this update; that of the trainer by default.

        Raises:
            InputError: A batch does not fit the model.
            DivergedError: The loss or a gradient is not finite. Nothing was updated.
        """
        if not 1 <= len(batches) <= self.accumulation:
            raise InputError(
                f"step takes 1 to {self.accumulation} batches (accumulation={self.accumulation}), "
                f"not {len(batches)}"
            )
        engine, state = self._engine, self.state
        taken = [chosen(batch, engine.specs) for batch in batches]
        if self.accumulation > 1:
            engine.clear_gradients()
        total, loss_scale = 0.0, state.loss_scale if self._is_scaled else 1.0
        for number, batch in enumerate(taken):
            seed = self._mask_seed(state.batches + number)
            loss = engine.differentiate(batch, seed, loss_scale)
            if not math.isfinite(loss):
                raise self._diverged(batch, seed, f"the loss is {loss}")
            total += loss
        scale = 1.0 / (len(batches) * loss_scale)
        norm = engine.gradient_norm()
        rate = self.learning_rate if learning_rate is None else learning_rate
        is_finite = math.isfinite(norm)
        if is_finite:
            engine.update(rate, state.step - state.skipped, scale, norm)
            loss_scaling.after_update(state)
        elif self._is_scaled and loss_scaling.after_overflow(state):
            state.skipped += 1
        else:
            raise self._diverged(taken[-1], seed, f"the norm of the gradients is {norm}")
        state.step += 1
        state.batches += len(batches)
        return StepResult(total / len(batches), norm * scale if is_finite else None, rate)

    def fit(
        self,
        data: Data,
        epochs: int = 1,
        *,
        evaluation: Data | None = None,
        metrics: Sequence[MetricSpec] = (),
        early_stopping: EarlyStopping | None = None,
        checkpoint: PathLike | None = None,
        checkpoint_every: int | None = None,
        resume: bool = False,
        log: PathLike | None = None,
        show_progress: bool = False,
    ) -> list[dict[str, Any]]:
        """Train for `epochs` passes over `data`.

        Args:
            data: The path of an .npz file with arrays named after the inputs, such arrays by name, an
                iterable of batches that can be gone through again, or a function from the number of an epoch
                to one.
                Files and arrays are shuffled anew in each epoch.
            epochs: How many passes there are all told, those before a checkpoint included.
            evaluation: Data that the model is evaluated on after each epoch.
            metrics: What an evaluation tells besides the loss: names (`METRICS`), or functions of outputs and
                batch.
            early_stopping: When to stop before.
            checkpoint: A folder for checkpoints: after each epoch, and every `checkpoint_every` updates.
            checkpoint_every: See `checkpoint`.
            resume: Whether to go on from the newest checkpoint in that folder, if there is one. What follows
                is bit for bit what would have followed without the break.
            log: A file for a JSON line for each update and epoch.
            show_progress: Whether to show on stderr how far it is, where that is a terminal.

        Returns:
            The lines for each epoch.

        Raises:
            InputError: The data does not fit, or is empty.
            DivergedError: The loss or a gradient is not finite.
            CheckpointError: The checkpoint is damaged, or belongs to another training.
            OutputError: A checkpoint or the log cannot be written.
        """
        folder = checkpoint_folder(checkpoint, checkpoint_every, resume)
        training = batches_of(data, self._engine.specs, self.batch_size, self.seed)
        evaluated = None
        if evaluation is not None:
            evaluated = batches_of(evaluation, self._engine.specs, self.batch_size, None)
        if resume and folder is not None:
            self.load_checkpoint(folder)
        with Fitting(
            self,
            training,
            epochs,
            evaluate=None if evaluated is None else lambda: self._evaluated(evaluated, metrics),
            early_stopping=early_stopping,
            folder=folder,
            every=checkpoint_every,
            log=None if log is None else Path(log),
            show_progress=show_progress,
        ) as fitting:
            fitting.run()
        return self.history

    def keep_best(self) -> None:
        """Keep a copy of the weights, which are the best so far."""
        self._best = self.weights()

    def restore_best(self) -> None:
        """Go back to the weights that were kept last, if any."""
        if self._best:
            self._engine.set_weights(self._best)

    def evaluate(self, data: Data, metrics: Sequence[MetricSpec] = ()) -> dict[str, float]:
        """The mean loss over `data`, and metrics, of the model as it is in use.

        Args:
            data: As for `fit`.
            metrics: As for `fit`.
        """
        return self._evaluated(batches_of(data, self._engine.specs, self.batch_size, None), metrics)

    def export(self, path: PathLike, *, average: bool = False) -> None:
        """Write the original model with the new weights, and nothing else changed.

        Args:
            path: Where to write it.
            average: Whether to write the moving averages of the weights.

        Raises:
            OutputError: It cannot be written.
        """
        check_target(path)
        self._check_average(average)
        weights = dict(self._engine.weights(average))
        if self._adapters:
            weights = merged_weights(read_model(self._original).graph, self._adapters, weights)
        with_weights(self._original, weights, path)

    def export_adapter(self, path: PathLike, *, average: bool = False) -> None:
        """Write what is trained as an adapter in ONNX Runtime's own format.

        It fits a model that has these tensors as inputs, such as `lora_model` gives.

        Args:
            path: Where to write it.
            average: Whether to write the moving averages.

        Raises:
            OutputError: It cannot be written.
        """
        self._check_average(average)
        weights = dict(self._engine.weights(average))
        write_adapter(path, {name: weights[name] for name in self.parameters})

    def save_checkpoint(self, folder: PathLike) -> Path:
        """Write a checkpoint into `folder`, and remove all but the two newest there.

        Raises:
            OutputError: It cannot be written; earlier ones are as they were.
        """
        state = {"progress": asdict(self.state), "settings": self._fingerprint}
        tensors = dict(self._engine.state())
        tensors.update({f"best/{name}": array for name, array in self._best.items()})
        return save_checkpoint(Path(folder), self.state.step, state, tensors)

    def load_checkpoint(self, folder: PathLike) -> bool:
        """Go back to the newest checkpoint in `folder`; returns whether there is one.

        Raises:
            CheckpointError: It is damaged, or belongs to another training.
        """
        found = newest_checkpoint(Path(folder))
        self._restore(found)
        return found is not None

    def _evaluated(self, data: Batches, metrics: Sequence[MetricSpec]) -> dict[str, float]:
        if self._evaluator is None:
            notes = self._engine.notes
            forward, _ = self._forward()
            model = evaluation_graph(
                forward,
                notes.parameters,
                notes.statistics,
                self._loss,
                output=self._output,
                target=self._target,
            )
            self._evaluator = Evaluator(model, self._engine, self._settings)
        meter = Meter(metrics, self._comparison())
        empty = True
        for batch in data.epoch(0):
            loss, outputs = self._evaluator(batch)
            meter.add(loss, outputs, batch)
            empty = False
        if empty:
            raise InputError("evaluation: the data set is empty")
        return meter.means()

    def _comparison(self) -> Comparison | None:
        notes = self._engine.notes
        for output, target in notes.targets.items():
            axis, ignored = 1, None
            if target in notes.labels:
                ignored = notes.labels[target][1]
                axis = notes.axes.get(target, 1)
            return Comparison(output, target, axis, ignored)
        return None

    def _forward(self) -> tuple[ir.Model, list[Adapter]]:
        """The model with its adapters, if it is to have any."""
        source = read_model(self._original)
        return (source, []) if self._lora is None else with_adapters(source, self._lora, self.seed)

    def _restore(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            return
        check_same(checkpoint.path, checkpoint.state["settings"], self._fingerprint)
        try:
            self._engine.restore(checkpoint.tensors)
            self._best = {
                name.removeprefix("best/"): checkpoint.tensors[name]
                for name in checkpoint.tensors
                if name.startswith("best/")
            }
            self.state = TrainingState(**checkpoint.state["progress"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"the checkpoint '{checkpoint.path}' is incomplete: {error}") from error

    def _settings_that_count(
        self,
        groups: Sequence[ParameterGroup],
        average: float | None,
        training_mode: bool,
        precision: Precision | None,
    ) -> dict[str, Any]:
        """What has to be the same for a training to go on bit for bit, as JSON knows it."""
        shapes = {
            name: [str(block.layout.dtype.name), list(place.shape)]
            for block in self._engine.blocks()
            for name, place in block.layout.places.items()
        }
        return {
            "parameters": shapes,
            "optimizer": repr(self.optimizer),
            "groups": [repr(group) for group in groups],
            "learning rate": self.learning_rate,
            "schedule": repr(self.schedule),
            "batch size": self.batch_size,
            "seed": self.seed,
            "accumulation": self.accumulation,
            "clipping": self.clip_norm,
            "average": average,
            "training mode": training_mode,
            "precision": precision,
            "LoRA": None if self._lora is None else repr(self._lora),
        }

    def _mask_seed(self, batch: int) -> int:
        bits = np.random.SeedSequence([self.seed, batch]).generate_state(1, np.uint64)
        return int(bits.view(np.int64)[0])

    def _diverged(self, batch: Mapping[str, Array], seed: int, what: str) -> DivergedError:
        found = origin(self._engine.model, self._engine.feeds(batch, seed), self._settings)
        where = (
            f"it began where {found}" if found else "every tensor by itself is finite, their squares are not"
        )
        return DivergedError(
            f"update {self.state.step + 1}: {what}; {where}. Nothing was updated; try a smaller "
            "learning rate or clip_norm="
        )

    def _check_average(self, average: bool) -> None:
        if average and not self._has_average:
            raise InputError("no moving average of the weights was kept; train with average=0.999")


def _contents(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    return {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    }
