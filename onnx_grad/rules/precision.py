"""The precision in which sums over many elements are taken: single at least."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.builder import Builder

_HALF_TYPES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def widen(op: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    """`value` in the dtype of `like`, or in float32 where that is half precision."""
    if like.dtype not in _HALF_TYPES:
        return op.CastLike(value, like)
    return value if value.dtype == ir.DataType.FLOAT else op.Cast(value, to=ir.DataType.FLOAT)
