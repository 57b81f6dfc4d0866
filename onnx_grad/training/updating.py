"""Running an optimizer on blocks of memory, in place.

An update is element by element, so it runs on flat slices: on the host on slices that fit into a processor's
cache with all that is computed between, so that a step reads and writes the main memory once; elsewhere on
the whole block at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.errors import OnnxGradError
from onnx_grad.sessions import create_session, onnxruntime
from onnx_grad.training.buffers import Block, Device, Layout, aligned, ort_value
from onnx_grad.training.in_place import overwritable
from onnx_grad.training.optimizer_graph import OptimizerNotes, optimizer_graph
from onnx_grad.training.optimizers import Optimizer

# Elements of a slice on the host: all that is computed from it fits into a common second-level cache.
_SLICE = 1 << 15

_PARAMETER = "parameter"


class Updater:
    """The parameters of one group: their values, gradients and state, and the session that updates them.

    Args:
        layout: Where the parameters are in each block.
        optimizer: How they are updated.
        factor: What the learning rate is multiplied with.
        device: Where the blocks are.
        clip_norm: As for `optimizer_model`.
        average: As for `optimizer_model`.
        settings: For `create_session`.
    """

    def __init__(
        self,
        layout: Layout,
        optimizer: Optimizer,
        factor: float,
        device: Device,
        clip_norm: float | None,
        average: float | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.layout, self.factor, self._device = layout, factor, device
        self.parameters = Block(layout, device)
        self.gradients = Block(layout, device)
        flat = ir.Value(name=_PARAMETER, shape=ir.Shape(["elements"]), type=ir.TensorType(layout.dtype))
        model = optimizer_graph(
            [(flat, "gradient")], optimizer, clip_norm=clip_norm, average=average, scaled=True
        )
        self._notes = OptimizerNotes.of(model)
        updates = {**self._notes.parameters, **self._notes.slots}
        if overwritable(model.graph, updates) != set(updates):
            raise OnnxGradError(f"{optimizer} cannot update its parameters in place; this is a defect of it")
        self.slots = {
            name.removeprefix(f"{_PARAMETER}_"): Block(layout, device, self._notes.initial.get(name, 0.0))
            for name in self._notes.slots
        }
        self._session = create_session(model, **for_slices(settings, device))
        self._scalars = {
            name: aligned([], np.dtype(kind))
            for name, kind in (
                ("learning_rate", "float32"),
                ("step", "int64"),
                ("gradient_scale", "float32"),
                ("gradient_norm", "float32"),
            )
        }
        self._discarded = ort_value(aligned([], np.dtype("int64")), Device())
        self._values = {name: ort_value(scalar, Device()) for name, scalar in self._scalars.items()}
        self._bindings = [self._binding(start, size) for start, size in slices(layout.size, device)]
        self._norm = _SquareSum(self.gradients, settings)

    @property
    def average(self) -> Block | None:
        """The moving averages of the parameters, where they are kept."""
        return self.slots.get("average")

    def start_average(self) -> None:
        """Let the moving averages start from the parameters."""
        if self.average is not None:
            self.average.load(dict(self.parameters.tensors()))

    def update(self, learning_rate: float, step: int, scale: float, norm: float) -> None:
        """Run one update of all parameters.

        Args:
            learning_rate: The learning rate, before the factor of the group.
            step: How many updates were made before.
            scale: What gradients are multiplied with.
            norm: The norm of all gradients of the model.
        """
        self._scalars["learning_rate"][...] = learning_rate * self.factor
        self._scalars["step"][...] = step
        self._scalars["gradient_scale"][...] = scale
        self._scalars["gradient_norm"][...] = norm
        run = self._session.run_with_iobinding
        for binding in self._bindings:
            run(binding)

    def square_sum(self) -> float:
        """Σ g² over the gradients."""
        return self._norm()

    def clear_gradients(self) -> None:
        """Let all gradients be zero."""
        self.gradients.clear()

    def _binding(self, start: int, size: int) -> Any:
        notes, binding = self._notes, self._session.io_binding()
        for name in (notes.learning_rate, notes.step, notes.gradient_scale, notes.gradient_norm):
            if name is not None:
                binding.bind_ortvalue_input(name, self._values[name])
        binding.bind_ortvalue_output(notes.step_updated, self._discarded)
        self.gradients.bind_slice(binding, "gradient", start, size)
        blocks = {_PARAMETER: self.parameters}
        blocks.update({f"{_PARAMETER}_{slot}": block for slot, block in self.slots.items()})
        for name, block in blocks.items():
            block.bind_slice(binding, name, start, size)
            updated = notes.parameters.get(name) or notes.slots[name]
            block.bind_slice(binding, updated, start, size, output=True)
        return binding


class _SquareSum:
    """Σ x² over a block: one number for each slice, which are added in float64."""

    def __init__(self, block: Block, settings: Mapping[str, Any]) -> None:
        dtype = block.layout.dtype
        parts = list(slices(block.layout.size, block.device))
        self._parts = aligned([len(parts)], dtype.numpy())
        value = ir.Value(name="x", shape=ir.Shape(["elements"]), type=ir.TensorType(dtype))
        self._session = create_session(_square_sum_model(value), **for_slices(settings, block.device))
        self._bindings = []
        for index, (start, size) in enumerate(parts):
            binding = self._session.io_binding()
            block.bind_slice(binding, "x", start, size)
            address = self._parts.ctypes.data + index * dtype.numpy().itemsize
            binding.bind_output("y", "cpu", 0, dtype.numpy(), [], address)
            self._bindings.append(binding)

    def __call__(self) -> float:
        for binding in self._bindings:
            self._session.run_with_iobinding(binding)
        return float(np.sum(self._parts, dtype=np.float64))


def _square_sum_model(x: ir.Value) -> onnx.ModelProto:
    node = ir.Node("", "ReduceSumSquare", [x], [ir.AttrInt64("keepdims", 0)], num_outputs=1)
    (y,) = node.outputs
    y.name, y.shape, y.type = "y", ir.Shape([]), x.type
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 18}, name="square_sum")
    return ir.to_proto(ir.Model(graph, ir_version=10))


def for_slices(settings: Mapping[str, Any], device: Device) -> Mapping[str, Any]:
    """Settings for a session that runs on slices: one of them is too small to be dealt out to threads."""
    if not device.is_host:
        return settings
    options = onnxruntime().SessionOptions()
    options.intra_op_num_threads = 1
    return {**settings, "session_options": options}


def slices(size: int, device: Device) -> Sequence[tuple[int, int]]:
    """Where the slices of a block of `size` elements start, and how long they are."""
    step = _SLICE if device.is_host else max(size, 1)
    return [(start, min(step, size - start)) for start in range(0, size, step)]
