"""Where the maxima of windows that tile an image lie, without asking MaxPool, which is slow to tell."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.masking import as_number
from onnx_grad.rules.windows import Sizes, given

Numbers = npt.NDArray[np.float32]

# Each tap takes a MaxPool of its own.
_FEW_TAPS = 4
# Every position below is a float32, which a condition is cast to in half the time of an integer.
_EXACT = 1 << 24
# ONNX Runtime's CPU provider has no Resize for float64.
RESIZABLE = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})


def are_few_taps(kernel: Sizes, count: Sizes) -> bool:
    """Whether `first_maxima` takes windows of this size, and so many of them."""
    return 1 < math.prod(kernel) <= _FEW_TAPS and 0 < math.prod(kernel) * math.prod(count) <= _EXACT


def first_maxima(op: Builder, x: ir.Value, y: ir.Value, kernel: Sizes, count: Sizes) -> ir.Value:
    """The position of the first maximum of each window, counted through its channel of its image.

    Args:
        op: Builds the nodes.
        x: The image, [N, C, *kernel·count].
        y: The maxima, [N, C, *count].
        kernel: The sizes of a window, of few taps.
        count: How many windows there are along each axis.

    Returns:
        Positions, int32, of the shape of `y`.
    """
    sizes = [k * o for k, o in zip(kernel, count, strict=True)]
    places = np.arange(math.prod(sizes), dtype=np.float32).reshape(sizes)
    first = op.constant(places[tuple(slice(None, None, k) for k in kernel)], ir.DataType.FLOAT)
    behind = _at_first_maxima(op, x, y, places[tuple(map(slice, kernel))])
    return op.Cast(op.Add(behind, first), to=ir.DataType.INT32)


def placed(op: Builder, dy: ir.Value, positions: ir.Value, kernel: Sizes, count: Sizes) -> ir.Value:
    """An image of zeros with the elements of `dy` at `positions`. Transposed, it picks them there.

    Args:
        op: Builds the nodes.
        dy: An element for each window, [N, C, *count].
        positions: Those of `first_maxima`.
        kernel: The sizes of a window.
        count: How many windows there are along each axis.
    """
    rows = op.Reshape(dy, [0, 0, math.prod(count)])
    lengths = op.Concat(op.Shape(dy, end=2), [math.prod(kernel) * math.prod(count)], axis=0)
    zeros = op.Expand(op.scalar_like(0.0, dy), lengths)
    image = op.ScatterElements(zeros, op.Reshape(positions, [0, 0, math.prod(count)]), rows, axis=2)
    return op.Reshape(image, [0, 0, *(k * o for k, o in zip(kernel, count, strict=True))])


def are_first_maxima(op: Builder, x: ir.Value, y: ir.Value, kernel: Sizes, count: Sizes) -> ir.Value:
    """Which elements of the image are the first maxima of their windows; at most one is in each.

    Taps are numbered, and the number of the first maximum is enlarged to the size of its window. Where taps
    are many, it is the highest number of those that equal the maximum, numbered downwards.

    Args:
        op: Builds the nodes.
        x: The image, [N, C, *kernel·count], of a `RESIZABLE` type.
        y: The maxima, [N, C, *count].
        kernel: The sizes of a window.
        count: How many windows there are along each axis.

    Returns:
        A condition of the shape of `x`.
    """
    numbers = np.arange(math.prod(kernel), dtype=np.float32).reshape(kernel)
    if are_few_taps(kernel, count):
        tiled = op.Tile(op.constant(numbers, ir.DataType.FLOAT), list(count))
        return op.Equal(enlarged(op, _at_first_maxima(op, x, y, numbers), kernel, count), tiled)
    tiled = op.Tile(op.constant(math.prod(kernel) - numbers, given(x.dtype)), list(count))
    score = as_number(op, op.Equal(x, enlarged(op, y, kernel, count)), x) * tiled
    # Nothing equals the maximum where ONNX Runtime takes the smallest number for that of NaN or infinities.
    best = op.Max(op.MaxPool(score, kernel_shape=kernel, strides=kernel), 0.5)
    return op.Equal(score, enlarged(op, best, kernel, count))


def enlarged(op: Builder, value: ir.Value, kernel: Sizes, count: Sizes) -> ir.Value:
    """Each element of `value`, [N, C, *count], at every tap of its window: [N, C, *kernel·count]."""
    large = op.Resize(
        value,
        None,
        np.array([1, 1, *kernel], dtype=np.float32),
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    if value.shape is not None:
        sizes = (k * o for k, o in zip(kernel, count, strict=True))
        large.shape = ir.Shape([*value.shape[:2], *sizes])
    return large


def _at_first_maxima(op: Builder, x: ir.Value, y: ir.Value, numbers: Numbers) -> ir.Value:
    """The number that stands at the first maximum of each window: aₜ with t the tap of that maximum.

    It lies behind tap t if the maximum of the taps up to t is smaller than that of all, so that this is
    Σₜ [max(x₀ … xₜ₋₁) < y]·(aₜ − aₜ₋₁), where a₀ = 0.

    Args:
        op: Builds the nodes.
        x: The image.
        y: The maxima.
        numbers: One for each tap, in the shape of a window.

    Returns:
        Numbers, float32, of the shape of `y`.
    """
    kernel = numbers.shape

    @functools.cache
    def is_smaller(*box: int) -> ir.Value:
        return op.Less(op.MaxPool(x, kernel_shape=box, strides=kernel), y)

    def step(before: Sizes, tap: Sizes) -> ir.Value:
        is_behind = functools.reduce(op.And, (is_smaller(*box) for box in _boxes_before(tap, kernel)))
        number, distance = op.Cast(is_behind, to=ir.DataType.FLOAT), float(numbers[tap] - numbers[before])
        return number if distance == 1.0 else op.Mul(number, distance)

    return functools.reduce(op.Add, itertools.starmap(step, itertools.pairwise(np.ndindex(kernel))))


def _boxes_before(tap: Sizes, kernel: Sizes) -> list[list[int]]:
    """Boxes at the beginning of a window that together cover the taps before `tap`, and no others."""
    return [
        [t + 1 for t in tap[:axis]] + [length] + list(kernel[axis + 1 :])
        for axis, length in enumerate(tap)
        if length > 0
    ]
