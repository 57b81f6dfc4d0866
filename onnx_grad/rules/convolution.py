"""Convolution: Conv and ConvTranspose, in any number of dimensions.

Both tie an image to responses through weights [M, C/group, kernel…]: `Conv` computes the responses y = w ⋆ x,
`ConvTranspose` its adjoint, the image y = wᵀ ⋆ x. So each is the other's input gradient, and the gradient of
the weights is the same for both. No size has to be known: not the batch, not the image, not the kernel, not
even the rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.axes import sum_by_channel
from onnx_grad.rules.filter_gradient import filter_gradient
from onnx_grad.rules.filters import Filters, padded_image
from onnx_grad.rules.transposed import transposed_convolution
from onnx_grad.rules.windows import (
    Sizes,
    Windows,
    auto_pad,
    explicit_padding,
    same_padding,
    sizes_attribute,
    spatial_rank,
    spatial_sizes,
)


@gradient("Conv")
def conv(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = w ⋆ x + b: dx = wᵀ ⋆ dy, db = Σ dy, dw[m, c, t] = Σ dy[n, m, o]·x[n, c, tap t of window o]."""
    x, filters = known.operand(node, 0), _filters(node, _conv_windows(node))
    cotangents = (
        lambda: transposed_convolution(op, filters, dy, x),
        lambda: filter_gradient(op, filters, image=x, response=dy),
        lambda: sum_by_channel(op, dy, node.outputs[0]),
    )
    return cotangents[: len(node.inputs)]


@gradient("ConvTranspose")
def conv_transpose(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = wᵀ ⋆ x + b: dx = w ⋆ dy, db = Σ dy, and dw is that of `Conv` with image dy and responses x."""
    x, filters = known.operand(node, 0), _filters(node, _conv_transpose_windows(node))
    cotangents = (
        lambda: _convolution(op, filters, dy, x),
        lambda: filter_gradient(op, filters, image=dy, response=x),
        lambda: sum_by_channel(op, dy, node.outputs[0]),
    )
    return cotangents[: len(node.inputs)]


def _filters(node: ir.Node, windows: Windows) -> Filters:
    return Filters(known.operand(node, 1), windows, node.attributes.get_int("group", 1))


def _conv_windows(node: ir.Node) -> Windows:
    """The windows through which a `Conv` node reads its input."""
    x, w = known.operand(node, 0), known.operand(node, 1)
    rank = spatial_rank(node)
    windows = Windows(
        positions=spatial_sizes(x),
        count=spatial_sizes(node.outputs[0]),
        kernel=sizes_attribute(node, "kernel_shape", 0, None) or spatial_sizes(w),
        strides=sizes_attribute(node, "strides", 1, rank),
        dilations=sizes_attribute(node, "dilations", 1, rank),
        odd_at_begin=auto_pad(node) == "SAME_LOWER",
    )
    if auto_pad(node).startswith("SAME"):
        total = same_padding(windows)
        return windows.with_total_padding(None if total is None else tuple(max(0, t) for t in total))
    return windows.with_padding(*explicit_padding(node, rank))


def _conv_transpose_windows(node: ir.Node) -> Windows:
    """The windows of the `Conv` whose adjoint a `ConvTranspose` node is: its output is their image."""
    x, w = known.operand(node, 0), known.operand(node, 1)
    rank, output_shape = spatial_rank(node), sizes_attribute(node, "output_shape", 0, None)
    windows = Windows(
        # Onnx infers nonsense for an `output_shape` smaller than the input.
        positions=output_shape or spatial_sizes(node.outputs[0]),
        count=spatial_sizes(x),
        kernel=sizes_attribute(node, "kernel_shape", 0, None) or spatial_sizes(w),
        strides=sizes_attribute(node, "strides", 1, rank),
        dilations=sizes_attribute(node, "dilations", 1, rank),
        spare=sizes_attribute(node, "output_padding", 0, None) or (),
        odd_at_begin=auto_pad(node) != "SAME_UPPER",
    )
    if output_shape is not None or auto_pad(node).startswith("SAME"):
        return windows.with_total_padding(_transposed_padding(windows, output_shape))
    return windows.with_padding(*explicit_padding(node, rank))


def _transposed_padding(windows: Windows, output_shape: Sizes | None) -> Sizes | None:
    """The total padding that leaves `output_shape` of the image, by default `stride` positions a window."""
    if windows.extent is None or windows.strides is None:
        return None
    spare = windows.spare or (0,) * len(windows.extent)
    reach = [x + p for x, p in zip(windows.extent, spare, strict=True)]
    if output_shape is None:
        return tuple(max(0, r - s) for r, s in zip(reach, windows.strides, strict=True))
    if windows.count is None:
        return None
    axes = zip(windows.count, windows.strides, reach, output_shape, strict=True)
    return tuple(max(0, (o - 1) * s + r - i) for o, s, r, i in axes)


def _convolution(op: Builder, filters: Filters, image: ir.Value, response: ir.Value) -> ir.Value:
    """w ⋆ image, of the size of `response`."""
    windows = filters.windows
    if windows.begin is None:
        image = padded_image(op, filters, image, response)
    return op.Conv(
        image,
        filters.w,
        kernel_shape=windows.kernel,
        strides=None if windows.dense else windows.strides,
        dilations=windows.dilations,
        pads=windows.pads,
        group=filters.group,
    )
