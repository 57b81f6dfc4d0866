"""Arithmetic with broadcasting: Add, Sub, Mul, Div, Neg, Sum, Mean, Mod, and Abs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient


@gradient("Add", broadcasts=True)
def add(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = a + b: da = dz, db = dz."""
    return dz, dz


@gradient("Sub", broadcasts=True)
def sub(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = a − b: da = dz, db = −dz."""
    return dz, lambda: -dz


@gradient("Mul", broadcasts=True)
def mul(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = a·b: da = dz·b, db = dz·a."""
    a, b = node.inputs
    return lambda: dz * b, lambda: dz * a


@gradient("Div", broadcasts=True)
def div(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = a/b: da = dz/b, db = −z·dz/b."""
    (_, b), (z,) = node.inputs, node.outputs
    return lambda: dz / b, lambda: -(z * (dz / b))


@gradient("Neg")
def neg(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = −x: dx = −dy."""
    return -dy


@gradient("Sum", broadcasts=True)
def sum_of_operands(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = Σᵢ xᵢ: dxᵢ = dy."""
    return [dy] * len(node.inputs)


@gradient("Mean", broadcasts=True)
def mean_of_operands(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = (Σᵢ xᵢ)/n: dxᵢ = dy/n."""
    count = len(node.inputs)
    return [dy if count == 1 else dy / float(count)] * count


@gradient("Mod", broadcasts=True, convention="the whole quotient counts as constant where it jumps")
def mod(op: Builder, node: ir.Node, dz: ir.Value) -> Sequence[InputCotangent]:
    """z = a − q·b, q the whole quotient: da = dz, db = −q·dz; at a jump of q its value there is taken.

    q is (a − z)/b up to rounding, whether the operator floors (fmod = 0) or truncates (fmod = 1).
    """
    (a, b), (z,) = node.inputs, node.outputs
    return dz, lambda: -(dz * op.Floor(op.Sub(a, z) / b + 0.5))


@gradient("Abs", convention="Abs'(0) = 0")
def absolute(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = |x|: dx = dy·sign(x), 0 at 0."""
    return dy * op.Sign(node.inputs[0])
