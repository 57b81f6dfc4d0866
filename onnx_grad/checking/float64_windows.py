"""Convolutions and pooling in float64 for the ONNX reference evaluator, whose own are ten times slower."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.reference.op_run import OpRun

from onnx_grad.sessions import create_session

Array: TypeAlias = np.ndarray[Any, Any]
Pads: TypeAlias = "list[tuple[int, int]]"


class Conv(OpRun):
    """Convolution of any rank, with groups, strides, dilations and automatic padding."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        del kernel_shape
        rank, groups = x.ndim - 2, group or 1
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        padding = _padding(x.shape[2:], w.shape[2:], strides, dilations, auto_pad, pads)
        x = _padded(x, padding)
        batch, kernel = x.shape[0], w.shape[2:]
        space = [
            (n - (k - 1) * d - 1) // s + 1
            for n, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        kernels = w.reshape(groups, w.shape[0] // groups, w.shape[1], *kernel)
        y = np.zeros((batch, groups, w.shape[0] // groups, math.prod(space)), x.dtype)
        for position in np.ndindex(*kernel):
            moved = x[_strided(position, dilations, space, strides)]
            y += kernels[(..., *position)] @ moved.reshape(batch, groups, w.shape[1], -1)
        y = y.reshape(batch, w.shape[0], *space)
        return (y if b is None else y + _per_channel(b, rank),)


class ConvTranspose(OpRun):
    """Transposed convolution: each input element adds its weighted kernel to the output."""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        del kernel_shape
        rank, groups = x.ndim - 2, group or 1
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        extra = output_padding or [0] * rank
        kernel, space, batch = w.shape[2:], x.shape[2:], x.shape[0]
        full = [
            (n - 1) * s + (k - 1) * d + 1 + e
            for n, s, k, d, e in zip(space, strides, kernel, dilations, extra, strict=True)
        ]
        padding = _transposed_padding(space, full, strides, auto_pad, output_shape, pads)
        kernels = w.reshape(groups, w.shape[0] // groups, -1).transpose(0, 2, 1)
        parts = kernels @ x.reshape(batch, groups, w.shape[0] // groups, -1)
        parts = parts.reshape(batch, -1, *kernel, *space)
        y = np.zeros((batch, parts.shape[1], *full), x.dtype)
        for position in np.ndindex(*kernel):
            target = _strided(position, dilations, space, strides)
            y[target] += parts[(slice(None), slice(None), *position)]
        y = _padded(y, [(-before, -after) for before, after in padding])
        return (y if b is None else y + _per_channel(b, rank),)


class AveragePool(OpRun):
    """Mean over each window, of all its elements or of those inside the input."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        assert kernel_shape is not None
        windows = _Windows(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
        inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
        return (windows.sums(x) / windows.sums(inside, fill=1.0 if count_include_pad else 0.0),)


class LpPool(OpRun):
    """The p-norm of each window, of zeros outside the input; the reference evaluator weights the borders."""

    def _run(
        self,
        x: Array,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sequence[int] | None = None,
        kernel_shape: Sequence[int] | None = None,
        p: int | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        assert kernel_shape is not None
        p = 2 if p is None else p
        windows = _Windows(x, kernel_shape, auto_pad, ceil_mode, dilations, pads, strides)
        return (windows.sums(np.abs(x) ** p) ** (1.0 / p),)


class MaxPool(OpRun):
    """Maximum over each window by ONNX Runtime, which has the float64 kernel."""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array, ...]:
        del attributes
        if not hasattr(self, "session"):
            self.session = self._compiled(x)
        return tuple(self.session.run(None, {self.onnx_node.input[0]: x}))

    def _compiled(self, x: Array) -> Any:
        node = onnx.NodeProto()
        node.CopyFrom(self.onnx_node)
        element = onnx.helper.np_dtype_to_tensor_dtype(x.dtype)
        tensor = onnx.helper.make_tensor_value_info
        indices = [tensor(name, onnx.TensorProto.INT64, None) for name in node.output[1:]]
        graph = onnx.helper.make_graph(
            [node],
            "max_pool",
            [tensor(node.input[0], element, [None] * x.ndim)],
            [tensor(node.output[0], element, None), *indices],
        )
        opset = onnx.helper.make_opsetid("", self.run_params["opsets"][""])
        model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
        return create_session(model)


class _Windows:
    """The windows of a pooling operator over the spatial axes of `x`."""

    def __init__(
        self,
        x: Array,
        kernel: Sequence[int],
        auto_pad: str | None,
        ceil_mode: int | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        strides: Sequence[int] | None,
    ) -> None:
        space, ones = x.shape[2:], [1] * len(kernel)
        self.kernel, self.strides, self.dilations = kernel, strides or ones, dilations or ones
        self.padding = _padding(space, kernel, self.strides, self.dilations, auto_pad, pads)
        self.overhang = [(0, 0)] * len(kernel)
        if ceil_mode:
            reach = [(k - 1) * d + 1 for k, d in zip(kernel, self.dilations, strict=True)]
            self.overhang = [
                _overhang(n, before, after, s, r)
                for n, (before, after), s, r in zip(space, self.padding, self.strides, reach, strict=True)
            ]

    def sums(self, x: Array, fill: float = 0.0) -> Array:
        """The sum over each window; padding counts as `fill`, and what is behind it as 0."""
        x = _padded(_padded(x, self.padding, fill), self.overhang)
        windows = _windows(x, self.kernel, self.strides, self.dilations)
        return np.asarray(windows.sum(axis=tuple(range(-len(self.kernel), 0))))


def _per_channel(b: Array, rank: int) -> Array:
    return b.reshape(-1, *[1] * rank)


def _padded(x: Array, padding: Pads, fill: float = 0.0) -> Array:
    """`x` with elements added before and after each spatial axis; negative amounts take some away."""
    x = np.pad(x, [(0, 0), (0, 0), *((max(0, a), max(0, z)) for a, z in padding)], constant_values=fill)
    kept = (slice(max(0, -a), n - max(0, -z)) for (a, z), n in zip(padding, x.shape[2:], strict=True))
    return x[(slice(None), slice(None), *kept)]


def _strided(
    position: Sequence[int], dilations: Sequence[int], count: Sequence[int], strides: Sequence[int]
) -> tuple[slice, ...]:
    """What one kernel element meets: every stride-th element, as many as there are windows."""
    spatial = (
        slice(p * d, p * d + (n - 1) * s + 1, s)
        for p, d, n, s in zip(position, dilations, count, strides, strict=True)
    )
    return (slice(None), slice(None), *spatial)


def _windows(x: Array, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> Array:
    """A view of shape (batch, channel, out..., kernel...) on the windows that a kernel passes over."""
    rank = len(kernel)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    axes = tuple(range(2, 2 + rank))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=axes)
    every = [slice(None, None, step) for step in (*strides, *dilations)]
    return view[(slice(None), slice(None), *every)]


def _padding(
    space: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    auto_pad: str | None,
    pads: Sequence[int] | None,
) -> Pads:
    """Padding before and after each spatial axis; SAME keeps ceil(size / stride) outputs."""
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        needed = [
            max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
            for n, s, k, d in zip(space, strides, kernel, dilations, strict=True)
        ]
        return [_halves(n, more_after=auto_pad == "SAME_UPPER") for n in needed]
    if auto_pad == "VALID" or not pads:
        return [(0, 0)] * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _transposed_padding(
    space: Sequence[int],
    full: Sequence[int],
    strides: Sequence[int],
    auto_pad: str | None,
    output_shape: Sequence[int] | None,
    pads: Sequence[int] | None,
) -> Pads:
    """What to take away before and after each spatial axis of the full output."""
    rank = len(space)
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    if output_shape or same:
        target = output_shape or [n * s for n, s in zip(space, strides, strict=True)]
        surplus = [f - t for f, t in zip(full, target, strict=True)]
        return [_halves(n, more_after=auto_pad == "SAME_UPPER") for n in surplus]
    if auto_pad == "VALID" or not pads:
        return [(0, 0)] * rank
    return list(zip(pads[:rank], pads[rank:], strict=True))


def _halves(total: int, *, more_after: bool) -> tuple[int, int]:
    smaller = total // 2
    return (smaller, total - smaller) if more_after else (total - smaller, smaller)


def _overhang(size: int, before: int, after: int, stride: int, reach: int) -> tuple[int, int]:
    """How far the last window of `ceil_mode` reaches over the end of the padded input."""
    padded = size + before + after
    count = math.ceil((padded - reach) / stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    return 0, max(0, (count - 1) * stride + reach - padded)
