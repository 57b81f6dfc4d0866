"""The machinery of a training: sessions, and the blocks of memory that they read and write in place."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.errors import InputError
from onnx_grad.sessions import create_session
from onnx_grad.signature import InputSpec
from onnx_grad.training.buffers import Block, Device, Layout, aligned, ort_value
from onnx_grad.training.feeding import BatchCheck, Feeds, run
from onnx_grad.training.in_place import overwritable
from onnx_grad.training.optimizer_graph import ParameterGroup, check_groups, group_of
from onnx_grad.training.optimizers import Optimizer
from onnx_grad.training.training_graph import TrainingNotes
from onnx_grad.training.updating import Updater

Array: TypeAlias = np.ndarray[Any, Any]


class Engine:
    """Parameters, gradients, state and running statistics on a device, and what runs on them.

    Args:
        training: A training graph; its gradients are sums where it has inputs for them.
        values: The parameters and running statistics at the start, by name.
        optimizer: How parameters are updated.
        groups: Parameters that are updated differently.
        clip_norm: As for `optimizer_model`.
        average: As for `optimizer_model`.
        device: Where everything is.
        settings: For `create_session`.
    """

    def __init__(
        self,
        training: ir.Model,
        values: Mapping[str, ir.TensorProtocol],
        optimizer: Optimizer,
        groups: Sequence[ParameterGroup],
        clip_norm: float | None,
        average: float | None,
        device: Device,
        settings: Mapping[str, Any],
    ) -> None:
        self.notes, self.device, self._settings = TrainingNotes.of(training), device, settings
        self.model = training
        self.specs = {
            str(value.name): InputSpec.of(value)
            for value in training.graph.inputs
            if value.name in self.notes.inputs
        }
        inputs = {str(value.name): value for value in training.graph.inputs}
        check_groups(groups, list(self.notes.parameters))
        self.updaters = [
            Updater(layout, own, factor, device, clip_norm, average, settings)
            for layout, own, factor in _layouts(inputs, self.notes, optimizer, groups)
        ]
        # Two of each: a batch that gives nonsense does not spoil the statistics before it.
        self._statistics = [
            (Block(layout, device), Block(layout, device))
            for layout in by_type(inputs[name] for name in self.notes.statistics)
        ]
        self._turn = 0
        self.load(_Contents(values))
        self._check = BatchCheck(self.specs, self.notes)
        self._feeds = Feeds(device)
        self._session = create_session(training, **settings)
        self.loss = aligned([], np.dtype("float32"))
        self._scalars = {
            name: aligned([], np.dtype(kind))
            for name, kind in ((self.notes.seed, "int64"), (self.notes.loss_scale, "float32"))
            if name is not None
        }
        loss = next(value for value in training.graph.outputs if value.name == self.notes.loss)
        if loss.dtype is not None:
            self.loss = aligned(known.static_shape(loss) or (), loss.dtype.numpy())
        self._check_sums(training.graph)
        self._bindings = [self._binding(turn) for turn in range(2 if self._statistics else 1)]

    @property
    def statistics(self) -> list[Block]:
        """The running statistics."""
        return [pair[self._turn] for pair in self._statistics]

    def blocks(self) -> Iterator[Block]:
        """The blocks with what a model holds: parameters and running statistics."""
        yield from (updater.parameters for updater in self.updaters)
        yield from self.statistics

    def weights(self, average: bool = False) -> Iterator[tuple[str, Array]]:
        """The parameters, or their moving averages, and the running statistics by name."""
        for updater in self.updaters:
            yield from (updater.average if average and updater.average else updater.parameters).tensors()
        for block in self.statistics:
            yield from block.tensors()

    def state(self) -> Iterator[tuple[str, Array]]:
        """All that a checkpoint has to hold: `weight/<name>` and, for the optimizer, `<slot>/<name>`."""
        for name, array in self.weights():
            yield f"weight/{name}", array
        for updater in self.updaters:
            for slot, block in updater.slots.items():
                for name, array in block.tensors():
                    yield f"{slot}/{name}", array

    def load(self, weights: Mapping[str, Array]) -> None:
        """Set parameters, moving averages and running statistics."""
        self.set_weights(weights)
        for updater in self.updaters:
            updater.start_average()

    def set_weights(self, weights: Mapping[str, Array]) -> None:
        """Set parameters and running statistics, and leave moving averages as they are."""
        for block in self.blocks():
            block.load(weights)

    def restore(self, state: Mapping[str, Array]) -> None:
        """Set everything that `state` gives."""
        for block in self.blocks():
            block.load(_Prefixed(state, "weight"))
        for updater in self.updaters:
            for slot, block in updater.slots.items():
                block.load(_Prefixed(state, slot))

    def clear_gradients(self) -> None:
        """Let all sums of gradients be zero."""
        for updater in self.updaters:
            updater.gradients.clear()

    def differentiate(self, batch: Mapping[str, Array], seed: int, loss_scale: float = 1.0) -> float:
        """Compute the loss of a batch and the gradients, which stay where they are; returns the loss.

        Raises:
            InputError: The batch does not fit the model.
        """
        self._check(batch)
        for name, scalar in self._scalars.items():
            scalar[...] = seed if name == self.notes.seed else loss_scale
        binding = self._bindings[self._turn]
        for name, array in batch.items():
            self._feeds.bind(binding, name, array)
        run(self._session, binding, batch)
        loss = float(self.loss.reshape(()))
        if self._statistics and math.isfinite(loss):
            self._turn = 1 - self._turn
        return loss

    def feeds(self, batch: Mapping[str, Array], seed: int) -> dict[str, Array]:
        """All that the training graph is given for a batch."""
        feeds = {**dict(self.weights()), **batch}
        if self.notes.seed is not None:
            feeds[self.notes.seed] = np.asarray(seed, np.int64)
        if self.notes.loss_scale is not None:
            feeds[self.notes.loss_scale] = self._scalars[self.notes.loss_scale]
        gradients = {n: a for updater in self.updaters for n, a in updater.gradients.tensors()}
        return {**feeds, **{total: gradients[n] for n, total in self.notes.gradient_sums.items()}}

    def gradient_norm(self) -> float:
        """The norm of all gradients together."""
        return math.sqrt(sum(updater.square_sum() for updater in self.updaters))

    def update(self, learning_rate: float, step: int, scale: float, norm: float) -> None:
        """Update all parameters; see `Updater.update`."""
        for updater in self.updaters:
            updater.update(learning_rate, step, scale, norm)

    def _check_sums(self, graph: ir.Graph) -> None:
        sums = {total: self.notes.parameters[name] for name, total in self.notes.gradient_sums.items()}
        if overwritable(graph, sums) != set(sums):
            raise InputError("gradients cannot be accumulated in place; train with accumulation=1")

    def _binding(self, turn: int) -> Any:
        """All but the batch bound, for running statistics that are in the first or second of their blocks."""
        notes, binding = self.notes, self._session.io_binding()
        for updater in self.updaters:
            for name in updater.layout.places:
                updater.parameters.bind_input(binding, name, name)
                updater.gradients.bind_output(binding, notes.parameters[name], name)
                if name in notes.gradient_sums:
                    updater.gradients.bind_input(binding, notes.gradient_sums[name], name)
        for pair in self._statistics:
            for name in pair[turn].layout.places:
                pair[turn].bind_input(binding, name, name)
                pair[1 - turn].bind_output(binding, notes.statistics[name], name)
        for name, scalar in self._scalars.items():
            binding.bind_ortvalue_input(name, ort_value(scalar, Device()))
        binding.bind_ortvalue_output(notes.loss, ort_value(self.loss, Device()))
        return binding


class _Contents(Mapping[str, Array]):
    """The content of tensors by name, mapped into memory one at a time where they lie in files."""

    def __init__(self, tensors: Mapping[str, ir.TensorProtocol]) -> None:
        self._tensors = tensors
        self._last: ir.TensorProtocol | None = None

    def __getitem__(self, name: str) -> Array:
        if isinstance(self._last, ir.ExternalTensor):
            # Where somebody else still reads it, it stays.
            with contextlib.suppress(BufferError):
                self._last.release()
        self._last = self._tensors[name]
        return np.asarray(self._last.numpy())

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


class _Prefixed(Mapping[str, Array]):
    """The tensors of one kind in a state."""

    def __init__(self, state: Mapping[str, Array], prefix: str) -> None:
        self._state, self._prefix = state, prefix

    def __getitem__(self, name: str) -> Array:
        return self._state[f"{self._prefix}/{name}"]

    def __iter__(self) -> Iterator[str]:
        start = f"{self._prefix}/"
        return (name.removeprefix(start) for name in self._state if name.startswith(start))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Evaluator:
    """Forward and loss on the weights of an engine.

    Args:
        model: An evaluation graph.
        engine: Whose weights are read where they are.
        settings: For `create_session`.
    """

    def __init__(self, model: ir.Model, engine: Engine, settings: Mapping[str, Any]) -> None:
        self.notes = TrainingNotes.of(model)
        self._session = create_session(model, **settings)
        self._binding = self._session.io_binding()
        self._feeds = Feeds(engine.device)
        self._engine = engine
        self._check = BatchCheck(engine.specs, self.notes)
        self._outputs = [self.notes.loss, *(name for name in self.notes.outputs if name != self.notes.loss)]

    def __call__(self, batch: Mapping[str, Array]) -> tuple[float, dict[str, Array]]:
        """The loss of a batch, and the outputs of the model."""
        self._check(batch)
        for name, array in batch.items():
            self._feeds.bind(self._binding, name, array)
        for block in self._engine.blocks():
            for name in block.layout.places:
                if name in self.notes.parameters:
                    block.bind_input(self._binding, name, name)
        # Outputs of a batch of another size would not fit.
        self._binding.clear_binding_outputs()
        for name in self._outputs:
            self._binding.bind_output(name, "cpu")
        run(self._session, self._binding, batch)
        values = dict(zip(self._outputs, self._binding.get_outputs(), strict=True))
        loss = float(values[self.notes.loss].numpy().reshape(()))
        return loss, {name: values[name].numpy() for name in self.notes.outputs}


def by_type(values: Iterator[ir.Value]) -> list[Layout]:
    """A layout for the tensors of each element type."""
    shapes: dict[ir.DataType, dict[str, tuple[int, ...]]] = {}
    for value in values:
        if value.dtype is not None:
            shapes.setdefault(value.dtype, {})[str(value.name)] = known.static_shape(value) or ()
    return [Layout(dtype, of_type) for dtype, of_type in shapes.items()]


def _layouts(
    inputs: Mapping[str, ir.Value],
    notes: TrainingNotes,
    optimizer: Optimizer,
    groups: Sequence[ParameterGroup],
) -> Iterator[tuple[Layout, Optimizer, float]]:
    """A layout for the parameters of each element type and group, with how they are updated."""
    members: dict[tuple[Optimizer, float], list[ir.Value]] = {}
    for name in notes.parameters:
        members.setdefault(group_of(optimizer, groups, name), []).append(inputs[name])
    for (own, factor), values in members.items():
        for layout in by_type(iter(values)):
            yield layout, own, factor
