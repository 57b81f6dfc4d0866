"""What is known of a value while transforming: its type, its dimensions, its constant content.

Every question has an answer for values of unknown rank or type, so that no rule needs a static shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Set

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnx_grad.errors import ModelError

Dimension = int | ir.SymbolicDim

FLOAT_TYPES = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

HALF_TYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})

# Real numbers rounded to so few bits that no arithmetic is defined on them.
_NARROW_TYPES = frozenset(
    {
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
        ir.DataType.FLOAT8E8M0,
        ir.DataType.FLOAT6E2M3,
        ir.DataType.FLOAT6E3M2,
        ir.DataType.FLOAT4E2M1,
    }
)

# The type of the cotangents of integers, and of narrow floats, that stand for real numbers.
ROUNDED_COTANGENT = ir.DataType.FLOAT


def operand(node: ir.Node, index: int) -> ir.Value:
    """Input `index` of `node`, which the operator requires."""
    value = optional_operand(node, index)
    if value is None:
        raise ModelError(f"{node.op_type} node '{node.name}' lacks its required input {index}")
    return value


def optional_operand(node: ir.Node, index: int) -> ir.Value | None:
    """Input `index` of `node`, or `None` where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def may_be_float(value: ir.Value) -> bool:
    """Whether derivatives can flow through `value`: it is of a float type, or its type is unknown."""
    dtype = value.dtype
    return dtype is None or dtype in FLOAT_TYPES


def is_narrow_float(value: ir.Value | None) -> bool:
    """Whether `value` is of a float type of eight bits or fewer: quantised real numbers."""
    return value is not None and value.dtype in _NARROW_TYPES


def may_be_rounded(value: ir.Value) -> bool:
    """Whether `value` is of a type that real numbers are rounded to: integers, or floats of few bits."""
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        return False
    return value.dtype.is_integer() or is_narrow_float(value)


def dimensions(value: ir.Value) -> tuple[Dimension, ...] | None:
    """The dimensions of `value`, integers and symbols, or `None` when not even the rank is known."""
    return None if value.shape is None else value.shape.dims


def rank(value: ir.Value) -> int | None:
    """The rank of `value`, or `None` when it is unknown."""
    return None if value.shape is None else len(value.shape)


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape of `value` when every dimension is a known integer, else `None`."""
    dims = dimensions(value)
    if dims is None:
        return None
    integers = tuple(d for d in dims if isinstance(d, int))
    return integers if len(integers) == len(dims) else None


def all_but_one(value: ir.Value) -> tuple[int, ...] | None:
    """The dimensions of `value` with -1 for the only unknown one, from which `Reshape` can tell it.

    `None` where there are more, or none, or one that is zero, beside which no other can be told.
    """
    lengths = tuple(dim if isinstance(dim, int) else -1 for dim in dimensions(value) or ())
    return lengths if lengths.count(-1) == 1 and 0 not in lengths else None


def same_dimension(a: Dimension, b: Dimension) -> bool:
    """Whether two dimensions are certainly equal: the same integer, or the same named symbol."""
    if isinstance(a, int) or isinstance(b, int):
        return isinstance(a, int) and isinstance(b, int) and a == b
    return a.value is not None and a.value == b.value


def same_shape(a: ir.Value, b: ir.Value) -> bool:
    """Whether two values certainly have the same shape, symbols included."""
    dims_a, dims_b = dimensions(a), dimensions(b)
    if dims_a is None or dims_b is None or len(dims_a) != len(dims_b):
        return False
    return all(same_dimension(p, q) for p, q in zip(dims_a, dims_b, strict=True))


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The content of `value` when it can never change: an initializer or a `Constant` node's output.

    An initializer that is also a graph input can be overridden at run time and counts as unknown.
    """
    if value is None or value.is_graph_input():
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    producer = value.producer()
    if producer is None or producer.op_type != "Constant" or producer.domain != "":
        return None
    attribute = producer.attributes.get("value")
    if attribute is not None and attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
        # Onnx_ir would make sure at some length that this is a tensor, and rename it.
        tensor: ir.TensorProtocol | None = attribute.value
    else:
        tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The content of a constant tensor of one number, or `None` when it is something else or unknown."""
    if value is None or (value.const_value is not None and value.const_value.size != 1):
        return None
    content = constant(value)
    return float(content.ravel()[0]) if content is not None and content.size == 1 else None


def constant_integers(value: ir.Value | None) -> tuple[int, ...] | None:
    """The content of a constant integer tensor as a flat tuple, or `None` when it is unknown."""
    content = constant(value)
    return None if content is None else tuple(int(v) for v in content.ravel())


def captured_values(node: ir.Node, own: Set[ir.Value] = frozenset()) -> Iterator[ir.Value]:
    """The values that the subgraphs of `node` read from outside, without those in `own`."""
    for attribute in node.attributes.data.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from _outer_values(attribute.as_graph(), own)
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from _outer_values(graph, own)


def _outer_values(graph: ir.Graph, enclosing: Set[ir.Value]) -> Iterator[ir.Value]:
    own = {*enclosing, *graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in (*node.inputs, *captured_values(node, own)):
            if value is not None and value not in own:
                yield value
        own.update(node.outputs)
    yield from (value for value in graph.outputs if value not in own)
