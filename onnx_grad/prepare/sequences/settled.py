"""Integers and conditions that are settled before the model runs: by constants, ranks and static shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad import known

Array = npt.NDArray[Any]
_Content = Callable[[ir.Value], Array | None]

# The numbers that counts and conditions are made of are few.
_LARGEST = 64


def content(value: ir.Value | None) -> Array | None:
    """What `value` holds, where that is settled and small; `None` otherwise."""
    found: dict[ir.Value, Array | None] = {}

    def of(value: ir.Value) -> Array | None:
        if value not in found:
            found[value] = _content(value, of)
        return found[value]

    return None if value is None else of(value)


def number(value: ir.Value | None) -> int | None:
    """The one integer that `value` holds, where that is settled."""
    array = content(value)
    return int(array.reshape(())) if array is not None and array.size == 1 else None


def _content(value: ir.Value, of: _Content) -> Array | None:
    constant = known.constant(value)
    if constant is not None:
        return constant if constant.size <= _LARGEST else None
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx") or value is not node.outputs[0]:
        return None
    if node.op_type in _OF_SHAPES:
        settled = _OF_SHAPES[node.op_type](node)
        if settled is not None:
            return settled
    if node.op_type not in _FUNCTIONS:
        return None
    operands = [None if operand is None else of(operand) for operand in node.inputs]
    if not operands or any(operand is None or operand.size > _LARGEST for operand in operands):
        return None
    if node.op_type in ("Div", "Mod") and not np.all(operands[1]):
        return None
    return np.asarray(_FUNCTIONS[node.op_type](node, *operands))


def _shape(node: ir.Node) -> Array | None:
    dims = known.dimensions(known.operand(node, 0))
    if dims is None:
        return None
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
    sizes = dims[start:end]
    return np.array(sizes, np.int64) if all(isinstance(size, int) for size in sizes) else None


def _size(node: ir.Node) -> Array | None:
    """The size of a shape is a rank."""
    producer = known.operand(node, 0).producer()
    if producer is None or producer.op_type != "Shape" or len(producer.attributes):
        return None
    rank = known.rank(known.operand(producer, 0))
    return None if rank is None else np.array(rank, np.int64)


def _gather(node: ir.Node) -> Array | None:
    """One dimension of a shape, though others may be unknown."""
    data, position = known.operand(node, 0), known.constant_integers(known.operand(node, 1))
    producer = data.producer()
    if producer is None or producer.op_type != "Shape" or len(producer.attributes) or position is None:
        return None
    dims = known.dimensions(known.operand(producer, 0))
    if dims is None or len(position) != 1 or not -len(dims) <= position[0] < len(dims):
        return None
    size = dims[position[0]]
    rank = known.rank(known.operand(node, 1)) or 0
    return np.full([1] * rank, size, np.int64) if isinstance(size, int) else None


_OF_SHAPES: dict[str, Callable[[ir.Node], Array | None]] = {
    "Gather": _gather,
    "Shape": _shape,
    "Size": _size,
}


def _cast(node: ir.Node, x: Array) -> Array:
    return x.astype(ir.DataType(node.attributes.get_int("to")).numpy())


def _divide(node: ir.Node, a: Array, b: Array) -> Array:
    """The quotient; of integers, rounded towards zero."""
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)))


def _mod(node: ir.Node, a: Array, b: Array) -> Array:
    return np.asarray(np.fmod(a, b) if node.attributes.get_int("fmod", 0) else np.mod(a, b))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Add": lambda node, a, b: a + b,
    "And": lambda node, a, b: a & b,
    "Cast": _cast,
    "CastLike": lambda node, x, like: x.astype(like.dtype),
    "Concat": lambda node, *parts: np.concatenate(parts, node.attributes.get_int("axis")),
    "Div": _divide,
    "Equal": lambda node, a, b: a == b,
    "Gather": lambda node, x, i: np.take(x, i, node.attributes.get_int("axis", 0)),
    "Greater": lambda node, a, b: a > b,
    "GreaterOrEqual": lambda node, a, b: a >= b,
    "Identity": lambda node, x: x,
    "Less": lambda node, a, b: a < b,
    "LessOrEqual": lambda node, a, b: a <= b,
    "Mod": _mod,
    "Mul": lambda node, a, b: a * b,
    "Not": lambda node, x: ~x,
    "Or": lambda node, a, b: a | b,
    "Size": lambda node, x: np.array(x.size, np.int64),
    "Squeeze": lambda node, x, axes=None: np.squeeze(x, None if axes is None else tuple(axes.ravel())),
    "Sub": lambda node, a, b: a - b,
    "Unsqueeze": lambda node, x, axes: np.expand_dims(x, tuple(axes.ravel())),
    "Where": lambda node, condition, a, b: np.where(condition, a, b),
}
