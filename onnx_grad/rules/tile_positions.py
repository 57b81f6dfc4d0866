"""Where the maxima of windows that tile an image lie, without asking MaxPool, which is slow to tell."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.windows import Sizes

# Each tap takes a MaxPool of its own.
_MOST_TAPS = 4
# Every position below is a float32, which a condition is cast to in half the time of an integer.
_EXACT = 1 << 24


def are_few_taps(kernel: Sizes, count: Sizes) -> bool:
    """Whether `first_maxima` takes windows of this size, and so many of them."""
    return math.prod(kernel) <= _MOST_TAPS and 0 < math.prod(kernel) * math.prod(count) <= _EXACT


def first_maxima(op: Builder, x: ir.Value, y: ir.Value, kernel: Sizes, count: Sizes) -> ir.Value:
    """The position of the first maximum of each window, counted through its channel of its image.

    It lies behind tap t if the maximum of the taps up to t is smaller than that of all. So its position is
    a₀ + Σₜ [max(x₀ … xₜ₋₁) < y]·(aₜ − aₜ₋₁), with aₜ the position of tap t.

    Args:
        op: Builds the nodes.
        x: The image, [N, C, *kernel·count].
        y: The maxima, [N, C, *count].
        kernel: The sizes of a window.
        count: How many windows there are along each axis.

    Returns:
        Positions, int32, of the shape of `y`.
    """
    sizes = [k * o for k, o in zip(kernel, count, strict=True)]
    places = np.arange(math.prod(sizes), dtype=np.float32).reshape(sizes)

    @functools.cache
    def is_smaller(*box: int) -> ir.Value:
        return op.Less(op.MaxPool(x, kernel_shape=box, strides=kernel), y)

    def steps(before: Sizes, tap: Sizes) -> ir.Value:
        is_behind = functools.reduce(op.And, (is_smaller(*box) for box in _boxes_before(tap, kernel)))
        distance = float(places[tap] - places[before])
        step = op.Cast(is_behind, to=ir.DataType.FLOAT)
        return step if distance == 1.0 else op.Mul(step, distance)

    taps = itertools.product(*map(range, kernel))
    first = op.constant(places[tuple(slice(None, None, k) for k in kernel)], ir.DataType.FLOAT)
    positions = functools.reduce(op.Add, (*itertools.starmap(steps, itertools.pairwise(taps)), first))
    return op.Cast(positions, to=ir.DataType.INT32)


def _boxes_before(tap: Sizes, kernel: Sizes) -> list[list[int]]:
    """Boxes at the beginning of a window that together cover the taps before `tap`, and no others."""
    return [
        [t + 1 for t in tap[:axis]] + [length] + list(kernel[axis + 1 :])
        for axis, length in enumerate(tap)
        if length > 0
    ]
