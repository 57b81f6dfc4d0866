"""Reductions along axes: sums, means, norms, extrema, products, logarithms of sums; and running sums."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number, keep_where, zero_where_unused
from onnx_grad.registry import InputCotangent, derivative_is_zero, gradient
from onnx_grad.rules.precision import widen
from onnx_grad.rules.products import product_of_others

derivative_is_zero("ArgMax", "ArgMin", reason="the output is an index")

_TIES = "equal extrema share the cotangent evenly"


@gradient("ReduceSum")
def reduce_sum(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = Σx: dx = dy, repeated along the reduced axes."""
    return _repeated(op, node, _aligned(op, node, dy))


@gradient("ReduceMean")
def reduce_mean(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = Σx/n: dx = dy/n, repeated along the reduced axes."""
    wide_dy = widen(op, dy, dy)
    return _repeated(op, node, _aligned(op, node, op.CastLike(wide_dy * _share(op, node, wide_dy), dy)))


@gradient("ReduceSumSquare")
def reduce_sum_square(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = Σx²: dx = 2x·dy."""
    return known.operand(node, 0) * _aligned(op, node, 2.0 * dy)


@gradient("ReduceL1", convention="ReduceL1'(0) = 0")
def reduce_l1(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = Σ|x|: dx = sign(x)·dy."""
    return op.Sign(known.operand(node, 0)) * _aligned(op, node, dy)


@gradient("ReduceL2", convention="ReduceL2'(0) = 0")
def reduce_l2(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = √Σx²: dx = x·dy/y, and 0 where y = 0."""
    x, y = known.operand(node, 0), _precise_output(op, node)
    is_zero = op.CastLike(op.Equal(y, 0.0), y)
    slope = _aligned(op, node, widen(op, dy, dy) / (y + is_zero))
    return op.CastLike(widen(op, x, x) * slope, x)


@gradient("ReduceLogSum")
def reduce_log_sum(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = ln Σx: dx = dy/Σx, repeated along the reduced axes."""
    aligned = _aligned(op, node, dy)
    share = aligned / _total(op, node, known.operand(node, 0))
    return _repeated(op, node, zero_where_unused(op, node, share, aligned))


@gradient("ReduceLogSumExp")
def reduce_log_sum_exp(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = ln Σ exp x: dx = dy·exp(x − y); exp(x) where every x is −∞, so that dx = 0 there."""
    x, y = known.operand(node, 0), _precise_output(op, node)
    finite = op.Where(op.Equal(y, -math.inf), 0.0, y)
    slope = op.Exp(widen(op, x, x) - _aligned(op, node, finite))
    return op.CastLike(slope, x) * _aligned(op, node, dy)


@gradient("ReduceMax", convention=_TIES)
@gradient("ReduceMin", convention=_TIES)
def reduce_extremum(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = max x or min x: dx = dy where x = y, in equal shares."""
    x, (y,) = known.operand(node, 0), node.outputs
    attained = op.Equal(x, _aligned(op, node, y))
    wide_dy = widen(op, _aligned(op, node, dy), dy)
    share = wide_dy / _total(op, node, as_number(op, attained, wide_dy))
    return keep_where(op, node, attained, op.CastLike(share, x))


@gradient("ReduceProd")
def reduce_prod(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """y = Πx: dx = dy times the product of all other factors, also where some are zero.

    From third derivatives on, see `product_of_others` about several zeros.
    """
    x = known.operand(node, 0)
    others = product_of_others(
        op,
        widen(op, x, x),
        product=lambda factors: op.ReduceProd(
            factors, _axes(node), keepdims=1, noop_with_empty_axes=_noop(node)
        ),
        total=lambda terms: _total(op, node, terms),
    )
    return op.CastLike(widen(op, _aligned(op, node, dy), dy) * others, x)


@gradient("CumSum")
def cumulative_sum(op: Builder, node: ir.Node, dy: ir.Value) -> InputCotangent:
    """yᵢ = Σ_{j≤i} xⱼ: dxⱼ = Σ_{i≥j} dyᵢ, a running sum from the other end."""
    return op.CumSum(
        dy,
        known.operand(node, 1),
        exclusive=node.attributes.get_int("exclusive", 0),
        reverse=1 - node.attributes.get_int("reverse", 0),
    )


def _axes(node: ir.Node) -> ir.Value | None:
    return known.optional_operand(node, 1)


def _noop(node: ir.Node) -> int | None:
    return node.attributes.get_int("noop_with_empty_axes", 0) or None


def _precise_output(op: Builder, node: ir.Node) -> ir.Value:
    """y, computed again in single where it was rounded to half: that of a large y would be seen in x − y."""
    x, (y,) = known.operand(node, 0), node.outputs
    if x.dtype not in known.HALF_TYPES:
        return y
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    return op.node(node.op_type, op.widened(x), *node.inputs[1:], **attributes)


def _aligned(op: Builder, node: ir.Node, reduced: ir.Value) -> ir.Value:
    """A value of the shape of y, with axes of length 1 put back so that it broadcasts against x."""
    axes, keepdims = _axes(node), node.attributes.get_int("keepdims", 1)
    if axes is None or keepdims or known.constant_integers(axes) == ():
        return reduced
    # No axes at run time: y is a scalar or has the shape of x, and `Unsqueeze` leaves it so.
    return op.Unsqueeze(reduced, axes)


def _repeated(op: Builder, node: ir.Node, aligned: ir.Value) -> ir.Value:
    """An aligned value repeated along the reduced axes."""
    x, (y,) = known.operand(node, 0), node.outputs
    if known.same_shape(x, y):
        return aligned
    if 0 in (known.static_shape(x) or ()):
        # ONNX Runtime removes an Expand from length 1 to length 0.
        return op.zeros_like(x)
    repeated = op.Expand(aligned, op.shape(x))
    repeated.shape = x.shape
    return repeated


def _total(op: Builder, node: ir.Node, terms: ir.Value) -> ir.Value:
    """The sum of `terms`, of the shape of x, over the same axes, in a shape that broadcasts against x."""
    return op.ReduceSum(terms, _axes(node), keepdims=1, noop_with_empty_axes=_noop(node))


def _share(op: Builder, node: ir.Node, like: ir.Value) -> ir.Value:
    """1/n as a scalar in the dtype of `like`, where n elements of x make one of y."""
    x, (y,) = known.operand(node, 0), node.outputs
    lengths = _reduced_lengths(node)
    if lengths is not None and 0 not in lengths:
        return op.scalar_like(1.0 / math.prod(lengths), like)
    # In double precision: x may have no elements.
    n_y, n_x = (
        op.Cast(op.ReduceProd(op.shape(value), keepdims=0), to=ir.DataType.DOUBLE) for value in (y, x)
    )
    return op.CastLike(n_y / n_x, like)


def _reduced_lengths(node: ir.Node) -> list[int] | None:
    """The lengths of the reduced axes, where they are known."""
    dims = known.dimensions(known.operand(node, 0))
    operand = _axes(node)
    axes = () if operand is None else known.constant_integers(operand)
    if dims is None or axes is None:
        return None
    if not axes:
        axes = () if _noop(node) else tuple(range(len(dims)))
    lengths = [length for axis in axes if isinstance(length := dims[axis], int)]
    return lengths if len(lengths) == len(axes) else None
