"""Convolution weights, and what depends on their shape at run time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.windows import Sizes, Windows


@dataclass(frozen=True)
class Filters:
    """Weights [M, C/group, kernel…] and the windows they look through.

    Attributes:
        w: The weights.
        windows: The windows.
        group: Number of groups into which both kinds of channels are divided.
    """

    w: ir.Value
    windows: Windows
    group: int

    @property
    def channels(self) -> tuple[int, int] | None:
        """M and C, each per group, when both are known integers."""
        dims = known.dimensions(self.w)
        if dims is None or not isinstance(dims[0], int) or not isinstance(dims[1], int):
            return None
        return dims[0] // self.group, dims[1]

    @property
    def are_constant(self) -> bool:
        """Whether ONNX Runtime knows the weights when a session is created, and can arrange them then."""
        return is_constant(self.w)


# What exporters write between a constant and where it is read.
_FOLDED = frozenset("Constant ConstantOfShape Identity Transpose Reshape Squeeze Unsqueeze Cast".split())


def is_constant(value: ir.Value) -> bool:
    """Whether `value` is an initializer, or computed from such by operators that are folded."""
    if value.const_value is not None:
        return not value.is_graph_input()
    producer = value.producer()
    if producer is None or producer.domain != "" or producer.op_type not in _FOLDED:
        return False
    return all(operand is None or is_constant(operand) for operand in producer.inputs)


def padded_image(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """The image with the padding that depends on sizes at run time."""
    begin, end = run_time_padding(op, filters, image, response)
    return op.Pad(image, op.Concat([0, 0], begin, [0, 0], end, axis=0))


def run_time_padding(
    op: Builder, filters: Filters, image: ir.Value, response: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """The padding before and behind the image as 1-D tensors, when it depends on sizes at run time.

    Its total is what the windows reach over beyond the image, (O − 1)·stride + extent + spare − I, if any.
    """
    windows = filters.windows
    reach = _scaled(op, op.Shape(response, start=2) - 1, windows.strides)
    reach = reach + (
        _scaled(op, op.Shape(filters.w, start=2) - 1, windows.dilations) + 1
        if windows.extent is None
        else op.constant(windows.extent, ir.DataType.INT64)
    )
    if any(windows.spare):
        reach = reach + op.constant(windows.spare, ir.DataType.INT64)
    total = op.Max(reach - op.Shape(image, start=2), 0)
    begin = (total + 1) / 2 if windows.odd_at_begin else total / 2
    return begin, total - begin


def _scaled(op: Builder, sizes: ir.Value, factors: Sizes | None) -> ir.Value:
    if factors is None or all(f == 1 for f in factors):
        return sizes
    return sizes * op.constant(factors, ir.DataType.INT64)


def joined_shape(op: Builder, *parts: Sequence[int] | ir.Value) -> Sequence[int] | ir.Value:
    """A shape put together of known pieces and 1-D tensors; known when all pieces are."""
    if not any(isinstance(part, ir.Value) for part in parts):
        return [size for part in parts if not isinstance(part, ir.Value) for size in part]
    return op.Concat(*(part for part in parts if isinstance(part, ir.Value) or part), axis=0)
