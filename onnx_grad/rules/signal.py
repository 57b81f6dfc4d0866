"""Fourier transforms: DFT, STFT, and the windows and weights that go with them.

Both are linear. Complex numbers are pairs on the last axis, with the inner product Re(conj(a)·b): the adjoint
of yₖ = Σ xₙ·exp(−2πikn/N) is xₙ = Σ yₖ·exp(2πikn/N), which is N times the inverse transform. Half precision
is computed in single, as sums are.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, derivative_is_zero, gradient
from onnx_grad.rules.accumulate import add_slices
from onnx_grad.rules.precision import widen

derivative_is_zero("BlackmanWindow", "HammingWindow", "HannWindow", reason="the input is a length")
derivative_is_zero("MelWeightMatrix", reason="frequencies are rounded to bins")

Axis = int | ir.Value


@gradient("DFT")
def dft(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """Y = F·X: dX = Fᵀ·dY, cut or padded with zeros to the length of X, and its real part where X is real."""
    x, length = known.operand(node, 0), known.optional_operand(node, 1)
    inverse, onesided = (node.attributes.get_int(name, 0) for name in ("inverse", "onesided"))
    axis = _axis(op, node)
    dy = widen(op, dy, x)
    if inverse and onesided:
        dx = _adjoint_of_inverse_onesided(op, dy, axis, known.rank(x))
    elif inverse:
        dx = _transform(op, dy, axis) / op.CastLike(_length(op, dy, axis), dy)
    elif onesided:
        points = _length(op, x, axis) if length is None else _as_scalar(op, length)
        dx = _adjoint(op, _fit(op, dy, points, axis), axis)
    else:
        dx = _adjoint(op, dy, axis)
    if length is not None:
        dx = _fit(op, dx, _length(op, x, axis), axis)
    return op.CastLike(_as_real_as(op, x, dx), x)


@gradient("STFT")
def stft(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = F·(window·frame) for each frame of the signal: frames are added up, windows summed over frames."""
    signal, step = known.operand(node, 0), known.operand(node, 1)
    window, frame_length = known.optional_operand(node, 2), known.optional_operand(node, 3)
    length = _frame_length(op, signal, window, frame_length)
    dy = widen(op, dy, signal)
    onesided = node.attributes.get_int("onesided", 1)
    dframes = _as_real_as(op, signal, _adjoint(op, _fit(op, dy, length, 2) if onesided else dy, 2))
    starts = op.Range(0, op.Gather(op.Shape(dy), 1), 1) * op.Cast(step, to=ir.DataType.INT64)
    positions = op.Unsqueeze(starts, [1]) + op.Range(0, length, 1)

    def dsignal() -> ir.Value:
        windowed = dframes
        if window is not None:
            windowed = dframes * op.Unsqueeze(widen(op, window, signal), [1])
        samples = op.Transpose(windowed, perm=[1, 2, 0, 3])
        zeros = op.Transpose(op.zeros_like(widen(op, signal, signal)), perm=[1, 0, 2])
        total = add_slices(op, samples, op.Unsqueeze(positions, [2]), zeros)
        return op.CastLike(op.Transpose(total, perm=[1, 0, 2]), signal)

    def dwindow() -> ir.Value:
        frames = op.Gather(widen(op, signal, signal), positions, axis=1)
        return op.CastLike(op.ReduceSum(dframes * frames, [0, 1, 3], keepdims=0), signal)

    return (dsignal,) if window is None else (dsignal, None, dwindow)


def _transform(op: Builder, x: ir.Value, axis: Axis, *, inverse: int = 0, onesided: int = 0) -> ir.Value:
    """The DFT of `x`; the axis is an input since opset 20, an attribute before.

    It is never given a length: for one that is no constant, ONNX infers a shape that is wrong.
    """
    if op.opset >= 20:
        return op.DFT(x, None, axis, inverse=inverse, onesided=onesided)
    return op.DFT(x, axis=axis, inverse=inverse, onesided=onesided)


def _adjoint(op: Builder, spectrum: ir.Value, axis: Axis) -> ir.Value:
    """Σ spectrumₖ·exp(2πikn/N)."""
    return _transform(op, spectrum, axis, inverse=1) * op.CastLike(_length(op, spectrum, axis), spectrum)


def _adjoint_of_inverse_onesided(op: Builder, dy: ir.Value, axis: Axis, rank: int | None) -> ir.Value:
    """The one-sided spectrum of dY over N, twice where a bin stands for its mirror image as well."""
    points = _length(op, dy, axis)
    spectrum = _transform(op, dy, axis, onesided=1)
    bins = op.Range(0, points / 2 + 1, 1)
    is_its_own_mirror = op.Or(op.Equal(bins, 0), op.Equal(bins * 2, points))
    weights = (2.0 - op.CastLike(is_its_own_mirror, dy)) / op.CastLike(points, dy)
    axes_after = op.Mod(-1 - _as_value(op, axis), op.Size(op.Shape(dy)))
    ones = op.Expand([1], op.Unsqueeze(axes_after, [0]))
    return spectrum * op.Reshape(weights, op.Concat([-1], ones, axis=0))


def _axis(op: Builder, node: ir.Node) -> Axis:
    if op.opset < 20:
        return node.attributes.get_int("axis", 1)
    given = known.optional_operand(node, 2)
    content = known.constant_integers(given)
    if given is None or content is not None:
        return -2 if content is None else content[0]
    return _as_scalar(op, given)


def _as_scalar(op: Builder, integer: ir.Value) -> ir.Value:
    return op.Reshape(op.Cast(integer, to=ir.DataType.INT64), op.constant([], ir.DataType.INT64))


def _as_value(op: Builder, axis: Axis) -> ir.Value:
    return op.constant(axis, ir.DataType.INT64) if isinstance(axis, int) else axis


def _length(op: Builder, value: ir.Value, axis: Axis) -> ir.Value:
    """The length of `value` along `axis`, an int64 scalar."""
    dims = known.dimensions(value)
    length = dims[axis] if dims is not None and isinstance(axis, int) else None
    if isinstance(length, int):
        return op.constant(length, ir.DataType.INT64)
    return op.Gather(op.Shape(value), axis)


def _frame_length(
    op: Builder, signal: ir.Value, window: ir.Value | None, frame_length: ir.Value | None
) -> ir.Value:
    """The length of a frame, an int64 scalar: as given, that of the window, or that of the signal."""
    if frame_length is not None:
        return _as_scalar(op, frame_length)
    return _length(op, signal, 1) if window is None else _length(op, window, 0)


def _fit(op: Builder, x: ir.Value, length: ir.Value, axis: Axis) -> ir.Value:
    """The first `length` elements along `axis`, with zeros after them where there are fewer."""
    axes, stop = (op.Unsqueeze(value, [0]) for value in (_as_value(op, axis), length))
    return op.Slice(op.Pad(x, op.Concat([0], stop, axis=0), None, axes), [0], stop, axes)


def _as_real_as(op: Builder, x: ir.Value, pairs: ir.Value) -> ir.Value:
    """`pairs`, or their real parts only where `x` has no imaginary ones."""
    dims = known.dimensions(x)
    if dims is not None and dims[-1] == 2:
        return pairs
    return op.Slice(pairs, [0], op.Shape(x, start=-1), [-1])
