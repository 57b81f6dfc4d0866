"""Tensors on the device: many named ones side by side in one block of memory.

A parameter, its gradient and its state lie at the same place of blocks of the same layout, so that an
optimizer, which works element by element, need not know where one parameter ends and the next begins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnx_grad.sessions import onnxruntime

Array: TypeAlias = np.ndarray[Any, Any]

# Kernels may sum in another order where data is not aligned, and results are to be the same in every run.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Device:
    """Where tensors live, as ONNX Runtime names it.

    Attributes:
        kind: `"cpu"` or `"cuda"`.
        number: Which of them.
    """

    kind: str = "cpu"
    number: int = 0

    @property
    def is_host(self) -> bool:
        """Whether it is the memory of the process."""
        return self.kind == "cpu"


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a block: its first element, and its shape."""

    start: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its elements."""
        return math.prod(self.shape)


class Layout:
    """The places of named tensors of one type in a block.

    Args:
        dtype: Their element type.
        shapes: Their shapes by name.
    """

    def __init__(self, dtype: ir.DataType, shapes: Mapping[str, Sequence[int]]) -> None:
        self.dtype = dtype
        self.places: dict[str, Place] = {}
        self.size = 0
        step = _ALIGNMENT // dtype.numpy().itemsize
        for name, shape in shapes.items():
            place = Place(self.size, tuple(shape))
            self.places[name] = place
            self.size += -(-max(place.size, 1) // step) * step


class Block:
    """One block of memory on a device, laid out for named tensors.

    Args:
        layout: Where the tensors are.
        device: Where the block is.
        fill: What every element is at first.
    """

    def __init__(self, layout: Layout, device: Device, fill: float = 0.0) -> None:
        self.layout, self.device = layout, device
        self._host = aligned([layout.size], layout.dtype.numpy())
        if fill:
            self._host.fill(fill)
        self.value = ort_value(self._host, device)
        if not device.is_host:
            del self._host

    def address(self, start: int = 0) -> int:
        """The address of element `start`."""
        return int(self.value.data_ptr()) + start * self.layout.dtype.numpy().itemsize

    def bind_input(self, binding: Any, name: str, tensor: str) -> None:
        """Let the session input `name` read `tensor` where it lies."""
        binding.bind_input(name, *self._bound(tensor))

    def bind_output(self, binding: Any, name: str, tensor: str) -> None:
        """Let the session output `name` be written to where `tensor` lies."""
        binding.bind_output(name, *self._bound(tensor))

    def _bound(self, tensor: str) -> tuple[str, int, Any, list[int], int]:
        place = self.layout.places[tensor]
        dtype = self.layout.dtype.numpy()
        return self.device.kind, self.device.number, dtype, list(place.shape), self.address(place.start)

    def bind_slice(self, binding: Any, name: str, start: int, size: int, output: bool = False) -> None:
        """Bind `size` elements from `start` on, as a vector."""
        bind = binding.bind_output if output else binding.bind_input
        dtype = self.layout.dtype.numpy()
        bind(name, self.device.kind, self.device.number, dtype, [size], self.address(start))

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """The tensors by name: views of the memory where it is the host's, copies where it is not."""
        flat = self._host if self.device.is_host else self.value.numpy()
        for name, place in self.layout.places.items():
            yield name, flat[place.start : place.start + place.size].reshape(place.shape)

    def load(self, tensors: Mapping[str, Array]) -> None:
        """Fill the block with `tensors`, which are all of its own."""
        flat = self._host if self.device.is_host else self.value.numpy()
        for name, place in self.layout.places.items():
            flat[place.start : place.start + place.size] = np.asarray(tensors[name]).reshape(-1)
        if not self.device.is_host:
            self.value.update_inplace(flat)

    def clear(self) -> None:
        """Let every element be zero."""
        if self.device.is_host:
            self._host.fill(0)
        else:
            self.value.update_inplace(np.zeros(self.layout.size, self.layout.dtype.numpy()))


def aligned(shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """An array of zeros that starts at a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def ort_value(array: Array, device: Device) -> Any:
    """An `OrtValue` over the memory of `array`, or a copy of it on a device that is not the host."""
    return onnxruntime().OrtValue.ortvalue_from_numpy(array, device.kind, device.number)


def device_of(providers: Sequence[Any] | None) -> Device:
    """The device that the first provider works on."""
    first = providers[0] if providers else "CPUExecutionProvider"
    name, options = (first, {}) if isinstance(first, str) else first
    if name in ("CUDAExecutionProvider", "TensorrtExecutionProvider"):
        return Device("cuda", int(options.get("device_id", 0)))
    return Device()
