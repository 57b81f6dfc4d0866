"""Pooling windows that onnx counts otherwise than ONNX Runtime.

With `ceil_mode`, the last window may reach beyond the padding behind the image, but must not start in it.
Before opset 22 onnx's inference counts such windows all the same, and ONNX Runtime believes the inferred
shape where it optimizes a graph. Here the nodes concerned get attributes that mean the same to both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx

from onnx_grad.prepare.expand import types_of
from onnx_grad.prepare.nodes import auto_pad, integer, integers, set_attributes, spatial_sizes
from onnx_grad.prepare.validate import opset_of

_POOLING = frozenset({"AveragePool", "LpPool", "MaxPool"})

# From here on, onnx counts as ONNX Runtime does.
_RIGHT_SINCE = 22


@dataclass(frozen=True)
class _Axis:
    """A spatial axis: its length, the padding on both sides, and the windows' stride, taps and dilation."""

    length: int
    begin: int
    end: int
    stride: int
    taps: int
    dilation: int

    @property
    def extent(self) -> int:
        """Positions from the first to the last tap of a window."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def count(self) -> int:
        """How many windows there are in `ceil_mode`."""
        return min(self.inferred(self.end, ceil_mode=True), (self.length + self.begin - 1) // self.stride + 1)

    @property
    def snug_end(self) -> int:
        """The padding behind the image with which the last window ends where the padding does."""
        return (self.count - 1) * self.stride + self.extent - self.length - self.begin

    def inferred(self, end: int, *, ceil_mode: bool) -> int:
        """How many windows onnx counts with `end` positions behind the image."""
        steps = (self.length + self.begin + end - self.extent) / self.stride
        return (math.ceil(steps) if ceil_mode else math.trunc(steps)) + 1

    def agrees(self, end: int, *, ceil_mode: bool) -> bool:
        """Whether this padding is allowed, and onnx counts the windows that there are."""
        allowed = end == self.end or 0 <= end < self.taps
        return allowed and self.inferred(end, ceil_mode=ceil_mode) == self.count


def settle_window_counts(proto: onnx.ModelProto) -> bool:
    """Change the pooling nodes of the main graph whose output size onnx infers wrongly.

    Args:
        proto: A model with inferred shapes; changed in place.

    Returns:
        Whether a node was changed, so that shapes have to be inferred again.
    """
    if (opset_of(proto) or 0) >= _RIGHT_SINCE:
        return False
    nodes = [node for node in proto.graph.node if _is_pooling(node) and integer(node, "ceil_mode")]
    types = dict(types_of(proto.graph)) if nodes else {}
    changes = [_settle(node, spatial_sizes(types, node.input[0])) for node in nodes]
    return any(changes)


def _is_pooling(node: onnx.NodeProto) -> bool:
    return node.op_type in _POOLING and node.domain in ("", "ai.onnx")


def _settle(node: onnx.NodeProto, lengths: Sequence[int] | None) -> bool:
    axes = [] if lengths is None or auto_pad(node).startswith("SAME") else _axes(node, lengths)
    if all(axis.agrees(axis.end, ceil_mode=True) for axis in axes):
        return False
    for ceil_mode, ends in _equivalents(node, axes):
        if all(axis.agrees(end, ceil_mode=ceil_mode) for axis, end in zip(axes, ends, strict=True)):
            pads = [*(axis.begin for axis in axes), *ends]
            set_attributes(node, auto_pad=None, ceil_mode=int(ceil_mode), pads=pads)
            return True
    return False


def _equivalents(node: onnx.NodeProto, axes: list[_Axis]) -> Iterator[tuple[bool, list[int]]]:
    """Modes and paddings behind the image with which the same windows have the same values, if they agree.

    Where padding counts, no window may stick out of it: only `ceil_mode` leaves out of account what does.
    """
    ends, snug_ends = [axis.end for axis in axes], [axis.snug_end for axis in axes]
    if not integer(node, "count_include_pad"):
        yield False, [max(0, snug) for snug in snug_ends]
    elif all(snug <= end for snug, end in zip(snug_ends, ends, strict=True)):
        yield False, ends
    yield True, [min(both) for both in zip(ends, snug_ends, strict=True)]


def _axes(node: onnx.NodeProto, lengths: Sequence[int]) -> list[_Axis]:
    """The spatial axes of the image, whose sizes are `lengths`."""
    ones, zeros = [1] * len(lengths), [0] * 2 * len(lengths)
    kernel, strides, dilations = (
        integers(node, name, ones) for name in ("kernel_shape", "strides", "dilations")
    )
    pads = zeros if auto_pad(node) == "VALID" else integers(node, "pads", zeros)
    begins, ends = pads[: len(lengths)], pads[len(lengths) :]
    each = zip(lengths, begins, ends, strides, kernel, dilations, strict=True)
    return [_Axis(*axis) for axis in each]
