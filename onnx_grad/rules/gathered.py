"""The windows of an image copied side by side, so that a convolution becomes one product of matrices."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.windows import Windows, given, tap_positions

# More of them are written as a sum of one small tensor for each axis, so that the file stays small.
_MOST_PLACES = 1 << 13


def gathered_windows(
    op: Builder,
    image: ir.Value,
    windows: Windows,
    channels: int,
    last_tap_first: bool = False,
    taps_behind_channels: bool = False,
) -> ir.Value:
    """The image [N, C, I…] as a matrix [N·windows, taps·C], one row for what each window sees.

    Args:
        op: Builds the nodes.
        image: The image.
        windows: Windows of known sizes.
        channels: C.
        last_tap_first: Whether the taps of a window are read against their order, along every axis.
        taps_behind_channels: Whether the columns are C·taps instead, which takes a copy more.
    """
    rank, taps = len(given(windows.kernel)), math.prod(given(windows.kernel))
    pixels = math.prod(given(windows.positions))
    channels_last = op.Transpose(image, perm=[0, *range(2, rank + 2), 1])
    seen = op.Reshape(channels_last, [0, pixels, channels])
    if windows.pads is not None:
        # One pixel of zeros stands for all padding: a border around every image is much slower to put there.
        seen = op.Pad(seen, [0, 0, 0, 0, 1, 0])
    places = _places(op, windows, -1 if last_tap_first else 1)
    rows = op.Gather(seen, places, axis=1)
    if taps_behind_channels:
        rows = op.Transpose(op.Reshape(rows, [-1, taps, channels]), perm=[0, 2, 1])
    return op.Reshape(rows, [-1, taps * channels])


def _places(op: Builder, windows: Windows, direction: int) -> ir.Value:
    """Where in the flattened image a tap of a window lies, [O…, kernel…]; just behind its end for padding."""
    sizes, rank = given(windows.positions), len(given(windows.positions))
    pixels, parts = math.prod(sizes), []
    for axis, length in enumerate(sizes):
        places = tap_positions(windows, axis)[:, ::direction]
        inside = (places >= 0) & (places < length)
        shape = [1] * (2 * rank)
        shape[axis], shape[rank + axis] = places.shape
        along = np.where(inside, places * math.prod(sizes[axis + 1 :]), pixels)
        parts.append(along.reshape(shape))
    if math.prod(given(windows.count)) * math.prod(given(windows.kernel)) <= _MOST_PLACES:
        return op.constant(np.minimum(functools.reduce(np.add, parts), pixels), ir.DataType.INT64)
    total = functools.reduce(op.Add, (op.constant(part, ir.DataType.INT64) for part in parts))
    return total if windows.pads is None else op.Min(total, pixels)
