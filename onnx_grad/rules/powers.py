"""Powers, exponentials and logarithms: Pow, Sqrt, Reciprocal, Exp, Log, Erf."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number, cast_like
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen


@gradient("Sqrt", convention="Sqrt'(0) = +∞")
def sqrt(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = √x: dx = dy/2y."""
    (y,) = node.outputs
    return dy * (0.5 / y)


@gradient("Reciprocal")
def reciprocal(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = 1/x: dx = −dy·y², in the order (dy·y)·y: y² may be beyond the dtype's range where dx is not."""
    (y,) = node.outputs
    return -(dy * y * y)


@gradient("Exp")
def exp(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = eˣ: dx = dy·y."""
    return dy * node.outputs[0]


@gradient("Log")
def log(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = ln x: dx = dy/x."""
    return dy / node.inputs[0]


@gradient("Erf")
def erf(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = erf(x): dx = dy·2/√π·exp(−x²) = dy·exp(ln(2/√π) − x²), which takes a pass less."""
    (x,) = node.inputs
    return dy * op.Exp(math.log(2.0 / math.sqrt(math.pi)) - op.Mul(x, x))


@gradient("Pow", broadcasts=True, convention="0⁰ and 0ᵉ, e > 0, have a zero derivative by the exponent")
def power(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = xᵉ: dx = dz·e·xᵉ⁻¹, de = dz·z·ln x.

    As in PyTorch: dx is 0 where e = 0 also at x = 0; de is 0 where x = 0 and e ≥ 0, and NaN where x < 0, for
    xᵉ is then defined at isolated exponents only.
    """
    return lambda: _base_cotangent(op, node, dz), lambda: _exponent_cotangent(op, node, dz)


def _base_cotangent(op: Builder, node: ir.Node, dz: ir.Value) -> ir.Value | None:
    """dz·e·xᵉ⁻¹, with the exponent 0 instead of −1 where e = 0: 0·x⁰ is 0 also at x = 0."""
    x, exponent, (z,) = known.operand(node, 0), known.operand(node, 1), node.outputs
    numbers = known.constant(exponent)
    if numbers is None or x.dtype is None:
        base, wide_dz, e = (widen(op, value, x) for value in (x, dz, exponent))
        slope = e * op.Pow(base, e - 1.0 + as_number(op, op.Equal(e, 0.0), e))
        return op.CastLike(wide_dz * slope, x)
    numbers = np.asarray(numbers, dtype=np.float64)
    if not numbers.any():
        return None
    if numbers.size == 1:
        return _cotangent_of_fixed_power(op, x, z, numbers.item(), dz)
    base, wide_dz = widen(op, x, x), widen(op, dz, x)
    dtype = base.dtype or x.dtype
    lowered = op.constant(np.where(numbers == 0, 0, numbers - 1), dtype)
    return op.CastLike(wide_dz * (op.constant(numbers, dtype) * op.Pow(base, lowered)), x)


def _cotangent_of_fixed_power(op: Builder, x: ir.Value, z: ir.Value, e: float, dz: ir.Value) -> ir.Value:
    """dz·e·xᵉ⁻¹ for a known number e ≠ 0; `Pow` is slow on CPUs and is left out where e allows."""
    if e == 1:
        return dz
    if e == 2:
        return dz * (x * 2.0)
    if e == 3:
        return dz * (x * x * 3.0)
    if e == 0.5:
        return dz * (0.5 / z)
    if e == 1.5:
        return dz * (op.Sqrt(x) * 1.5)
    if e == -1:
        return -(dz * z * z)
    # Beyond the range of float16 where dz makes up for it: near zero, with a negative e − 1.
    return op.CastLike(widen(op, dz, x) * (op.Pow(widen(op, x, x), e - 1) * e), x)


def _exponent_cotangent(op: Builder, node: ir.Node, dz: ir.Value) -> ir.Value:
    """dz·z·ln x, with ln 1 where x = 0 ≤ e."""
    x, exponent, (z,) = known.operand(node, 0), known.operand(node, 1), node.outputs
    e = cast_like(op, exponent, x)
    flat = op.And(op.Equal(x, 0.0), op.GreaterOrEqual(e, 0.0))
    return cast_like(op, dz * (z * op.Log(x + as_number(op, flat, x))), exponent)
