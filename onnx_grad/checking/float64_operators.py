"""Operators in float64, where the ONNX reference evaluator computes in float32, wrongly or slowly.

They are handed to `onnx.reference.ReferenceEvaluator` as `new_ops`, in place of its own. What they compute
is the operator's specification.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
from onnx.reference.op_run import OpRun

from onnx_grad.checking.float64_recurrences import CausalConvWithState, LinearAttention
from onnx_grad.checking.float64_scan import Scan
from onnx_grad.checking.float64_windows import AveragePool, Conv, ConvTranspose, LpPool, MaxPool

Array: TypeAlias = np.ndarray[Any, Any]

# What the reference evaluator computes in float32 whatever the input is, and that has no replacement here.
FLOAT32_INSIDE = frozenset({"AffineGrid", "GridSample"})

# What can be computed in float64 here, although the specification does not allow that.
WITHOUT_RESTRICTION = frozenset(
    "CausalConvWithState Celu DequantizeLinear LayerNormalization LinearAttention RotaryEmbedding".split()
)

_erf = np.vectorize(math.erf, otypes=[np.float64])


class Erf(OpRun):
    """y = erf(x); the reference evaluator rounds it to float32."""

    def _run(self, x: Array) -> tuple[Array]:
        return (_erf(x).astype(x.dtype),)


class Gelu(OpRun):
    """y = x Φ(x), Φ exact or by tanh; the reference evaluator runs its function body with its own Erf."""

    def _run(self, x: Array, approximate: str | None = None) -> tuple[Array]:
        if approximate == "tanh":
            inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)
            return (0.5 * x * (1.0 + np.tanh(inner)),)
        return ((0.5 * x * (1.0 + _erf(x / math.sqrt(2.0)))).astype(x.dtype),)


class Pad(OpRun):
    """Elements added at the ends of axes, or taken away, which the reference evaluator cannot."""

    def _run(
        self,
        x: Array,
        pads: Sequence[int] | None = None,
        value: Array | float | None = None,
        axes: Sequence[int] | None = None,
        mode: str | None = None,
    ) -> tuple[Array]:
        assert pads is not None
        named = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
        amounts = [(0, 0)] * x.ndim
        for axis, before, after in zip(named, pads[: len(named)], pads[len(named) :], strict=True):
            amounts[axis] = (int(before), int(after))
        if mode in (None, "constant"):
            return (_in_a_frame(x, amounts, 0 if value is None else np.asarray(value).item()),)
        kept = tuple(
            slice(max(0, -before), n - max(0, -after))
            for (before, after), n in zip(amounts, x.shape, strict=True)
        )
        added = [(max(0, before), max(0, after)) for before, after in amounts]
        return (np.pad(x[kept], added, mode=cast("Any", mode)),)


class Softmax(OpRun):
    """y = exp(x) / Σ exp(x); before opset 13 the sum is over the axis and all behind it."""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        del attributes
        axes = _softmax_axes(self, x)
        exponential = np.exp(x - x.max(axis=axes, keepdims=True))
        return (exponential / exponential.sum(axis=axes, keepdims=True),)


class LogSoftmax(OpRun):
    """y = x - log Σ exp(x), over the axes of `Softmax`."""

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        del attributes
        axes = _softmax_axes(self, x)
        shifted = x - x.max(axis=axes, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(axis=axes, keepdims=True)),)


class LayerNormalization(OpRun):
    """y = scale (x - mean) r + bias with r = 1 / sqrt(variance + epsilon), over the axes from `axis` on.

    The reference evaluator refuses every `stash_type` but float32.
    """

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array | None = None,
        axis: int | None = None,
        epsilon: float | None = None,
        stash_type: int | None = None,
    ) -> tuple[Array, ...]:
        del stash_type
        axes = tuple(range((-1 if axis is None else axis) % x.ndim, x.ndim))
        mean = x.mean(axis=axes, keepdims=True)
        variance = x.var(axis=axes, keepdims=True)
        r = 1.0 / np.sqrt(variance + (1e-5 if epsilon is None else epsilon))
        y = (x - mean) * r * scale
        return (y if bias is None else y + bias, mean, r)[: len(self.onnx_node.output)]


class MeanVarianceNormalization(OpRun):
    """y = (x - mean) / (deviation + 1e-9); the function body is of float32 alone."""

    def _run(self, x: Array, axes: Sequence[int] | None = None) -> tuple[Array]:
        over = tuple(axes or (0, 2, 3))
        mean = x.mean(axis=over, keepdims=True)
        variance = (x * x).mean(axis=over, keepdims=True) - mean * mean
        return ((x - mean) / (np.sqrt(variance) + 1e-9),)


class BatchNormalization(OpRun):
    """y = scale (x - mean) / sqrt(variance + epsilon) + bias, per channel.

    Before opset 14 the reference evaluator always takes the statistics of the batch; they are wanted only
    where `training_mode` is set or, before there was that, where the running statistics are outputs.
    """

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        epsilon: float | None = None,
        momentum: float | None = None,
        training_mode: int | None = None,
        spatial: int | None = None,
    ) -> tuple[Array, ...]:
        del spatial  # tells from opset 7 on what the shape of `scale` tells as well
        epsilon = 1e-5 if epsilon is None else epsilon
        momentum = 0.9 if momentum is None else momentum
        count = len(self.onnx_node.output)
        running: tuple[Array, ...] = ()
        if training_mode or count > 1:
            axes = tuple(axis for axis in range(x.ndim) if axis == 0 or axis > scale.ndim)
            batch = (x.mean(axis=axes), x.var(axis=axes))
            old = (mean, variance)
            running = tuple(a * momentum + b * (1.0 - momentum) for a, b in zip(old, batch, strict=True))
            mean, variance = batch
        shape = (1, *scale.shape, *[1] * (x.ndim - 1 - scale.ndim))
        factor = scale / np.sqrt(variance + epsilon)
        y = x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
        return (y, *running, mean, variance)[:count]


class LRN(OpRun):
    """y = x / (bias + alpha / size Σ x²)^beta, the sum over `size` channels around each.

    The reference evaluator takes the size of the batch for the number of channels.
    """

    def _run(
        self,
        x: Array,
        alpha: float | None = None,
        beta: float | None = None,
        bias: float | None = None,
        size: int | None = None,
    ) -> tuple[Array]:
        assert size is not None
        alpha, beta = 1e-4 if alpha is None else alpha, 0.75 if beta is None else beta
        before, after = (size - 1) // 2, size // 2
        squares = np.pad(x * x, [(0, 0), (before, after), *[(0, 0)] * (x.ndim - 2)])
        total = np.sum([squares[:, i : i + x.shape[1]] for i in range(size)], axis=0)
        return (x / ((1.0 if bias is None else bias) + alpha / size * total) ** beta,)


class LpNormalization(OpRun):
    """y = x / ‖x‖ₚ along an axis, p = 1 or 2; the reference evaluator leaves out the absolute value."""

    def _run(self, x: Array, axis: int | None = None, p: int | None = None) -> tuple[Array]:
        axis = -1 if axis is None else axis
        if p == 1:
            norm = np.abs(x).sum(axis=axis, keepdims=True)
        else:
            norm = np.sqrt(np.square(x).sum(axis=axis, keepdims=True))
        return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


class DequantizeLinear(OpRun):
    """y = (x - zero_point) scale, by tensor, by slice along an axis, or by block along it."""

    def _run(
        self,
        x: Array,
        scale: Array,
        zero_point: Array | None = None,
        axis: int | None = None,
        block_size: int | None = None,
        output_dtype: int | None = None,
    ) -> tuple[Array]:
        del output_dtype
        axis, block_size = 1 if axis is None else axis, block_size or 0
        wide = x.astype(scale.dtype)
        if zero_point is not None:
            wide = wide - _by_element(zero_point.astype(scale.dtype), x, axis, block_size)
        return (wide * _by_element(scale, x, axis, block_size),)


REPLACEMENTS: tuple[type[OpRun], ...] = (
    Erf,
    Gelu,
    Pad,
    Softmax,
    LogSoftmax,
    BatchNormalization,
    LRN,
    LpNormalization,
    LayerNormalization,
    MeanVarianceNormalization,
    Conv,
    ConvTranspose,
    AveragePool,
    MaxPool,
    LpPool,
    DequantizeLinear,
    CausalConvWithState,
    LinearAttention,
    Scan,
)


def _in_a_frame(x: Array, amounts: Sequence[tuple[int, int]], fill: float) -> Array:
    """`x` moved along each axis; more may be taken away at one end than there is, and added at the other."""
    sizes = [n + before + after for (before, after), n in zip(amounts, x.shape, strict=True)]
    first = [max(0, -before) for before, _ in amounts]
    last = [max(i, min(n, n + after)) for (_, after), n, i in zip(amounts, x.shape, first, strict=True)]
    y = np.full(sizes, fill, x.dtype)
    target = tuple(
        slice(i + before, j + before) for (before, _), i, j in zip(amounts, first, last, strict=True) if j > i
    )
    if len(target) == x.ndim:
        y[target] = x[tuple(map(slice, first, last))]
    return y


def _softmax_axes(operator: OpRun, x: Array) -> tuple[int, ...]:
    flattening = operator.run_params["opsets"][""] < 13
    given = [attribute.i for attribute in operator.onnx_node.attribute if attribute.name == "axis"]
    axis = given[0] if given else (1 if flattening else -1)
    axis %= max(x.ndim, 1)
    return tuple(range(axis, x.ndim)) if flattening else (axis,)


def _by_element(parameter: Array, x: Array, axis: int, block_size: int) -> Array:
    """A scale or zero point in a shape that broadcasts to that of `x`."""
    if parameter.size == 1:
        return parameter.reshape(())
    if block_size:
        return np.repeat(parameter, block_size, axis=axis).take(range(x.shape[axis]), axis=axis)
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
