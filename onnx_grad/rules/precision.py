"""The precision in which rules compute what is sensitive to rounding or range: single at least.

`Builder` takes plain sums of half precision in single by itself. A rule widens its operands where more than
the sum needs it: counts and constants beyond the range of float16, differences of large numbers, products
that are to be summed.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder


def widen(op: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    """`value` in the dtype of `like`, or in float32 where that is half precision."""
    if like.dtype not in known.HALF_TYPES:
        return op.CastLike(value, like)
    return value if value.dtype == ir.DataType.FLOAT else op.widened(value)
