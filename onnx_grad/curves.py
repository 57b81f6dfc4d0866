"""Curves: elementwise nodes that together are one function of one number, y = f(x) for each element.

Exported models spell GELU, SiLU or Mish in several nodes that read x more than once. Node by node, each of
them would multiply the cotangent by something of its own, and products would be added up. Put together
the way f is, f′(x) takes fewer passes, and the cotangent or tangent is multiplied by it once.

Measured (encoder, GELU in five nodes): 13.6 → 11.6 ms of the 84 ms that a layer's input gradient takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known, registry
from onnx_grad.builder import Builder
from onnx_grad.errors import RuleError
from onnx_grad.path import Path
from onnx_grad.singularities import is_elementwise, may_be_unused_at_singularity

# Smooth everywhere, so that no derivative is infinite where another one is zero.
_SMOOTH = frozenset("Add Cos Div Erf Exp Mul Neg Pow Sigmoid Sin Softplus Sub Tanh".split())
# In half precision, a derivative may overflow where the product with a small cotangent does not.
_WIDE = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE})
_MOST = 16


@dataclass(frozen=True)
class Slope:
    """A derivative, `factor` times `value`, or times one for `None`."""

    factor: float
    value: ir.Value | None = None

    def times(self, number: float) -> Slope:
        """The product with a number."""
        return Slope(number * self.factor, self.value)


class Curve:
    """Nodes that together are one function of one value.

    Args:
        x: The value.
        y: What they make of it.
    """

    def __init__(self, x: ir.Value, y: ir.Value) -> None:
        self.x = x
        self._y = y
        self._slopes = {x: Slope(1.0)}

    def times_slope(self, op: Builder, direction: ir.Value) -> ir.Value:
        """f′(x)·`direction`, a cotangent of y or a tangent of x."""
        return op.Mul(direction, _product(op, self._slope(op, self._y)))

    def _slope(self, op: Builder, value: ir.Value) -> Slope:
        """The derivative of `value` by x."""
        if value not in self._slopes:
            node = value.producer()
            if node is None or known.scalar(value) is not None:
                return Slope(0.0)
            operands = [operand for operand in node.inputs if operand is not None]
            slopes = [self._slope(op, operand) for operand in operands]
            self._slopes[value] = _chained(op, node, operands, slopes)
        return self._slopes[value]


def curve_to(op: Builder, path: Path, node: ir.Node) -> Curve | None:
    """The shortest curve that ends with `node` and multiplies two values that depend on x.

    Nothing but its own nodes reads what is between x and y, and no derivative by that is wanted. Where a
    derivative may be infinite at elements that go unused, nodes stay apart: their rules take care of that.

    Args:
        op: Builds the derivative.
        path: The path that the node is on.
        node: A node on it.

    Returns:
        The curve; `None` where there is none.
    """
    if node.op_type not in _SMOOTH or _has_own_weight(path, node) or not _belongs(path, node):
        return None
    nodes = [node]
    while True:
        inside = {inner.outputs[0] for inner in nodes}
        read = [x for inner in nodes for x in _variables(path, inner)]
        outside = [value for value in dict.fromkeys(read) if value not in inside]
        if len(outside) == 1 < len(nodes) and any(_multiplies_variables(path, inner) for inner in nodes):
            break
        last = [value for value in outside if not _begins_inside(path, nodes, value)]
        # The curve has to begin with the only one, and so to read it again further back.
        if len(last) > 1 or (len(outside) > 1 and any(map(_is_read_once, last))):
            return None
        before = (value.producer() for value in outside if value not in last)
        found = next((made for made in before if made is not None and _belongs(path, made)), None)
        if found is None or len(nodes) == _MOST:
            return None
        nodes.append(found)
    (x,) = outside
    if not path.is_active(x) or known.scalar(x) is not None or any(_needs_care(op, inner) for inner in nodes):
        return None
    return Curve(x, node.outputs[0])


def _has_own_weight(path: Path, node: ir.Node) -> bool:
    """Whether `node` alone reads something that derivatives are wanted by: a quick way out."""
    return any(value is not None and path.begins_at(value) and _is_read_once(value) for value in node.inputs)


def _begins_inside(path: Path, nodes: list[ir.Node], value: ir.Value) -> bool:
    """Whether a node makes `value` for `nodes` alone, through which derivatives go on."""
    node = value.producer()
    if node is None or node.graph is not nodes[0].graph or path.begins_at(value) or not path.is_active(value):
        return False
    return node.op_type in _SMOOTH and all(user in nodes for user in _readers(value))


def _is_read_once(value: ir.Value) -> bool:
    return sum(1 for _ in _readers(value)) == 1


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    return (user for user in value.consumers() if user.graph is not None)


def _multiplies_variables(path: Path, node: ir.Node) -> bool:
    return node.op_type == "Mul" and len(_variables(path, node)) == 2


def _needs_care(op: Builder, node: ir.Node) -> bool:
    return is_elementwise(node) and may_be_unused_at_singularity(op, node)


def _belongs(path: Path, node: ir.Node) -> bool:
    """Whether `node` may be part of a curve: smooth, elementwise, and by the rule that stands here."""
    if node.op_type not in _SMOOTH or node.domain != "" or node.outputs[0].dtype not in _WIDE:
        return False
    variables = _variables(path, node)
    if not variables or not all(v in variables or _keeps_shape(variables[0], v) for v in node.inputs):
        return False
    if node.op_type in ("Div", "Pow"):
        number = known.scalar(node.inputs[1])
        is_smooth = number in (2.0, 3.0) if node.op_type == "Pow" else number not in (None, 0.0)
        if not is_smooth or variables != [node.inputs[0]]:
            return False
    return registry.has_own_rule(node.op_type)


def _variables(path: Path, node: ir.Node) -> list[ir.Value]:
    """The operands that are no constant numbers, or whose derivatives are wanted though they are."""
    operands = (value for value in node.inputs if value is not None)
    return [value for value in operands if path.is_active(value) or known.scalar(value) is None]


def _keeps_shape(variable: ir.Value, number: ir.Value | None) -> bool:
    """Whether `number` is broadcast to the shape of `variable`."""
    ranks = None if number is None else known.rank(number), known.rank(variable)
    return ranks[0] == 0 or (ranks[0] is not None and ranks[1] is not None and ranks[0] <= ranks[1])


def _chained(op: Builder, node: ir.Node, operands: list[ir.Value], slopes: list[Slope]) -> Slope:
    """The derivative of the result of `node`, given those of its operands: the chain and product rule."""
    (y,), (x, *others), (dx, *d_others) = node.outputs, operands, slopes
    match node.op_type, [known.scalar(other) for other in others]:
        case "Add", _:
            return _sum(op, dx, d_others[0])
        case "Sub", _:
            return _sum(op, dx, d_others[0].times(-1.0))
        case "Neg", _:
            return dx.times(-1.0)
        case "Mul", _:
            return _sum(op, _times(op, dx, others[0]), _times(op, d_others[0], x))
        case "Div", [float(divisor)]:
            return dx.times(1.0 / divisor)
        case "Pow", [2.0]:
            return _times(op, dx.times(2.0), x)
        case "Pow", [3.0]:
            return _times(op, dx.times(3.0), op.Mul(x, x))
        case "Exp", _:
            return _times(op, dx, y)
        case "Sigmoid", _:
            return _times(op, dx, op.Mul(y, op.Sub(1.0, y)))
        case "Softplus", _:
            return _times(op, dx, op.Sigmoid(x))
        case "Tanh", _:
            return _times(op, dx, op.Sub(1.0, op.Mul(y, y)))
        case "Sin", _:
            return _times(op, dx, op.Cos(x))
        case "Cos", _:
            return _times(op, dx.times(-1.0), op.Sin(x))
        case "Erf", _:
            return _of_erf(op, x, dx)
    raise RuleError(f"{node.op_type} node '{node.name}' is no part of a curve")


def _of_erf(op: Builder, x: ir.Value, dx: Slope) -> Slope:
    """2/√π·exp(−x²)·dx, with all factors in the exponent."""
    factor = 2.0 / math.sqrt(math.pi) * abs(dx.factor)
    if factor == 0.0:
        return dx
    bell = op.Exp(op.Sub(math.log(factor), op.Mul(x, x)))
    return _times(op, Slope(math.copysign(1.0, dx.factor), dx.value), bell)


def _times(op: Builder, slope: Slope, other: ir.Value) -> Slope:
    """The product with a value; with a constant number, there is nothing to build."""
    number = known.scalar(other)
    if number is not None:
        return slope.times(number)
    if slope.factor == 0.0:
        return slope
    return Slope(slope.factor, other if slope.value is None else op.Mul(slope.value, other))


def _sum(op: Builder, a: Slope, b: Slope) -> Slope:
    if 0.0 in (a.factor, b.factor):
        return b if a.factor == 0.0 else a
    if a.value is None and b.value is None:
        return Slope(a.factor + b.factor)
    if a.value is not None and b.value is not None and abs(a.factor) == abs(b.factor):
        return Slope(a.factor, (op.Add if a.factor == b.factor else op.Sub)(a.value, b.value))
    return Slope(1.0, op.Add(_product(op, a), _product(op, b)))


def _product(op: Builder, slope: Slope) -> ir.Value | float:
    """The derivative as one operand."""
    if slope.value is None:
        return slope.factor
    return slope.value if slope.factor == 1.0 else op.Mul(slope.value, slope.factor)
