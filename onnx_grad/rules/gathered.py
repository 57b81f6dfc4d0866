"""The windows of an image copied side by side, so that a convolution becomes one product of matrices."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.windows import Sizes, Windows, given


def gathered_windows(
    op: Builder, image: ir.Value, windows: Windows, channels: int, last_tap_first: bool = False
) -> ir.Value:
    """The image [N, C, I…] as a matrix [N·windows, taps·C], one row for what each window sees.

    Args:
        op: Builds the nodes.
        image: The image.
        windows: Windows of known sizes.
        channels: C.
        last_tap_first: Whether the taps of a window are read against their order, along every axis.
    """
    rank, begin, end = len(given(windows.kernel)), given(windows.begin), given(windows.end)
    if windows.pads is not None:
        image = op.Pad(image, [0, 0, *begin, 0, 0, *end])
    padded = tuple(i + b + e for i, b, e in zip(given(windows.positions), begin, end, strict=True))
    channels_last = op.Transpose(image, perm=[0, *range(2, rank + 2), 1])
    pixels = op.Reshape(channels_last, [0, math.prod(padded), channels])
    places = _places(op, windows, padded, -1 if last_tap_first else 1)
    return op.Reshape(op.Gather(pixels, places, axis=1), [-1, math.prod(given(windows.kernel)) * channels])


def _places(op: Builder, windows: Windows, padded: Sizes, direction: int) -> ir.Value:
    """Where in the flattened padded image a tap of a window lies, [O…, kernel…].

    A sum of one small tensor for each axis, so that the file stays small.
    """
    rank = len(padded)
    parts = []
    for axis in range(rank):
        windows_at = given(windows.strides)[axis] * np.arange(given(windows.count)[axis])
        taps_at = given(windows.dilations)[axis] * np.arange(given(windows.kernel)[axis])[::direction]
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = len(windows_at), len(taps_at)
        step = math.prod(padded[axis + 1 :])
        parts.append(op.constant((windows_at[:, None] + taps_at).reshape(shape) * step, ir.DataType.INT64))
    return functools.reduce(op.Add, parts)
