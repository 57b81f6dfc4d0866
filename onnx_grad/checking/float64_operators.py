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

from onnx_grad.checking.float64_windows import AveragePool, Conv, ConvTranspose, MaxPool

Array: TypeAlias = np.ndarray[Any, Any]

# What the reference evaluator computes in float32 whatever the input is, and that has no replacement here.
FLOAT32_INSIDE = frozenset(
    {"AffineGrid", "CausalConvWithState", "DequantizeLinear", "GridSample", "LinearAttention"}
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
        kept = tuple(
            slice(max(0, -before), n - max(0, -after))
            for (before, after), n in zip(amounts, x.shape, strict=True)
        )
        added = [(max(0, before), max(0, after)) for before, after in amounts]
        if mode in (None, "constant"):
            fill = 0 if value is None else np.asarray(value).item()
            return (np.pad(x[kept], added, constant_values=fill),)
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


REPLACEMENTS: tuple[type[OpRun], ...] = (
    Erf,
    Gelu,
    Pad,
    Softmax,
    LogSoftmax,
    BatchNormalization,
    LRN,
    LpNormalization,
    MeanVarianceNormalization,
    Conv,
    ConvTranspose,
    AveragePool,
    MaxPool,
)


def _softmax_axes(operator: OpRun, x: Array) -> tuple[int, ...]:
    flattening = operator.run_params["opsets"][""] < 13
    given = [attribute.i for attribute in operator.onnx_node.attribute if attribute.name == "axis"]
    axis = given[0] if given else (1 if flattening else -1)
    axis %= max(x.ndim, 1)
    return tuple(range(axis, x.ndim)) if flattening else (axis,)
