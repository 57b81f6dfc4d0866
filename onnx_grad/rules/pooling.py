"""Pooling over sliding windows: MaxPool, AveragePool, LpPool."""

from __future__ import annotations

import math

import ml_dtypes
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import keep_where
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.accumulate import add_flat
from onnx_grad.rules.lp_norms import lp_factors
from onnx_grad.rules.pooled_activation import pools_a_relu
from onnx_grad.rules.pooled_windows import is_same_and_dilated, pooled_windows, run_time_begin, shares
from onnx_grad.rules.precision import widen
from onnx_grad.rules.tiled_maxima import (
    RESIZABLE,
    are_few_taps,
    are_first_maxima,
    enlarged,
    first_maxima,
    placed,
)
from onnx_grad.rules.window_sums import spread
from onnx_grad.rules.windows import Windows, auto_pad, given, spatial_sizes

# Taps of a window that can be numbered exactly in every float type.
_MOST_TAPS = 256

_GEOMETRY = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "ceil_mode")


def _undefined(node: ir.Node) -> str | None:
    """Why a node cannot be differentiated: the ONNX specification and ONNX Runtime disagree on its windows.

    Of a fixed size, they disagree on the shape of its output, on which ONNX Runtime itself relies when it
    optimizes a graph; what it computes, it computes by its own.
    """
    windows, inferred = pooled_windows(node), spatial_sizes(node.outputs[0])
    if windows.positions is not None and is_same_and_dilated(node):
        return _advice(node, "dilations")
    if inferred is not None and windows.count is not None and inferred != windows.count:
        return (
            f"'{node.op_type}' has {list(windows.count)} windows where {list(inferred)} are inferred, as "
            "onnx counts windows behind the image before opset 22; convert the model to opset 22 or later"
        )
    return None


def _unclear(node: ir.Node) -> str | None:
    """The same for a node whose padding has to be known."""
    if is_same_and_dilated(node):
        if node.attributes.get_int("ceil_mode", 0):
            return _advice(node, "ceil_mode and dilations")
        axes = zip(given(pooled_windows(node).kernel), given(pooled_windows(node).strides), strict=True)
        if any(k < s for k, s in axes):
            return _advice(node, "dilations and gaps between windows")
    return _undefined(node)


def _advice(node: ir.Node, what: str) -> str:
    return (
        f"'{node.op_type}' has auto_pad={auto_pad(node)} and {what}, where ONNX Runtime does not pad as the "
        "ONNX specification says; give the attribute pads instead"
    )


@gradient("MaxPool", refuses=_undefined, convention="the first maximum of a window takes all")
def max_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y[o] = the maximum of window o: dx = dy at the position of the maximum, the first one of equals.

    The positions come from a MaxPool of their own unless the forward node gives them: asking it for
    positions would make it some fifteen times slower, also where no gradient is wanted.
    """
    x, windows = known.operand(node, 0), pooled_windows(node)
    if pools_a_relu(op, node):
        dy = keep_where(op, node, op.Cast(node.outputs[0], to=ir.DataType.BOOL), dy)
    if _tile_the_image(windows):
        kernel, count, y = given(windows.kernel), given(windows.count), node.outputs[0]
        if op.pushes and are_few_taps(kernel, count):
            return placed(op, dy, first_maxima(op, x, y, kernel, count), kernel, count)
        if x.dtype in RESIZABLE:
            is_first = are_first_maxima(op, x, y, kernel, count)
            return keep_where(op, node, is_first, enlarged(op, dy, kernel, count))
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


@gradient("AveragePool", refuses=_unclear)
def average_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y[o] = Σx / n over window o: dx = dy/n, summed over the windows at each position."""
    x, windows = known.operand(node, 0), pooled_windows(node)
    weights = shares(op, node, windows, x, dy)
    return spread(op, windows, dy, x, weights, run_time_begin(op, windows, x, dy))


@gradient("LpPool", refuses=_unclear, convention="LpPool'(0) = 0")
def lp_pool(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = (Σ|x|ᵖ)^1/p over window o: dx = x·|x|ᵖ⁻² · dy·y¹⁻ᵖ, summed over the windows at each position."""
    windows = pooled_windows(node)
    # Powers beyond the range of float16 make up for each other.
    x, y, wide_dy = (widen(op, value, dy) for value in (known.operand(node, 0), node.outputs[0], dy))
    of_x, of_y = lp_factors(op, x, y, node.attributes.get_int("p", 2))
    response, weights = wide_dy if of_y is None else wide_dy * of_y, [1.0] * len(given(windows.kernel))
    total = spread(op, windows, response, x, weights, run_time_begin(op, windows, x, dy))
    return op.CastLike(of_x * total, dy)
