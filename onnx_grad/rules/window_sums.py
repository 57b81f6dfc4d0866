"""Sums over windows, turned round: each position of an image sums what the windows over it bring.

Windows are boxes, so the sum is a product of one matrix for each axis, R = Mᵀ for M[o, i] = 1 where window o
has a tap at position i. The 2-D form Mᵀ·v·M of two matrix products is the fastest by far on ONNX Runtime; it
wants known sizes, and axes short enough for their matrices to be small. The general form is a `ConvTranspose`
with a kernel of ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.filters import Filters, joined_shape
from onnx_grad.rules.transposed import transposed_convolution
from onnx_grad.rules.windows import Windows, given, tap_positions

# Elements of a matrix: an axis of 256 positions under 256 windows.
_LARGEST_MATRIX = 1 << 16

Array = npt.NDArray[Any]
Weight = Array | ir.Value | float


def spread(
    op: Builder,
    windows: Windows,
    response: ir.Value,
    image: ir.Value,
    weights: Sequence[Weight],
    begin: ir.Value | None = None,
) -> ir.Value:
    """dx[i] = Σ response[o]·weight[o] over the windows o that have a tap at i.

    Args:
        op: Builds the nodes.
        windows: The windows.
        response: One entry per window, [N, C, O…].
        image: A tensor of the shape [N, C, I…].
        weights: The weight of a window is a product of one factor along each axis: an array or a 1-D tensor
            with an entry for each window along the axis, or a number.
        begin: The padding before the image as a 1-D tensor, where the windows do not tell.

    Returns:
        A value of the shape of `image`.
    """
    if _is_one_window_over_all(windows):
        return op.Expand(_weighted(op, response, weights), op.shape(image))
    if _matrices_pay(windows):
        arrays = [weight for weight in weights if not isinstance(weight, ir.Value)]
        matrices = [membership(windows, axis) * np.reshape(w, (-1, 1)) for axis, w in enumerate(arrays)]
        if len(matrices) == len(weights):
            return _product(op, windows, response, matrices, image)
    return _transposed(op, windows, _weighted(op, response, weights), image, begin)


def membership(windows: Windows, axis: int) -> Array:
    """M[o, i] = 1 where window o along `axis` has a tap at position i, else 0."""
    positions = np.arange(given(windows.positions)[axis])
    return (tap_positions(windows, axis)[:, :, None] == positions).any(axis=1).astype(np.float64)


def _is_one_window_over_all(windows: Windows) -> bool:
    if windows.positions is None or windows.count is None or windows.begin is None:
        return False
    return all(o == 1 and membership(windows, axis).all() for axis, o in enumerate(windows.count))


def _matrices_pay(windows: Windows) -> bool:
    """Whether the matrices are known, and small; or whether cropping leaves no other way."""
    if windows.positions is None or windows.count is None or windows.begin is None:
        return False
    if any(b < 0 for b in windows.begin):
        return True
    return all(i * o <= _LARGEST_MATRIX for i, o in zip(windows.positions, windows.count, strict=True))


def _product(
    op: Builder, windows: Windows, response: ir.Value, matrices: Sequence[Array], image: ir.Value
) -> ir.Value:
    """The response times one matrix [O, I] along each spatial axis, the last one first."""
    *leading, last = matrices
    result = op.MatMul(response, _constant_like(op, last, response))
    for axis in reversed(range(len(leading))):
        matrix = _constant_like(op, leading[axis].T, response)
        behind = given(windows.positions)[axis + 1 :]
        if len(behind) > 1:
            result = op.Reshape(result, [0, 0, given(windows.count)[axis], math.prod(behind)])
        result = op.MatMul(matrix, result)
    return result if len(matrices) < 3 else op.reshape_like(result, image)


def _transposed(
    op: Builder, windows: Windows, response: ir.Value, image: ir.Value, begin: ir.Value | None
) -> ir.Value:
    """The same as the adjoint of a convolution with ones, all channels being images of their own."""
    kernel = given(windows.kernel)
    sizes = op.Shape(response, start=2) if windows.count is None else list(windows.count)
    separate = op.Reshape(response, joined_shape(op, [-1, 1], sizes))
    ones = op.Expand(op.scalar_like(1.0, response), [1, 1, *kernel])
    ones.shape = ir.Shape([1, 1, *kernel])
    filters = Filters(ones, _with_windows_inside(windows), group=1)
    return op.reshape_like(transposed_convolution(op, filters, separate, image, begin), image)


def _with_windows_inside(windows: Windows) -> Windows:
    """The same windows, the padding behind the image being at least as wide as the last window reaches.

    Where sizes are not known, as narrow as can be: what the adjoint then has too much is cut off.
    """
    if windows.begin is None or windows.dense:
        return windows
    strides, extent, end = given(windows.strides), given(windows.extent), given(windows.end)
    if windows.positions is None or windows.count is None:
        return windows.with_padding(
            windows.begin, tuple(e if s == 1 else 0 for e, s in zip(end, strides, strict=True))
        )
    axes = zip(windows.positions, windows.begin, windows.count, strides, extent, strict=True)
    reach = tuple((o - 1) * s + x - b - i for i, b, o, s, x in axes)
    return windows.with_padding(windows.begin, tuple(max(0, r) for r in reach))


def _weighted(op: Builder, response: ir.Value, weights: Sequence[Weight]) -> ir.Value:
    """The response times its weights."""
    factor = math.prod(weight for weight in weights if isinstance(weight, float))
    if factor != 1.0:
        response = response * factor
    for axis, weight in enumerate(weights):
        if not isinstance(weight, float):
            vector = weight if isinstance(weight, ir.Value) else _constant_like(op, weight, response)
            behind = len(weights) - 1 - axis
            response = response * (op.Reshape(vector, [-1] + [1] * behind) if behind else vector)
    return response


def _constant_like(op: Builder, array: Array, like: ir.Value) -> ir.Value:
    """`array` in the dtype of `like`."""
    if like.dtype is None:
        return op.CastLike(op.constant(array, ir.DataType.FLOAT), like)
    return op.constant(array, like.dtype)
