"""The gradient of convolution weights.

dw[m, c, t] = Σ over n, o of response[n, m, o] · image[n, c, o·stride + t·dilation − begin]

One sum, seven ways to have it computed. The times are those of ONNX Runtime 1.32 on one core of an AMD EPYC
(AVX-512), relative to PyTorch 2.13's own weight gradient, N×C×I → M; on two cores they are about the same.
For depthwise kernels, on one core of an Intel Xeon (AVX-512) that was busy otherwise:

| depthwise kernel | sizes       | `_banded` | `_depthwise` | `_swapped` |
|------------------|-------------|-----------|--------------|------------|
| 3×3              | 8×32×56²    | 4.5       | 3.5          |            |
| 3×3              | 8×128×28²   | 2.3       | 2.8          |            |
| 3×3              | 8×256×14²   | 2.7       | 5.9          |            |
| 3×3              | 8×384×7²    | 2.9       | 8.6          |            |
| 5×5              | 8×96×28²    | 0.39      | 0.57         |            |
| 3×3, stride 2    | 8×64×56²    | 3.1       |              | 5.8        |
| 3×3, stride 2    | 8×128×28²   | 2.6       |              | 5.6        |

For few channels, there:

| kernel        | sizes          | `_patched` | `_swapped` |
|---------------|----------------|------------|------------|
| 3×3           | 32×3×32² → 32  | 1.3        | 2.4        |
| 3×3           | 8×3×64² → 64   | 1.1        | 2.1        |
| 3×3, stride 2 | 1×3×224² → 64  | 0.90       | 1.8        |
| 3×3           | 8×1×28² → 32   | 0.81       | 1.1        |
| 5×5           | 8×1×28² → 32   | 1.2        | 1.3        |
| 7×7, stride 2 | 4×3×112² → 64  | 3.1        | 1.9        |

For the others:

| kernel          | sizes           | `_split` | `_gathered` | `_swapped` | `_pointwise` |
|-----------------|-----------------|----------|-------------|------------|--------------|
| 3×3             | 8×64×32² → 64   | 1.10     | 1.31        | 2.4        |              |
| 3×3             | 4×256×14² → 256 | 1.38     | 1.00        | 1.8        |              |
| 3×3             | 4×256×7² → 256  | 2.5      | 0.88        | 1.9        |              |
| 3×3, dilation 2 | 8×64×32² → 64   | 0.76     | 1.09        | 2.0        |              |
| 3×3, stride 2   | 8×64×32² → 128  |          | 1.09        | 2.1        |              |
| 3×3, 4 groups   | 8×64×32² → 64   | 1.80     | 3.4         | 4.9        |              |
| 3×3, depthwise  | 8×128×28²       | 11       | 119         | 21         |              |
| 3×3             | 8×3×64² → 64    | 2.6      | 2.4         | 1.95       |              |
| 7×7, stride 2   | 8×3×64² → 64    |          | 3.0         | 1.5        |              |
| 1×1             | 8×128×28² → 128 |          | 1.45        | 4.1        | 0.87         |
| 3×3×3           | 2×16×12³ → 16   | 0.68     | 0.74        | 1.5        |              |
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.axes import has_one_image
from onnx_grad.rules.filters import Filters, joined_shape, padded_image
from onnx_grad.rules.gathered import gathered_windows, windows_by_tap
from onnx_grad.rules.windows import TO_THE_END, Sizes, Windows, given, tap_positions

Formula = Callable[[Builder, Filters, ir.Value, ir.Value], ir.Value]

# From the table above, and others like it.
_FEW_CHANNELS = 3
_FEW_TAPS = 32
_ENOUGH_CHANNELS_TO_GATHER = 16
_SMALL_MAP = 450
_RESPONSES_TO_A_WINDOW = 2
_WIDEST_BANDS = 32 * 32
_WIDEST_STRIDED_BANDS = 112 * 56


def filter_gradient(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """The gradient of convolution weights.

    Args:
        op: Builds the nodes.
        filters: The weights [M, C/group, kernel…].
        image: The larger tensor [N, C, I…]: input of `Conv`, cotangent of the output of `ConvTranspose`.
        response: The tensor [N, M, O…] with one entry per window: the other of the two.

    Returns:
        A value of the shape of the weights.
    """
    return _fastest(filters)(op, filters, image, response)


def _fastest(filters: Filters) -> Formula:
    """The formula for what is known of the sizes; `_swapped` is for everything."""
    windows, channels, group = filters.windows, filters.channels, filters.group
    if channels is None or windows.kernel is None or windows.begin is None:
        return _swapped
    if windows.pads is None and math.prod(windows.kernel) == 1:
        return _pointwise
    if group == 1 and channels[1] * math.prod(windows.kernel) <= _FEW_TAPS:
        return _patched
    if group == 1 and channels[1] <= _FEW_CHANNELS:
        return _swapped
    count = windows.count if windows.positions is not None else None
    if channels == (1, 1) and count is not None and _bands_pay(windows):
        return _banded
    if not windows.dense:
        return _gathered if count is not None and group == 1 else _swapped
    if group > 1:
        return _depthwise if channels == (1, 1) else _split
    small = count is not None and math.prod(count) <= _SMALL_MAP
    return _gathered if small and channels[1] >= _ENOUGH_CHANNELS_TO_GATHER else _split


def _bands_pay(windows: Windows) -> bool:
    """Whether bands are few enough for `_banded`, and every tap sees something of the image."""
    width, count = given(windows.positions)[-1], given(windows.count)[-1]
    if width * count > (_WIDEST_BANDS if windows.dense else _WIDEST_STRIDED_BANDS):
        return False
    lengths = enumerate(given(windows.positions))
    return all(
        ((places >= 0) & (places < length)).any(axis=0).all()
        for length, places in ((length, tap_positions(windows, axis)) for axis, length in lengths)
    )


def _pointwise(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """For one tap and no padding: a product over the positions for every image, then the sum of the batch."""
    (m, c), windows, group = given(filters.channels), filters.windows, filters.group
    single = group == 1 and has_one_image(image)
    if not windows.dense:
        image = _every_nth(op, image, given(windows.strides))
    if single:
        return op.reshape_like(_product_of_one(op, response, m, image, c), filters.w)
    groups = [] if group == 1 else [group]
    responses = _flat(op, response, [*groups, m], windows.count)
    images = _flat(op, image, [*groups, c], windows.count)
    products = op.MatMul(responses, _transposed(op, images, len(groups) + 3))
    return op.reshape_like(op.ReduceSum(products, [0], keepdims=0), filters.w)


def _patched(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """For few taps in all: a convolution with one filter for each tap lays out what the windows see."""
    (m, c), windows = given(filters.channels), filters.windows
    kernel, taps = given(windows.kernel), c * math.prod(given(windows.kernel))
    pickers = op.constant(np.eye(taps).reshape(taps, c, *kernel), ir.DataType.FLOAT)
    patches = op.Conv(
        image,
        op.CastLike(pickers, response),
        kernel_shape=kernel,
        strides=None if windows.dense else windows.strides,
        dilations=windows.dilations,
        pads=windows.pads,
    )
    if has_one_image(image):
        return op.reshape_like(_product_of_one(op, response, m, patches, taps), filters.w)
    responses = _flat(op, response, [m], windows.count)
    patches = _flat(op, patches, [taps], windows.count)
    products = op.MatMul(responses, _transposed(op, patches, 3))
    return op.reshape_like(op.ReduceSum(products, [0], keepdims=0), filters.w)


def _split(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """For stride 1: the first axis' taps as shifts of the responses, the others' as shifts of the image.

    All taps are then one product [taps·M, positions]·[positions, taps·C]. It takes two copies for each tap of
    an axis; taking a copy of the image for every tap would be k² of them for a k×k kernel.
    """
    (m, c), group = given(filters.channels), filters.group
    responses = _shifted_responses(op, filters, response)
    images = _shifted_images(op, filters, image)
    rows, columns = len(responses), len(images)
    sizes = _mixed_sizes(filters.windows)
    stacked_responses, stacked_images = _stacked(op, responses), _stacked(op, images)
    if group == 1 and has_one_image(image):
        total = _product_of_one(op, stacked_responses, rows * m, stacked_images, columns * c)
    else:
        flat_responses = _flat(op, stacked_responses, [rows * m], sizes)
        flat_images = _flat(op, stacked_images, [columns * c], sizes)
        products = op.MatMul(flat_responses, _transposed(op, flat_images, 3))
        total = _sum_over_batch(op, products, group, [rows * m, columns * c])
    if group == 1 and filters.windows.rank == 2:
        return op.Transpose(op.Reshape(total, [rows, m, columns, c]), perm=[1, 3, 0, 2])
    total = op.Reshape(total, [group, rows, m, columns, c])
    return op.reshape_like(op.Transpose(total, perm=[0, 2, 4, 1, 3]), filters.w)


def _depthwise(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """`_split` for one channel a group: matrix-vector products, which are much faster than thin matrices."""
    responses = _shifted_responses(op, filters, response)
    images = _shifted_images(op, filters, image)
    rows, columns = len(responses), len(images)
    sizes = _mixed_sizes(filters.windows)
    stacked = _flat(op, _stacked(op, images), [columns], sizes)
    products = [op.MatMul(stacked, _flat(op, r, [], sizes, [1])) for r in responses]
    joined = products[0] if rows == 1 else op.Concat(*products, axis=2)
    total = _sum_over_batch(op, joined, filters.group, [columns, rows])
    return op.reshape_like(_transposed(op, total, 3), filters.w)


def _banded(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """For one channel a group and known sizes: the last axis' taps are bands of a product of matrices.

    Rows of the image times rows of the responses, summed over n and rows,
    have the sum for tap t where i = o·stride + t·dilation − begin. The other axes' taps choose the rows.
    Most of what is multiplied is not needed, but nothing is padded, shifted or copied k times.
    """
    windows, group = filters.windows, filters.group
    rank, kernel = len(given(windows.kernel)), given(windows.kernel)
    width, count = given(windows.positions)[-1], given(windows.count)[-1]
    images, responses = (_first_axes_swapped(op, value, rank) for value in (image, response))
    places = tap_positions(windows, rank - 1)
    bands = (places == np.arange(width)[:, None, None]).reshape(width * count, kernel[-1])
    band = op.CastLike(op.constant(bands, ir.DataType.FLOAT), response)
    totals = []
    for taps in itertools.product(*(_rows_of_taps(windows, axis) for axis in range(rank - 1))):
        seen = op.Reshape(
            _rows(op, images, [seen for seen, _ in taps], given(windows.positions)), [group, -1, width]
        )
        meant = op.Reshape(
            _rows(op, responses, [meant for _, meant in taps], given(windows.count)), [group, -1, count]
        )
        products = op.MatMul(_transposed(op, seen, 3), meant)
        totals.append(op.MatMul(op.Reshape(products, [group, width * count]), band))
    joined = totals[0] if len(totals) == 1 else op.Concat(*totals, axis=1)
    return op.reshape_like(joined, filters.w)


def _rows_of_taps(windows: Windows, axis: int) -> list[tuple[range, range]]:
    """For each tap of an axis, the positions that it sees inside of the image, and the windows it does in."""
    length, stride = given(windows.positions)[axis], given(windows.strides)[axis]
    rows = []
    for places in tap_positions(windows, axis).T:
        (inside,) = np.nonzero((places >= 0) & (places < length))
        first, last = int(inside[0]), int(inside[-1])
        rows.append((range(int(places[first]), int(places[last]) + 1, stride), range(first, last + 1)))
    return rows


def _rows(op: Builder, value: ir.Value, rows: Sequence[range], sizes: Sizes) -> ir.Value:
    """`value` at the given positions of the axes between the first two and the last."""
    for axis, places in enumerate(rows):
        if places != range(sizes[axis]):
            value = op.Gather(value, op.constant(list(places), ir.DataType.INT64), axis=axis + 2)
    return value


def _gathered(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """For known sizes: what all windows see copied side by side, channels last, then products of matrices.

    Where the batch is known, it is laid out tap by tap. Few windows are then brought into the order of the
    weights. With more, there is a product for each tap, and they are: transposed as one matrix, not as one
    for each response, for which threads would wait for each other.
    """
    (m, c), windows = given(filters.channels), filters.windows
    kernel, rank = given(windows.kernel), len(given(windows.kernel))
    if 0 in given(windows.positions):
        return op.zeros_like(filters.w)
    batch, *_ = known.dimensions(image) or (None,)
    if not has_one_image(image):
        response = _first_axes_swapped(op, response, rank)
    responses = op.Reshape(response, [m, -1])
    if not isinstance(batch, int) or batch == 0:
        total = op.MatMul(responses, gathered_windows(op, image, windows, c))
        return op.Transpose(op.Reshape(total, [m, *kernel, c]), perm=[0, rank + 1, *range(1, rank + 1)])
    seen, count, taps = windows_by_tap(op, image, windows, batch, c), given(windows.count), math.prod(kernel)
    if batch * math.prod(count) * _RESPONSES_TO_A_WINDOW <= m:
        columns = op.Transpose(op.Reshape(seen, [taps, -1]), perm=[1, 0])
        return op.reshape_like(op.MatMul(responses, op.Reshape(columns, [-1, c * taps])), filters.w)
    products = op.Reshape(op.MatMul(responses, seen), [*kernel, m, c])
    return op.Transpose(products, perm=[rank, rank + 1, *range(rank)])


def _swapped(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """For any windows, whatever is known: a convolution with batch and channels in each other's place.

    The responses are its weights, the distance of windows its dilation and that of taps its stride.
    """
    windows, group = filters.windows, filters.group
    if windows.begin is None:
        image = padded_image(op, filters, image, response)
    total = op.Conv(
        _batch_and_channels_swapped(op, filters, image),
        _first_axes_swapped(op, response, windows.rank),
        strides=windows.dilations,
        dilations=windows.strides,
        pads=windows.pads,
        group=group,
    )
    if _reaches_beyond_kernel(windows):
        axes = list(range(2, 2 + len(given(windows.strides))))
        kernel = op.Shape(filters.w, start=2) if windows.kernel is None else windows.kernel
        total = op.Slice(total, [0] * len(axes), kernel, axes)
    return _first_axes_swapped(op, total, windows.rank)


def _reaches_beyond_kernel(windows: Windows) -> bool:
    """Whether `_swapped` may give more taps than the kernel has, from positions behind the last window."""
    if windows.dense or windows.strides is None or windows.dilations is None:
        return False
    most = windows.behind or tuple(s - 1 for s in windows.strides)
    return any(b >= d for b, d in zip(most, windows.dilations, strict=True))


def _batch_and_channels_swapped(op: Builder, filters: Filters, image: ir.Value) -> ir.Value:
    """[N, group·C, I…] → [C, group·N, I…]."""
    windows, group = filters.windows, filters.group
    if group == 1:
        return _first_axes_swapped(op, image, windows.rank)
    channels = op.Shape(filters.w, start=1, end=2) if filters.channels is None else filters.channels[1:]
    sizes = windows.positions if windows.begin is not None else None
    positions = op.ReduceProd(op.Shape(image, start=2), keepdims=1) if sizes is None else [math.prod(sizes)]
    grouped = op.Reshape(image, joined_shape(op, op.Shape(image, end=1), [group], channels, positions))
    swapped = op.Transpose(grouped, perm=[2, 1, 0, 3])
    return op.Reshape(swapped, joined_shape(op, channels, [-1], sizes or op.Shape(image, start=2)))


def _first_axes_swapped(op: Builder, value: ir.Value, rank: int | None) -> ir.Value:
    """[A, B, …] → [B, A, …]."""
    if rank is not None:
        return op.Transpose(value, perm=[1, 0, *range(2, rank + 2)])
    positions = op.ReduceProd(op.Shape(value, start=2), keepdims=1)
    flat = op.Reshape(value, op.Concat(op.Shape(value, end=2), positions, axis=0))
    swapped = op.Transpose(flat, perm=[1, 0, 2])
    sizes = [op.Shape(value, start=1, end=2), op.Shape(value, end=1), op.Shape(value, start=2)]
    return op.Reshape(swapped, op.Concat(*sizes, axis=0))


def _shifted_responses(op: Builder, filters: Filters, response: ir.Value) -> list[ir.Value]:
    """The responses, each copy moved to the rows of the image that one tap of the first axis reads."""
    windows = filters.windows
    begin, end, extent = given(windows.begin)[0], given(windows.end)[0], given(windows.extent)[0]
    response = _groups_in_batch(op, response, filters.group, given(filters.channels)[0], windows.count)
    shifts = [tap * given(windows.dilations)[0] for tap in range(given(windows.kernel)[0])]
    others = [0] * (len(given(windows.kernel)) - 1)
    return [
        _resized(op, response, [0, 0, s - begin, *others], [0, 0, extent - 1 - end - s, *others])
        for s in shifts
    ]


def _shifted_images(op: Builder, filters: Filters, image: ir.Value) -> list[ir.Value]:
    """What the taps of all axes but the first see of the image, one copy for each of them."""
    windows = filters.windows
    begin, end, extent = given(windows.begin)[1:], given(windows.end)[1:], given(windows.extent)[1:]
    image = _groups_in_batch(op, image, filters.group, given(filters.channels)[1], windows.positions)
    taps = zip(given(windows.kernel)[1:], given(windows.dilations)[1:], strict=True)
    return [
        _resized(
            op,
            image,
            [0, 0, 0, *(b - s for b, s in zip(begin, shift, strict=True))],
            [0, 0, 0, *(e + s + 1 - x for e, s, x in zip(end, shift, extent, strict=True))],
        )
        for shift in itertools.product(*(range(0, k * d, d) for k, d in taps))
    ]


def _resized(op: Builder, value: ir.Value, before: Sequence[int], behind: Sequence[int]) -> ir.Value:
    """Zeros put on both sides along each axis; where negative, positions cut off."""
    # All axes, even those left alone: ONNX Runtime 1.32 miscompiles `Pad` with axes next to a `Transpose`.
    if not any(before) and not any(behind):
        return value
    return op.Pad(value, [*before, *behind])


def _mixed_sizes(windows: Windows) -> Sizes | None:
    """The image's size along the first axis, and the number of windows along the others."""
    if windows.positions is None or windows.count is None:
        return None
    return windows.positions[:1] + windows.count[1:]


def _flat(
    op: Builder, value: ir.Value, channels: Sequence[int], sizes: Sizes | None, last: Sequence[int] = ()
) -> ir.Value:
    """[N, channels, sizes…] → [N, channels…, the product of the sizes, last…]."""
    if sizes is not None:
        return op.Reshape(value, [0, *channels, math.prod(sizes), *last])
    # Neither -1 nor 0, of which ONNX Runtime makes -1: they stand for nothing in an empty batch.
    positions = op.ReduceProd(op.Shape(value, start=2), keepdims=1)
    return op.Reshape(value, joined_shape(op, op.Shape(value, end=1), channels, positions, last))


def _groups_in_batch(
    op: Builder, value: ir.Value, group: int, channels: int, sizes: Sizes | None
) -> ir.Value:
    """[N, group·channels, …] → [N·group, channels, …]."""
    if group == 1:
        return value
    shape = joined_shape(op, [-1, channels], op.Shape(value, start=2) if sizes is None else sizes)
    return op.Reshape(value, shape)


def _product_of_one(op: Builder, response: ir.Value, rows: int, image: ir.Value, columns: int) -> ir.Value:
    """The product over the positions of a single image: there is no batch to sum over."""
    return op.Gemm(op.Reshape(response, [rows, -1]), op.Reshape(image, [columns, -1]), transB=1)


def _sum_over_batch(op: Builder, products: ir.Value, group: int, sizes: Sequence[int]) -> ir.Value:
    """[N·group, …] → [group, …], without the first axis for one group."""
    if group > 1:
        products = op.Reshape(products, [-1, group, *sizes])
    return op.ReduceSum(products, [0], keepdims=0)


def _stacked(op: Builder, values: Sequence[ir.Value]) -> ir.Value:
    return values[0] if len(values) == 1 else op.Concat(*values, axis=1)


def _every_nth(op: Builder, image: ir.Value, steps: Sizes) -> ir.Value:
    """The positions of the image where windows of one tap lie."""
    axes = [axis for axis, step in enumerate(steps) if step > 1]
    ends = [TO_THE_END] * len(axes)
    return op.Slice(image, [0] * len(axes), ends, [a + 2 for a in axes], [steps[a] for a in axes])


def _transposed(op: Builder, value: ir.Value, rank: int) -> ir.Value:
    """The last two axes exchanged."""
    return op.Transpose(value, perm=[*range(rank - 2), rank - 1, rank - 2])
