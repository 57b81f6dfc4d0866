"""Batches on their way to a session: checked, brought to the device, run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from onnx_grad.errors import InputError
from onnx_grad.sessions import onnxruntime, runtime_errors, runtime_message
from onnx_grad.signature import Bound, InputSpec, dtype_of
from onnx_grad.training.buffers import Device, aligned, ort_value
from onnx_grad.training.training_graph import TrainingNotes

Array: TypeAlias = np.ndarray[Any, Any]


class Feeds:
    """Brings batches to a device, always into the same memory as long as their shapes stay the same."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: dict[tuple[str, tuple[int, ...]], tuple[Array, Any]] = {}
        self._bound: dict[tuple[Any, str], Any] = {}

    def bind(self, binding: Any, name: str, array: Array) -> None:
        """Let the session input `name` read `array`."""
        key = name, array.shape
        if key not in self._kept:
            # Two shapes of each input: full batches, and the last one of an epoch.
            for old in [old for old in self._kept if old[0] == name][:-1]:
                del self._kept[old]
            host = aligned(array.shape, array.dtype)
            self._kept[key] = host, _value(host, self._device)
        host, value = self._kept[key]
        np.copyto(host, array)
        if not self._device.is_host:
            value.update_inplace(host)
        if self._bound.get((binding, name)) is not value:
            binding.bind_ortvalue_input(name, value)
            self._bound[binding, name] = value


def _value(array: Array, device: Device) -> Any:
    if array.dtype.isbuiltin == 1:
        return ort_value(array, device)
    bits = array.view(f"u{array.dtype.itemsize}")
    if not device.is_host:
        raise InputError(f"inputs of {array.dtype} are not supported on '{device.kind}'")
    return onnxruntime().OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(dtype_of(array)))


def run(session: Any, binding: Any, batch: Mapping[str, Array]) -> None:
    """Run a session on what is bound.

    Raises:
        InputError: ONNX Runtime cannot evaluate the model with this batch.
    """
    try:
        session.run_with_iobinding(binding)
    except runtime_errors() as error:
        given = ", ".join(f"{name}: {array.dtype}{list(array.shape)}" for name, array in batch.items())
        raise InputError(
            f"ONNX Runtime cannot evaluate the model with this batch: {runtime_message(error)} "
            f"(given: {given})"
        ) from error


class BatchCheck:
    """Sees that batches fit the inputs, and that their labels are classes.

    Args:
        specs: What the graph expects of its inputs.
        notes: What is what in the graph.
    """

    def __init__(self, specs: Mapping[str, InputSpec], notes: TrainingNotes) -> None:
        self._specs, self._notes = specs, notes
        self._last: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []

    def __call__(self, batch: Mapping[str, Array]) -> None:
        """Check a batch.

        Raises:
            InputError: It does not fit.
        """
        form = [(name, array.dtype, array.shape) for name, array in batch.items()]
        # Most batches are of the same form as the one before.
        if form != self._last:
            self._check_form(batch)
            self._last = form
        self._check_labels(batch)

    def _check_form(self, batch: Mapping[str, Array]) -> None:
        missing = [name for name, spec in self._specs.items() if spec.required and name not in batch]
        if missing:
            raise InputError(f"data: the batch has no array for {', '.join(map(repr, missing))}")
        bound: dict[str, Bound] = {}
        for name, spec in self._specs.items():
            if name in batch:
                spec.check(dtype_of(batch[name]), batch[name].shape, bound)

    def _check_labels(self, batch: Mapping[str, Array]) -> None:
        for name, (classes, ignored) in self._notes.labels.items():
            labels = batch[name]
            wrong = (labels < 0) | (labels >= classes if classes is not None else False)
            wrong &= labels != ignored
            if wrong.any():
                where = tuple(map(int, np.argwhere(wrong)[0]))
                allowed = f"0 to {classes - 1}" if classes is not None else "0 or more"
                raise InputError(
                    f"data: '{name}' holds the label {labels[where]} (at {list(where)} of the batch), and "
                    f"labels are {allowed}, or {ignored} for what does not count"
                )
