"""Products of many factors, where some may be zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from onnx_grad.builder import Builder


def product_of_others(
    op: Builder,
    x: ir.Value,
    *,
    product: Callable[[ir.Value], ir.Value],
    total: Callable[[ir.Value], ir.Value],
) -> ir.Value:
    """For each factor of a product, the product of the other factors of its group, exact at zeros.

    Π_{j≠i} x_j = Π_j u_j / u_i · Π_{j≠i, x_j=0} x_j, where u is x with its zeros replaced by ones. The last
    factor is one where no other factor is zero, the other zero x_j itself where there is one, and zero where
    there are more. The value is exact, and so is its derivative (the second derivative of the product) with
    any number of zeros; higher ones are only where no group holds more than one zero.

    Args:
        op: Builds the nodes.
        x: The factors.
        product: Gives for each factor of its argument the product of all factors of its group.
        total: Gives for each term of its argument the sum of all terms of its group.

    Returns:
        A value that broadcasts to the shape of `x`.
    """
    is_zero = op.Equal(x, 0.0)
    nonzero = op.Where(is_zero, 1.0, x)
    zero = op.Where(is_zero, x, 0.0)
    indicator = op.CastLike(is_zero, x)
    other_zeros = total(indicator) - indicator
    one = op.CastLike(op.Equal(other_zeros, 1.0), x)
    others = product(nonzero) / nonzero
    # Finite, for what overflows without the zero must not make a NaN with it.
    largest = float(np.finfo(np.float32 if x.dtype is None else x.dtype.numpy()).max)
    with_zero = op.Clip(others, -largest, largest) * (one * (total(zero) - zero))
    return op.Where(op.Equal(other_zeros, 0.0), others, with_zero)
