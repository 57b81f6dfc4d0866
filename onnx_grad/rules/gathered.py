"""The windows of an image copied side by side, so that a convolution becomes one product of matrices."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
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
) -> ir.Value:
    """The image [N, C, I…] as a matrix [N·windows, taps·C], one row for what each window sees.

    Args:
        op: Builds the nodes.
        image: The image.
        windows: Windows of known sizes.
        channels: C.
        last_tap_first: Whether the taps of a window are read against their order, along every axis.
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
    return op.Reshape(rows, [-1, taps * channels])


def windows_by_tap(op: Builder, image: ir.Value, windows: Windows, batch: int, channels: int) -> ir.Value:
    """The image [N, C, I…] as matrices [taps, N·windows, C], one row for what a tap sees in a window.

    Args:
        op: Builds the nodes.
        image: The image.
        windows: Windows of known sizes.
        batch: N.
        channels: C.
    """
    rank, pixels = len(given(windows.kernel)), batch * math.prod(given(windows.positions))
    seen = op.Reshape(op.Transpose(image, perm=[0, *range(2, rank + 2), 1]), [pixels, channels])
    if windows.pads is not None:
        seen = op.Pad(seen, [0, 0, 1, 0])
    rows = op.Gather(seen, _places_by_tap(op, windows, batch), axis=0)
    return op.Reshape(rows, [math.prod(given(windows.kernel)), -1, channels])


def _places(op: Builder, windows: Windows, direction: int) -> ir.Value:
    """Where in the flattened image a tap of a window lies, [O…, kernel…]; just behind its end for padding."""
    rank, pixels = len(given(windows.positions)), math.prod(given(windows.positions))
    parts = [
        np.expand_dims(places[:, ::direction], [i for i in range(2 * rank) if i not in (axis, rank + axis)])
        for axis, places in enumerate(_strided(windows, behind=pixels))
    ]
    return _total(op, windows, parts, pixels)


def _places_by_tap(op: Builder, windows: Windows, batch: int) -> ir.Value:
    """Where in the flattened batch a tap of a window lies, [kernel…, N, O…]; behind its end for padding."""
    rank, pixels = len(given(windows.positions)), math.prod(given(windows.positions))
    axes = range(2 * rank + 1)
    parts = [
        np.expand_dims(places.T, [i for i in axes if i not in (axis, rank + 1 + axis)])
        for axis, places in enumerate(_strided(windows, behind=batch * pixels))
    ]
    images = np.expand_dims(np.arange(batch) * pixels, [i for i in axes if i != rank])
    return _total(op, windows, [*parts, images], batch * pixels)


def _strided(windows: Windows, behind: int) -> Iterator[npt.NDArray[np.int64]]:
    """For each axis, what each window's taps along it add to the place, [O, k]; `behind` for padding."""
    sizes = given(windows.positions)
    for axis, length in enumerate(sizes):
        places = tap_positions(windows, axis)
        inside = (places >= 0) & (places < length)
        yield np.where(inside, places * math.prod(sizes[axis + 1 :]), behind)


def _total(op: Builder, windows: Windows, parts: list[npt.NDArray[np.int64]], most: int) -> ir.Value:
    """The sum of `parts`, which are stretched, and no more than `most`."""
    if math.prod(part.size for part in parts) <= _MOST_PLACES:
        return op.constant(np.minimum(functools.reduce(np.add, parts), most), ir.DataType.INT64)
    total = functools.reduce(op.Add, (op.constant(part, ir.DataType.INT64) for part in parts))
    return total if windows.pads is None else op.Min(total, most)
