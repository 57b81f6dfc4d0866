"""Pooling over sliding windows: MaxPool, AveragePool, LpPool."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number, keep_where
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_flat
from onnx_grad.rules.lp_norms import lp_factors
from onnx_grad.rules.window_sums import Weight, spread, tap_positions
from onnx_grad.rules.windows import (
    Sizes,
    Windows,
    auto_pad,
    explicit_padding,
    given,
    same_padding,
    sizes_attribute,
    spatial_sizes,
)

# Taps of a window that can be numbered exactly in every float type.
_MOST_TAPS = 256
# ONNX Runtime's CPU provider has no Resize for float64.
_RESIZABLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

_GEOMETRY = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode")


def _disputed_shape(node: ir.Node) -> str | None:
    """Why a node cannot be differentiated: the shape inferred for its output is not what ONNX Runtime gives.

    ONNX Runtime itself relies on that shape when it optimizes a graph.
    """
    windows, inferred = _windows(node), spatial_sizes(node.outputs[0])
    if _is_same_and_dilated(node, windows) and windows.positions is not None:
        return _advice(node, "dilations, where ONNX Runtime does not pad as the ONNX specification says")
    if inferred is not None and windows.count is not None and inferred != windows.count:
        return (
            f"'{node.op_type}' has {list(windows.count)} windows where {list(inferred)} are inferred, as "
            "onnx counts windows behind the image before opset 22; convert the model to opset 22 or later"
        )
    return None


def _unclear_padding(node: ir.Node) -> str | None:
    """Why a node cannot be differentiated: nobody can say how it is padded, or how large its output is."""
    windows = _windows(node)
    axes = list(zip(given(windows.kernel), given(windows.dilations), given(windows.strides), strict=True))
    if _is_same_and_dilated(node, windows) and any((k - 1) * (d - 1) % s for k, d, s in axes):
        return _advice(node, "dilations, where ONNX Runtime does not pad as the ONNX specification says")
    if windows.begin is None and any((k - 1) * d + 1 < s for k, d, s in axes):
        return _advice(node, "gaps between windows, whose place is unclear for an image without a fixed size")
    return _disputed_shape(node)


def _is_same_and_dilated(node: ir.Node, windows: Windows) -> bool:
    sizes = zip(given(windows.kernel), given(windows.dilations), strict=True)
    return auto_pad(node).startswith("SAME") and any(k > 1 and d > 1 for k, d in sizes)


def _advice(node: ir.Node, what: str) -> str:
    return f"'{node.op_type}' has auto_pad={auto_pad(node)} and {what}; give the attribute pads instead"


@gradient("MaxPool", refuses=_disputed_shape, convention="the first maximum of a window takes all")
def max_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y[o] = the maximum of window o: dx = dy at the position of the maximum, the first one of equals.

    The positions come from a MaxPool of their own unless the forward node gives them: asking it for
    positions would make it some fifteen times slower, also where no gradient is wanted.
    """
    x, windows = known.operand(node, 0), _windows(node)
    if _tile_the_image(windows) and x.dtype in _RESIZABLE:
        return _at_first_maximum(op, node, dy, given(windows.kernel), given(windows.count))
    if _may_miss_the_image(windows):
        dy = keep_where(op, node, op.Greater(node.outputs[0], _lowest(x)), dy)
    return add_flat(op, dy, _positions_of_maxima(op, node), x)


def _positions_of_maxima(op: Builder, node: ir.Node) -> ir.Value:
    if len(node.outputs) > 1 and node.outputs[1].name and not node.attributes.get_int("storage_order", 0):
        return node.outputs[1]
    geometry = {name: node.attributes[name].value for name in _GEOMETRY if name in node.attributes}
    return op.MaxPool(known.operand(node, 0), outputs=2, **geometry)[1]


def _tile_the_image(windows: Windows) -> bool:
    """Whether each position of the image is known to be in exactly one window."""
    kernel = given(windows.kernel)
    if windows.positions is None or windows.count is None or windows.pads is not None:
        return False
    whole = all(i == o * k for i, o, k in zip(windows.positions, windows.count, kernel, strict=True))
    return (
        whole and windows.strides == kernel and math.prod(kernel) <= _MOST_TAPS and windows.extent == kernel
    )


def _at_first_maximum(op: Builder, node: ir.Node, dy: ir.Value, kernel: Sizes, count: Sizes) -> ir.Value:
    """The rule of MaxPool where windows tile the image, without asking for positions, which are slow to get.

    Taps are numbered downwards; the one that equals the maximum and has the highest number is the first.
    """

    def enlarged(value: ir.Value) -> ir.Value:
        scales = np.array([1, 1, *kernel], dtype=np.float32)
        return op.Resize(
            value,
            None,
            scales,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )

    x, (y, *_) = known.operand(node, 0), node.outputs
    numbers = np.arange(math.prod(kernel), 0, -1).reshape(kernel)
    tiled = op.Tile(op.constant(numbers, given(x.dtype)), list(count))
    score = as_number(op, op.Equal(x, enlarged(y)), x) * tiled
    best = op.MaxPool(score, kernel_shape=kernel, strides=kernel)
    return keep_where(op, node, op.Equal(score, enlarged(best)), enlarged(dy))


def _may_miss_the_image(windows: Windows) -> bool:
    """Whether all taps of a window may lie in the padding: far apart, on both sides of a tiny image."""
    begin = windows.begin or (1,) * len(given(windows.kernel))
    lengths = windows.positions or (0,) * len(begin)
    return any(
        b > 0 and i < d for b, i, d in zip(begin, lengths, given(windows.dilations), strict=True) if d > 1
    )


def _lowest(x: ir.Value) -> float:
    """What the maximum of nothing is."""
    dtype = ir.DataType.FLOAT if x.dtype is None else x.dtype
    return float(ml_dtypes.finfo(dtype.numpy()).min)  # type: ignore[no-untyped-call]


@gradient("AveragePool", refuses=_unclear_padding)
def average_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y[o] = Σx / n over window o: dx = dy/n, summed over the windows at each position."""
    x, windows = known.operand(node, 0), _windows(node)
    shares = [_share(op, node, windows, axis, x, dy) for axis in range(len(given(windows.kernel)))]
    return spread(op, windows, dy, x, shares)


@gradient("LpPool", refuses=_unclear_padding, convention="LpPool'(0) = 0")
def lp_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = (Σ|x|ᵖ)^1/p over window o: dx = x·|x|ᵖ⁻² · dy·y¹⁻ᵖ, summed over the windows at each position."""
    x, windows, (y,) = known.operand(node, 0), _windows(node), node.outputs
    of_x, of_y = lp_factors(op, x, y, node.attributes.get_int("p", 2))
    total = spread(op, windows, dy if of_y is None else dy * of_y, x, [1.0] * len(given(windows.kernel)))
    return of_x * total


def _windows(node: ir.Node) -> Windows:
    """The windows of a pooling node."""
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
    if _is_same_and_dilated(node, windows):
        return windows
    windows = windows.with_total_padding(same_padding(windows))
    if positions is None:
        return windows
    axes = zip(positions, given(windows.strides), strict=True)
    return windows.with_count(tuple((i + s - 1) // s for i, s in axes))


def _count(windows: Windows, ceil_mode: bool) -> Sizes | None:
    """How many windows there are. With `ceil_mode`, one may reach beyond the padding, but not start there."""
    if windows.positions is None:
        return None
    padded = [i + b for i, b in zip(windows.positions, given(windows.begin), strict=True)]
    axes = zip(padded, given(windows.end), given(windows.extent), given(windows.strides), strict=True)
    if not ceil_mode:
        return tuple((i + e - x) // s + 1 for i, e, x, s in axes)
    return tuple(min(-(-(i + e - x) // s), (i - 1) // s) + 1 for i, e, x, s in axes)


def _share(op: Builder, node: ir.Node, windows: Windows, axis: int, x: ir.Value, dy: ir.Value) -> Weight:
    """One over the number of taps that each window has along an axis, those in padding too or not."""
    with_padding = bool(node.attributes.get_int("count_include_pad", 0))
    sticks_out = bool(node.attributes.get_int("ceil_mode", 0)) and not windows.dense
    taps = given(windows.kernel)[axis]
    if not sticks_out and (with_padding or (windows.begin is not None and windows.pads is None)):
        return 1.0 / taps
    if windows.begin is None or windows.positions is None or windows.count is None:
        return _run_time_share(op, windows, axis, x, dy, with_padding)
    length, end = windows.positions[axis], given(windows.end)[axis]
    at = tap_positions(windows, axis)
    counted = (at < length + end) if with_padding else (at >= 0) & (at < length)
    return 1.0 / np.maximum(counted.sum(axis=1), 1)


def _run_time_share(
    op: Builder, windows: Windows, axis: int, x: ir.Value, dy: ir.Value, with_padding: bool
) -> ir.Value:
    """The same, from the sizes when the graph runs: the taps before and behind the image are counted off."""
    taps, dilation = given(windows.kernel)[axis], given(windows.dilations)[axis]
    length, count = (op.Squeeze(op.Shape(value, start=axis + 2, end=axis + 3)) for value in (x, dy))
    begin, end = _padding_along(op, windows, axis, length, count)
    first = op.Range(0, count, 1) * given(windows.strides)[axis] - begin
    limit = length + end if with_padding else length
    until = op.Min((limit - first + (dilation - 1)) / dilation, taps)
    if not with_padding:
        until = until - op.Max((dilation - 1 - first) / dilation, 0)
    return op.Reciprocal(op.CastLike(op.Max(until, 1), dy))


def _padding_along(
    op: Builder, windows: Windows, axis: int, length: ir.Value, count: ir.Value
) -> tuple[int | ir.Value, int | ir.Value]:
    """The padding before and behind the image along an axis."""
    if windows.begin is not None:
        return windows.begin[axis], given(windows.end)[axis]
    reach = (count - 1) * given(windows.strides)[axis] + given(windows.extent)[axis]
    total = reach - length
    begin = (total + int(windows.odd_at_begin)) / 2
    return begin, total - begin
