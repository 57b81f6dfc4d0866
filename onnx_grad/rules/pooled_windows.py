"""The windows of pooling: where they lie, how many there are, and how many taps each has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.window_sums import Weight
from onnx_grad.rules.windows import (
    Sizes,
    Windows,
    auto_pad,
    explicit_padding,
    given,
    same_padding,
    sizes_attribute,
    spatial_sizes,
    tap_positions,
)

# From this opset on, ONNX Runtime counts the padding that a window larger than the padded image has.
_COUNTS_OVERSIZED = 19


def pooled_windows(node: ir.Node) -> Windows:
    """The windows of the pooling `node`, as far as they are known while transforming."""
    kernel = given(sizes_attribute(node, "kernel_shape", 0, None))
    rank, positions = len(kernel), spatial_sizes(known.operand(node, 0))
    windows = Windows(
        positions=positions,
        count=None,
        kernel=kernel,
        strides=sizes_attribute(node, "strides", 1, rank),
        dilations=sizes_attribute(node, "dilations", 1, rank),
        odd_at_begin=auto_pad(node) == "SAME_LOWER",
    )
    if not auto_pad(node).startswith("SAME"):
        windows = windows.with_padding(*explicit_padding(node, rank))
        return windows.with_count(_count(windows, bool(node.attributes.get_int("ceil_mode", 0))))
    if is_same_and_dilated(node):
        return windows
    windows = windows.with_total_padding(same_padding(windows))
    if positions is None:
        return windows
    axes = zip(positions, given(windows.strides), strict=True)
    return windows.with_count(tuple((i + s - 1) // s for i, s in axes))


def is_same_and_dilated(node: ir.Node) -> bool:
    """Whether `node` has dilated windows padded for one window at every stride."""
    kernel = given(sizes_attribute(node, "kernel_shape", 0, None))
    dilations = given(sizes_attribute(node, "dilations", 1, len(kernel)))
    dilated = any(k > 1 and d > 1 for k, d in zip(kernel, dilations, strict=True))
    return dilated and auto_pad(node).startswith("SAME")


def run_time_begin(op: Builder, windows: Windows, x: ir.Value, dy: ir.Value) -> ir.Value | None:
    """The padding before the image as a 1-D tensor; `None` where it is known while transforming.

    A window starts at every stride-th position. For dilated ones, ONNX Runtime 1.32 takes the padding of
    windows without dilation, and leaves out the windows that then do not fit; their number tells.
    """
    if windows.begin is not None:
        return None
    strides, extent = (op.constant(given(n), ir.DataType.INT64) for n in (windows.strides, windows.extent))
    sizes, count = op.Shape(x, start=2), op.Shape(dy, start=2)
    if windows.extent != windows.kernel:
        specified = (sizes + strides - 1) / strides
        extent = op.Where(op.Equal(count, specified), extent, op.constant(windows.kernel, ir.DataType.INT64))
        count = specified
    total = (count - 1) * strides + extent - sizes
    return (total + int(windows.odd_at_begin)) / 2


def shares(op: Builder, node: ir.Node, windows: Windows, x: ir.Value, dy: ir.Value) -> Sequence[Weight]:
    """One over the number of taps that each window has along each axis, those in padding too or not."""
    rank = len(given(windows.kernel))
    with_padding = bool(node.attributes.get_int("count_include_pad", 0))
    ceil_mode = bool(node.attributes.get_int("ceil_mode", 0)) and not auto_pad(node).startswith("SAME")
    all_fit = windows.dense or not ceil_mode
    is_known = windows.begin is not None and windows.positions is not None and windows.count is not None
    if all_fit and with_padding and (windows.dense or windows.begin is None or op.opset < _COUNTS_OVERSIZED):
        return [1.0 / taps for taps in given(windows.kernel)]
    if is_known:
        return [_known_share(windows, axis, with_padding) for axis in range(rank)]
    if all_fit and windows.begin is not None and (with_padding or windows.pads is None):
        return [1.0] * (rank - 1) + [_share_of_all(op, windows, x, dy)]
    return [_run_time_share(op, windows, axis, x, dy, with_padding) for axis in range(rank)]


def _count(windows: Windows, ceil_mode: bool) -> Sizes | None:
    """How many windows there are. With `ceil_mode`, one may reach beyond the padding, but not start there.

    Quotients are rounded towards zero, so that a window larger than all of the padded image may be one, too.
    """
    if windows.positions is None:
        return None
    padded = [i + b for i, b in zip(windows.positions, given(windows.begin), strict=True)]
    axes = zip(padded, given(windows.end), given(windows.extent), given(windows.strides), strict=True)
    if not ceil_mode:
        return tuple(int((i + e - x) / s) + 1 for i, e, x, s in axes)
    return tuple(min(-(-(i + e - x) // s), (i - 1) // s) + 1 for i, e, x, s in axes)


def _known_share(windows: Windows, axis: int, with_padding: bool) -> Weight:
    length, end = given(windows.positions)[axis], given(windows.end)[axis]
    at = tap_positions(windows, axis)
    counted = (at < length + end) if with_padding else (at >= 0) & (at < length)
    shares = 1.0 / np.maximum(counted.sum(axis=1), 1)
    return float(shares[0]) if len(set(shares)) == 1 else shares


def _share_of_all(op: Builder, windows: Windows, x: ir.Value, dy: ir.Value) -> ir.Value:
    """One over the taps of any window along all axes, where they fit into the padded image.

    If they do not, ONNX Runtime rounds the number of windows up to one, and counts the taps that it has.
    """
    zeros = (0,) * len(given(windows.kernel))
    axes = zip(windows.begin or zeros, windows.end or zeros, given(windows.dilations), strict=True)
    beyond = op.constant([b + e + d - 1 for b, e, d in axes], ir.DataType.INT64)
    room = op.Div(op.Shape(x, start=2) + beyond, op.constant(windows.dilations, ir.DataType.INT64))
    taps = op.ReduceProd(op.Min(room, op.constant(windows.kernel, ir.DataType.INT64)), keepdims=1)
    return op.Reciprocal(op.CastLike(taps, dy))


def _run_time_share(
    op: Builder, windows: Windows, axis: int, x: ir.Value, dy: ir.Value, with_padding: bool
) -> ir.Value:
    """One over the taps of each window along an axis: those before and behind the image are counted off."""
    taps, dilation = given(windows.kernel)[axis], given(windows.dilations)[axis]
    length, count = (op.Squeeze(op.Shape(value, start=axis + 2, end=axis + 3)) for value in (x, dy))
    at_run_time = run_time_begin(op, windows, x, dy)
    begin = given(windows.begin)[axis] if at_run_time is None else op.Gather(at_run_time, axis)
    first = op.Range(0, count, 1) * given(windows.strides)[axis] - begin
    limit = length + given(windows.end)[axis] if with_padding else length
    until = op.Min((limit - first + (dilation - 1)) / dilation, taps)
    if not with_padding:
        until = until - op.Max((dilation - 1 - first) / dilation, 0)
    return op.Reciprocal(op.CastLike(op.Max(until, 1), dy))
