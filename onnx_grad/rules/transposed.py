"""The adjoint of convolution: responses spread over their windows, of an image's size."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.rules.filters import Filters, run_time_padding
from onnx_grad.rules.transposed_products import paying_product
from onnx_grad.rules.windows import BEFORE_THE_BEGINNING, TO_THE_END, Windows, given

_FEW_CHANNELS = 4


def transposed_convolution(
    op: Builder, filters: Filters, response: ir.Value, image: ir.Value, begin: ir.Value | None = None
) -> ir.Value:
    """wᵀ ⋆ response: every response spread over its window, times the weights.

    Args:
        op: Builds the nodes.
        filters: The weights [M, C/group, kernel…] and their windows.
        response: One entry per window, [N, M, O…].
        image: A tensor with the sizes of the image, [N, C, I…].
        begin: The padding before the image as a 1-D tensor where it is unknown; `None` for that of `Conv`.

    Returns:
        A value of the shape of `image`.
    """
    windows, product = filters.windows, paying_product(filters)
    if product is not None:
        return product(op, filters, response, image)
    if _flipping_pays(filters):
        return _flipped_convolution(op, filters, response)
    behind = windows.behind
    known_size = behind is not None
    if behind is None and not windows.dense:
        behind = tuple(s - 1 for s in windows.strides or ())
    whole = op.ConvTranspose(
        response,
        filters.w,
        kernel_shape=windows.kernel,
        strides=None if windows.dense else windows.strides,
        dilations=windows.dilations,
        pads=windows.pads,
        output_padding=behind if behind and any(behind) else None,
        group=filters.group,
    )
    return whole if known_size else _cropped(op, filters, whole, response, image, begin)


def _cropped(
    op: Builder,
    filters: Filters,
    whole: ir.Value,
    response: ir.Value,
    image: ir.Value,
    begin: ir.Value | None,
) -> ir.Value:
    """What is left of `whole` in the image's place, which the sizes at run time tell."""
    windows, ends = filters.windows, op.Shape(image, start=2)
    if windows.begin is None:
        if begin is None:
            begin, _ = run_time_padding(op, filters, image, response)
        elif _has_gaps(windows):
            before = op.Max(-begin, 0)
            whole = op.Pad(whole, op.Concat([0, 0], before, [0] * (2 + len(given(windows.strides))), axis=0))
            begin = op.Max(begin, 0)
        starts = op.Concat([0, 0], begin, axis=0)
        return op.Slice(whole, starts, op.Concat([TO_THE_END] * 2, begin + ends, axis=0))
    strided = [axis for axis, s in enumerate(given(windows.strides)) if s > 1]
    if len(strided) < len(given(windows.strides)):
        ends = op.Gather(ends, strided)
    return op.Slice(whole, [0] * len(strided), ends, [axis + 2 for axis in strided])


def _has_gaps(windows: Windows) -> bool:
    """Whether the first window may start behind the first position: its padding is negative."""
    return any(x < s for x, s in zip(given(windows.extent), given(windows.strides), strict=True))


def _flipping_pays(filters: Filters) -> bool:
    """Whether `Conv` with the weights turned round can and should replace `ConvTranspose`.

    Measured with ONNX Runtime 1.32 on AMD EPYC (AVX-512), time of `Conv` / time of `ConvTranspose` on one and
    on two cores, N×C×I → M. Constant weights are turned round when a session is created, not in every run.

    | kernel         | sizes           | constant weights | weights given at run time |
    |----------------|-----------------|------------------|---------------------------|
    | 3×3            | 8×64×32² → 64   | 0.88, 0.79       | 1.05, 1.6                 |
    | 3×3            | 4×256×7² → 256  | 0.72, 0.68       | 2.9, 2.9                  |
    | 3×3            | 8×3×64² → 64    |                  | 3.0                       |
    | 3×3, 4 groups  | 8×64×32² → 64   | 0.90, 0.43       | 1.2, 0.66                 |
    | 3×3, depthwise | 8×128×28²       | 0.14, 0.21       | 0.83, 0.47                |
    | 1×1            | 8×128×28² → 128 | 0.96             | 0.91, 0.79                |
    | 3×3×3          | 2×16×12³ → 16   | 0.92, 0.32       | 0.76, 0.69                |
    """
    windows, channels = filters.windows, filters.channels
    if not windows.dense or windows.begin is None or windows.end is None or windows.extent is None:
        return False
    if any(p >= x for p, x in zip(windows.begin + windows.end, windows.extent * 2, strict=True)):
        return False
    if channels is None or (filters.group == 1 and channels[1] <= _FEW_CHANNELS):
        return False
    costs_little = filters.group > 1 or set(windows.extent) == {1} or len(windows.extent) == 3
    return costs_little or filters.are_constant


def _flipped_convolution(op: Builder, filters: Filters, response: ir.Value) -> ir.Value:
    """wᵀ ⋆ response for windows one position apart, as a convolution with the weights turned round."""
    windows = filters.windows
    kernel, extent = given(windows.kernel), given(windows.extent)
    turned = _turned(op, filters, [axis + 2 for axis, taps in enumerate(kernel) if taps > 1])
    padding = given(windows.begin) + given(windows.end)
    pads = [x - 1 - p for x, p in zip(extent * 2, padding, strict=True)]
    return op.Conv(
        response,
        _channels_exchanged(op, filters, turned),
        kernel_shape=kernel,
        dilations=windows.dilations,
        pads=pads if any(pads) else None,
        group=filters.group,
    )


def _turned(op: Builder, filters: Filters, axes: Sequence[int]) -> ir.Value:
    """The weights in reverse along `axes`: one slow `Slice` where it runs once, else a `Gather` for each."""
    turned = filters.w
    if filters.are_constant and axes:
        return op.Slice(turned, [-1] * len(axes), [BEFORE_THE_BEGINNING] * len(axes), axes, [-1] * len(axes))
    for axis in axes:
        turned = op.Gather(turned, list(range(given(filters.windows.kernel)[axis - 2]))[::-1], axis=axis)
    return turned


def _channels_exchanged(op: Builder, filters: Filters, w: ir.Value) -> ir.Value:
    """[group·M, C, kernel…] → [group·C, M, kernel…]."""
    (m, c), kernel, group = given(filters.channels), given(filters.windows.kernel), filters.group
    if m == c == 1:
        return w
    if group == 1:
        return op.Transpose(w, perm=[1, 0, *range(2, len(kernel) + 2)])
    grouped = op.Reshape(w, [group, m, c, *kernel])
    exchanged = op.Transpose(grouped, perm=[0, 2, 1, *range(3, len(kernel) + 3)])
    return op.Reshape(exchanged, [group * c, m, *kernel])
