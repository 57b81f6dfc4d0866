"""Norms y = (Σ|x|ᵖ)^1/p over regions of a tensor, of which pooling has two kinds."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.builder import Builder


def lp_factors(op: Builder, x: ir.Value, y: ir.Value, p: int) -> tuple[ir.Value, ir.Value | None]:
    """The derivative ∂y/∂x = x·|x|ᵖ⁻² · y¹⁻ᵖ as a factor of the shape of `x` and one of that of `y`.

    Where y = 0 every x is 0, and the derivative is taken to be 0.

    Args:
        op: Builds the nodes.
        x: The tensor.
        y: Its norms.
        p: The order of the norm, at least 1.

    Returns:
        Both factors; `None` for the second one where it is 1.
    """
    if p == 1:
        return op.Sign(x), None
    not_zero = y + op.CastLike(op.Equal(y, 0.0), y)
    if p == 2:
        return x, op.Reciprocal(not_zero)
    return x * op.Pow(op.Abs(x), float(p - 2)), op.Pow(not_zero, float(1 - p))
