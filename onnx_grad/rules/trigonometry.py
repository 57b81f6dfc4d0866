"""Circular and hyperbolic functions and their inverses.

Where a function lacks a kernel for CUDA or float64, its derivative is written without it.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.precision import widen


@gradient("Sin")
def sin(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = sin x: dx = dy·cos x."""
    return dy * op.Cos(node.inputs[0])


@gradient("Cos")
def cos(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = cos x: dx = −dy·sin x."""
    return -(dy * op.Sin(node.inputs[0]))


@gradient("Tan")
def tan(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = tan x: dx = dy·(1 + y²)."""
    (y,) = node.outputs
    return dy + dy * y * y


@gradient("Asin", convention="Asin'(±1) = +∞")
def asin(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = arcsin x: dx = dy/√(1 − x²)."""
    return dy / op.Sqrt(_one_minus_square(op, node.inputs[0]))


@gradient("Acos", convention="Acos'(±1) = −∞")
def acos(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = arccos x: dx = −dy/√(1 − x²)."""
    return -(dy / op.Sqrt(_one_minus_square(op, node.inputs[0])))


@gradient("Atan")
def atan(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = arctan x: dx = dy/(1 + x²)."""
    return op.CastLike(widen(op, dy, dy) / _one_plus_square(op, node), dy)


@gradient("Sinh")
def sinh(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = sinh x: dx = dy·cosh x.

    cosh x = a² + (1/2a)² with a = √½·exp(x/2), which overflows no sooner than sinh x does.
    """
    a = op.Exp(op.Mul(node.inputs[0], 0.5)) * math.sqrt(0.5)
    b = 0.5 / a
    return dy * (a * a + b * b)


@gradient("Cosh")
def cosh(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = cosh x: dx = dy·sinh x = dy·y·tanh x."""
    return dy * (node.outputs[0] * op.Tanh(node.inputs[0]))


@gradient("Asinh")
def asinh(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = arsinh x: dx = dy/√(1 + x²)."""
    return op.CastLike(widen(op, dy, dy) / op.Sqrt(_one_plus_square(op, node)), dy)


@gradient("Acosh", convention="Acosh'(1) = +∞")
def acosh(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = arcosh x: dx = dy/√(x² − 1), with (x − 1)(x + 1) for what would cancel near 1."""
    x = known.operand(node, 0)
    wide = widen(op, x, x)
    return op.CastLike(widen(op, dy, dy) / op.Sqrt((wide - 1.0) * (wide + 1.0)), dy)


@gradient("Atanh", convention="Atanh'(±1) = +∞")
def atanh(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = artanh x: dx = dy/(1 − x²)."""
    return dy / _one_minus_square(op, node.inputs[0])


def _one_plus_square(op: Builder, node: ir.Node) -> ir.Value:
    """1 + x² in single at least: in float16 it overflows where x is above 255."""
    x = known.operand(node, 0)
    wide = widen(op, x, x)
    return 1.0 + wide * wide


def _one_minus_square(op: Builder, x: ir.Value | None) -> ir.Value:
    """1 − x² as (1 − x)(1 + x), which does not cancel near ±1."""
    return op.Sub(1.0, x) * op.Add(x, 1.0)
