"""Comparisons, logic, bits and rounding: their results do not change with small changes of their operands."""

from __future__ import annotations

from onnx_grad.registry import derivative_is_zero

derivative_is_zero(
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    reason="its result is a truth value",
)
derivative_is_zero("And", "Not", "Or", "Xor", reason="its operands are truth values")
derivative_is_zero(
    "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", reason="its operands are integers"
)
derivative_is_zero("Ceil", "Floor", "Hardmax", "Round", "Sign", reason="it is constant between its jumps")
