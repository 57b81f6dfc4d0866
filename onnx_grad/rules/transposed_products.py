"""The adjoint of convolution as products of matrices, for few windows and many weights.

ONNX Runtime's `ConvTranspose` multiplies image by image, and transposes all weights for each of them. Where
an image has few windows, that is most of its time: one product for the whole batch reads the weights once.
Times of ONNX Runtime 1.32 on one core of an Intel Xeon (AVX-512), weights given at run time, relative to
PyTorch 2.13's own input gradient, N×C×I → M:

| kernel        | sizes           | `scattered` | `gathered` | `ConvTranspose` |
|---------------|-----------------|-------------|------------|-----------------|
| 3×3           | 4×512×4² → 512  | 1.33        | 1.77       | 2.9             |
| 3×3           | 4×256×7² → 256  | 1.66        | 1.18       | 1.8             |
| 3×3           | 32×64×8² → 64   |             | 1.54       | 1.8             |
| 3×3           | 4×128×14² → 128 |             | 1.28       | 1.44            |
| 3×3           | 4×64×28² → 64   |             | 1.48       | 1.16            |
| 3×3, stride 2 | 4×256×7² → 512  | 0.73        |            | 1.22            |
| 3×3, stride 2 | 4×128×14² → 256 | 1.38        |            | 1.24            |

`MatMul` and `Col2Im`, which has no CUDA kernel, is as fast as `scattered`. With constant weights,
`ConvTranspose` gives way to a `Conv` of turned weights; `gathered` is still faster, `scattered` is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.filters import Filters
from onnx_grad.rules.gathered import gathered_windows
from onnx_grad.rules.windows import Windows, given, tap_positions

Formula = Callable[[Builder, Filters, ir.Value, ir.Value], ir.Value]

# From the table above, and others like it.
_FEW_WINDOWS = 16
_SMALL_MAP = 64
_MANY_WEIGHTS = 1 << 15


def paying_product(filters: Filters) -> Formula | None:
    """The product that replaces `ConvTranspose`, called as the functions below; `None` where none pays."""
    windows, channels = filters.windows, filters.channels
    if channels is None or windows.kernel is None or windows.begin is None or filters.group != 1:
        return None
    if windows.positions is None or windows.count is None or math.prod(windows.kernel) == 1:
        return None
    if math.prod(channels) * math.prod(windows.kernel) < _MANY_WEIGHTS:
        return None
    if math.prod(windows.count) <= _FEW_WINDOWS and not filters.are_constant:
        return scattered
    if math.prod(windows.count) <= _SMALL_MAP and windows.dense and _reaches_out(windows):
        return gathered
    return None


def scattered(op: Builder, filters: Filters, response: ir.Value, image: ir.Value) -> ir.Value:
    """Every response times all weights; a matrix of zeros and ones adds each product where its tap lies."""
    (m, c), windows = given(filters.channels), filters.windows
    rank, taps = len(given(windows.kernel)), math.prod(given(windows.kernel))
    count = math.prod(given(windows.count))
    channels_first = op.Transpose(response, perm=[1, 0, *range(2, rank + 2)])
    weights = op.Reshape(filters.w, [m, c * taps])
    products = op.Gemm(weights, op.Reshape(channels_first, [m, -1]), transA=1)
    by_image = op.Transpose(op.Reshape(products, [c, taps, -1, count]), perm=[2, 0, 1, 3])
    places = op.CastLike(op.constant(_places(windows), ir.DataType.FLOAT), response)
    return op.reshape_like(op.MatMul(op.Reshape(by_image, [-1, c, taps * count]), places), image)


def _places(windows: Windows) -> npt.NDArray[np.bool_]:
    """[taps·windows, positions]: whether a tap of a window lies at a position."""
    places = np.ones((1, 1, 1), dtype=bool)
    for axis, length in enumerate(given(windows.positions)):
        along = tap_positions(windows, axis).T[:, :, None] == np.arange(length)
        sizes = [a * b for a, b in zip(places.shape, along.shape, strict=True)]
        places = np.einsum("toi,TOI->tToOiI", places, along).reshape(sizes)
    return places.reshape(-1, places.shape[-1])


def gathered(op: Builder, filters: Filters, response: ir.Value, image: ir.Value) -> ir.Value:
    """For windows one position apart: what every position gets, read from the responses around it."""
    (m, c), windows = given(filters.channels), filters.windows
    kernel, rank = given(windows.kernel), len(given(windows.kernel))
    columns = gathered_windows(op, response, _turned(windows), m, last_tap_first=True)
    weights = op.Transpose(filters.w, perm=[*range(2, rank + 2), 0, 1])
    total = op.MatMul(columns, op.Reshape(weights, [math.prod(kernel) * m, c]))
    by_image = op.Reshape(total, [-1, math.prod(given(windows.positions)), c])
    return op.reshape_like(op.Transpose(by_image, perm=[0, 2, 1]), image)


def _turned(windows: Windows) -> Windows:
    """The windows through which positions look at the responses."""
    extent, begin, end = given(windows.extent), given(windows.begin), given(windows.end)
    turned = Windows(windows.count, windows.positions, windows.kernel, windows.strides, windows.dilations)
    return turned.with_padding(
        tuple(x - 1 - b for x, b in zip(extent, begin, strict=True)),
        tuple(x - 1 - e for x, e in zip(extent, end, strict=True)),
    )


def _reaches_out(windows: Windows) -> bool:
    """Whether no window lies in the padding alone, so that the turned ones have no negative padding."""
    padding = given(windows.begin) + given(windows.end)
    return all(p < x for p, x in zip(padding, given(windows.extent) * 2, strict=True))
