"""What is known of the sign of a value while transforming, from the operators that produce it.

Enough to tell that `√(mean(x²) + ε)` or `max(‖x‖, ε)` is never zero:
the divisors that normalizations protect.
"""

from __future__ import annotations

import enum

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad import known

_DEPTH = 12  # operators looked back at; the chains that protect a divisor are shorter
_LARGEST_CONSTANT = 4096  # elements; larger constants are weights, whose signs tell nothing

_ALWAYS_POSITIVE = frozenset("Exp Cosh".split())
_NEVER_NEGATIVE = frozenset("Abs Relu ReduceL1 ReduceL2 ReduceSumSquare Sigmoid Softmax Softplus".split())
_KEEPS_SIGN = frozenset(
    "Cast Expand Flatten Identity ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reciprocal Reshape "
    "Sqrt Squeeze Transpose Unsqueeze".split()
)

Array = npt.NDArray[np.generic]


class _Sign(enum.IntEnum):
    """A lower bound of the elements of a value."""

    UNKNOWN = 0
    NON_NEGATIVE = 1
    POSITIVE = 2


def is_positive(value: ir.Value | None) -> bool:
    """Whether every element of `value` is certainly greater than zero, underflow aside."""
    return _sign(value, _DEPTH) is _Sign.POSITIVE


def small_constant(value: ir.Value | None) -> Array | None:
    """The content of `value` when it can never change and is not too large to look at."""
    tensor = value.const_value if value is not None else None
    if tensor is not None and tensor.size > _LARGEST_CONSTANT:
        return None
    content = known.constant(value)
    return None if content is None or content.size > _LARGEST_CONSTANT else content


def _sign(value: ir.Value | None, depth: int) -> _Sign:
    content = small_constant(value)
    if content is not None:
        return _sign_of_constant(content)
    node = value.producer() if value is not None else None
    if node is None or node.domain != "" or depth == 0:
        return _Sign.UNKNOWN
    return _sign_of_result(node, depth - 1)


def _sign_of_constant(content: Array) -> _Sign:
    numbers = np.asarray(content, dtype=np.float64)
    if np.all(numbers > 0):
        return _Sign.POSITIVE
    return _Sign.NON_NEGATIVE if np.all(numbers >= 0) else _Sign.UNKNOWN


def _sign_of_result(node: ir.Node, depth: int) -> _Sign:
    if node.op_type in _ALWAYS_POSITIVE:
        return _Sign.POSITIVE
    if node.op_type in _KEEPS_SIGN:
        return _sign(node.inputs[0], depth)
    combine = {"Add": _sign_of_sum, "Sum": _sign_of_sum, "Max": _sign_of_maximum, "Clip": _sign_of_clip}
    combine |= {"Mul": _sign_of_product, "Div": _sign_of_product, "Pow": _sign_of_power}
    if node.op_type in combine:
        return combine[node.op_type](node, depth)
    return _Sign.NON_NEGATIVE if node.op_type in _NEVER_NEGATIVE else _Sign.UNKNOWN


def _sign_of_sum(node: ir.Node, depth: int) -> _Sign:
    strongest = _Sign.NON_NEGATIVE
    for value in node.inputs:
        sign = _sign(value, depth)
        if sign is _Sign.UNKNOWN:
            return sign
        strongest = max(strongest, sign)
    return strongest


def _sign_of_maximum(node: ir.Node, depth: int) -> _Sign:
    return max(_sign(value, depth) for value in node.inputs)


def _sign_of_clip(node: ir.Node, depth: int) -> _Sign:
    lower = _sign(node.inputs[1], depth) if len(node.inputs) > 1 else _Sign.UNKNOWN
    upper = _sign(node.inputs[2], depth) if len(node.inputs) > 2 and node.inputs[2] else _Sign.POSITIVE
    return min(upper, max(lower, _sign(node.inputs[0], depth)))


def _sign_of_product(node: ir.Node, depth: int) -> _Sign:
    a, b = node.inputs
    if a is b:
        return max(_Sign.NON_NEGATIVE, _sign(a, depth))
    return min(_sign(a, depth), _sign(b, depth))


def _sign_of_power(node: ir.Node, depth: int) -> _Sign:
    base = _sign(node.inputs[0], depth)
    exponent = small_constant(node.inputs[1])
    even = exponent is not None and bool(np.all(np.asarray(exponent, dtype=np.float64) % 2 == 0))
    return max(base, _Sign.NON_NEGATIVE) if even else base
