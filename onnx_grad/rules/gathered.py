"""The windows of an image copied side by side, so that a convolution becomes one product of matrices."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.windows import Windows, given, tap_positions


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
    rank, kernel, pixels = (
        len(given(windows.kernel)),
        given(windows.kernel),
        math.prod(given(windows.positions)),
    )
    channels_last = op.Transpose(image, perm=[0, *range(2, rank + 2), 1])
    seen = op.Reshape(channels_last, [0, pixels, channels])
    places = _places(op, windows, -1 if last_tap_first else 1)
    if windows.pads is not None:
        # One pixel of zeros stands for all padding: a border around every image is much slower to put there.
        seen, places = op.Pad(seen, [0, 0, 0, 0, 1, 0]), op.Min(places, pixels)
    return op.Reshape(op.Gather(seen, places, axis=1), [-1, math.prod(kernel) * channels])


def _places(op: Builder, windows: Windows, direction: int) -> ir.Value:
    """Where in the flattened image a tap of a window lies, [O…, kernel…]; at or behind its end for padding.

    A sum of one small tensor for each axis, so that the file stays small.
    """
    sizes = given(windows.positions)
    rank = len(sizes)
    parts = []
    for axis, length in enumerate(sizes):
        places = tap_positions(windows, axis)[:, ::direction]
        inside = (places >= 0) & (places < length)
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = places.shape
        along = np.where(inside, places * math.prod(sizes[axis + 1 :]), math.prod(sizes))
        parts.append(op.constant(along.reshape(shape), ir.DataType.INT64))
    return functools.reduce(op.Add, parts)
