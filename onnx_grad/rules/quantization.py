"""Quantization, refused by default: rounding to integers has the derivative zero, or none.

With `quantization="straight-through"`, rounding counts as the identity and clipping as what it is: q =
clip(round(x/s) + z) has the derivative of x/s + z where it is not clipped, and zero where it is. That is the
straight-through estimator (Bengio et al. 2013, arXiv:1308.3432), clipped as in PyTorch's `fake_quantize`:
what rounds to the last integer of the range still passes. By the scale, it is that of learned step sizes
(Esser et al. 2020, arXiv:1902.08153), as in PyTorch's learnable `fake_quantize`. Zero points have none.

Integers that stand for real numbers have cotangents in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import cast_like, keep_where
from onnx_grad.registry import InputCotangent, Quantization, Rule, gradient
from onnx_grad.rules.contrib.domain import DOMAIN

STRAIGHT_THROUGH: Quantization = "straight-through"
CONVENTION = "rounding passes the gradient, clipping gives 0"


def _type_unknown(node: ir.Node) -> str | None:
    if node.outputs[0].dtype is not None:
        return None
    return "the type it quantizes to is unknown, and with it the range; declare it in the model's value_info"


def _quantizes(domain: str) -> Callable[[Rule], Rule]:
    return gradient(
        "QuantizeLinear",
        domain=domain,
        quantization=STRAIGHT_THROUGH,
        rounds=True,
        frozen=(2,),
        refuses=_type_unknown,
        convention=CONVENTION,
    )


def _dequantizes(domain: str, quantization: Quantization | None) -> Callable[[Rule], Rule]:
    return gradient("DequantizeLinear", domain=domain, quantization=quantization, rounds=True, frozen=(2,))


@_quantizes("")
@_quantizes(DOMAIN)
def quantize_linear(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = clip(round(x/s) + z): dx = dy/s where nothing is clipped, else 0, and ds = −Σ dx·x/s."""
    x, scale, zero = known.operand(node, 0), known.operand(node, 1), known.optional_operand(node, 2)
    granularity = _granularity(node)
    step = along(op, scale, x, **granularity)
    ratio = in_float32(op, x) / step
    level, shift = _rounded(op, ratio, node.outputs[0].dtype), _one_for_all(zero)
    if zero is not None and shift is None:
        level = level + along(op, zero, x, **granularity)
    dx = keep_where(op, node, _within_range(op, level, node.outputs[0].dtype, shift or 0), dy) / step
    return (
        lambda: _cotangent_like(op, dx, x),
        lambda: cast_like(op, op.Neg(_sum_by_scale(op, dx * ratio, x, scale, **granularity)), scale),
    )


@gradient("DynamicQuantizeLinear", quantization=STRAIGHT_THROUGH, rounds=True, convention=CONVENTION)
def dynamic_quantize_linear(
    op: Builder, node: ir.Node, dy: ir.Value | None, dscale: ir.Value | None, dzero: ir.Value | None
) -> InputCotangent:
    """y, s, z = quantized x: dx = dy/s where nothing is clipped, and s and z count as constants.

    Through y and s together, the derivative of (y − z)·s by x is the same up to what is rounded off.
    """
    del dscale, dzero
    if dy is None:
        return None
    scale = op.optional_output(node, 1, ir.DataType.FLOAT)
    zero = in_float32(op, op.optional_output(node, 2, ir.DataType.UINT8))
    level = op.Round(op.Div(node.inputs[0], scale)) + zero
    return keep_where(op, node, _within_range(op, level, ir.DataType.UINT8), dy) / scale


@_dequantizes("", None)
@_dequantizes(DOMAIN, None)
@_dequantizes("", STRAIGHT_THROUGH)
@_dequantizes(DOMAIN, STRAIGHT_THROUGH)
def dequantize_linear(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = (x − z)·s: dx = dy·s, ds = Σ dy·(x − z) over what shares s: all, a channel or a block."""
    x, scale, zero = known.operand(node, 0), known.operand(node, 1), known.optional_operand(node, 2)
    (y,) = node.outputs
    granularity = _granularity(node)
    wide_dy = in_float32(op, dy)

    def dscale() -> ir.Value:
        level = in_float32(op, x)
        if zero is not None and not _is_zero(zero):
            level = level - along(op, zero, y, **granularity)
        return cast_like(op, _sum_by_scale(op, wide_dy * level, y, scale, **granularity), scale)

    return lambda: wide_dy * along(op, scale, y, **granularity), dscale


@gradient("Cast", quantization=STRAIGHT_THROUGH, convention=CONVENTION)
def cast_straight_through(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x in another dtype: dx = dy, save where a float is clipped to the range of an eight-bit one."""
    return _through_conversion(op, node, dy)


def _through_conversion(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    x, y = known.operand(node, 0), node.outputs[0]
    if known.may_be_float(x) and known.is_narrow_float(y):
        dy = keep_where(op, node, _within_range(op, in_float32(op, x), y.dtype), dy)
    return _cotangent_like(op, dy, x)


@gradient("CastLike", quantization=STRAIGHT_THROUGH, frozen=(1,), convention=CONVENTION)
def cast_like_straight_through(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
    """y = x in the dtype of another tensor: as Cast."""
    return _through_conversion(op, node, dy)


def in_float32(op: Builder, value: ir.Value) -> ir.Value:
    """`value`, of any type, in float32."""
    if value.dtype in known.HALF_TYPES:
        return op.widened(value)
    if value.dtype == ir.DataType.FLOAT:
        return value
    wide = op.Cast(value, to=ir.DataType.FLOAT)
    wide.shape = value.shape
    return wide


def dequantized(
    op: Builder, levels: ir.Value, scale: ir.Value | None, zero: ir.Value | None, axis: int = 1
) -> ir.Value:
    """(levels − zero)·scale in float32; a scale or zero point that is left out is one or zero."""
    values = wide = in_float32(op, levels)
    if zero is not None and not _is_zero(zero):
        values = values - along(op, zero, wide, axis)
    return values if scale is None else values * along(op, scale, wide, axis)


def _is_zero(zero: ir.Value) -> bool:
    content = known.constant(zero)
    return content is not None and not content.astype(float).any()


def along(op: Builder, parameters: ir.Value, x: ir.Value, axis: int = 1, block_size: int = 0) -> ir.Value:
    """Scales or zero points, of any granularity, in float32 and in a shape that broadcasts with that of x.

    Args:
        op: Builds the nodes.
        parameters: One for all of x; or a vector, one for each position of `axis`; or, with as many axes as
            x, what broadcasts as it is, or has one element for each block along `axis`.
        x: What they belong to.
        axis: The axis of x.
        block_size: How many positions share a parameter, if not all or one.
    """
    wide, rank, x_rank = in_float32(op, parameters), known.rank(parameters), known.rank(x)
    if rank == 0 or (rank is not None and rank > 1 and not block_size):
        return wide
    if known.static_shape(parameters) == (1,):
        return op.Reshape(wide, op.constant([], ir.DataType.INT64))
    if rank == 1 and (axis < 0 or x_rank is not None):
        behind = -1 - axis if axis < 0 else (x_rank or 0) - 1 - axis
        return op.Unsqueeze(wide, list(range(1, behind + 1))) if behind > 0 else wide
    ones = op.Expand(op.constant(1, ir.DataType.INT8), op.shape(x))
    return op.DequantizeLinear(ones, wide, axis=axis, block_size=block_size or None)


def _granularity(node: ir.Node) -> dict[str, int]:
    """Along which axis of its input a node changes its scale, and how often, where it says so."""
    return {name: node.attributes.get_int(name) for name in ("axis", "block_size") if name in node.attributes}


def _rounded(op: Builder, ratio: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    """`ratio`, rounded where `dtype` is of integers: a float that is rounded up to the largest is clipped."""
    return op.Round(ratio) if dtype is not None and dtype.is_integer() else ratio


def _one_for_all(zero: ir.Value | None) -> float | None:
    """The zero point, where it is one constant number."""
    content = known.constant(zero)
    return None if content is None or content.size != 1 else float(content.reshape(()))


def _within_range(op: Builder, level: ir.Value, dtype: ir.DataType | None, shift: float = 0.0) -> ir.Value:
    """Where `level` + `shift` is not clipped to the range of `dtype`."""
    assert dtype is not None
    return op.Equal(op.Clip(level, float(dtype.min) - shift, float(dtype.max) - shift), level)


def _cotangent_like(op: Builder, dx: ir.Value, x: ir.Value) -> ir.Value:
    """`dx` in the type that cotangents of x have."""
    return op.CastLike(dx, x) if known.may_be_float(x) else in_float32(op, dx)


def _sum_by_scale(
    op: Builder, product: ir.Value, x: ir.Value, scale: ir.Value, axis: int = 1, block_size: int = 0
) -> ir.Value:
    """Sums of the elements of `product`, which has the shape of x, that share an element of `scale`.

    Where they cannot be told by their axes, which element of `scale` each one uses is found by dequantizing
    ones with the elements' positions as scales.
    """
    shape, rank = known.static_shape(scale), known.rank(x)
    if known.rank(scale) == 0:
        return op.ReduceSum(product, keepdims=0)
    if shape == (1,):
        return op.reshape_like(op.ReduceSum(product, keepdims=0), scale)
    if shape is not None and len(shape) == 1 and rank is not None and not block_size:
        others = [i for i in range(rank) if i != axis % rank]
        return op.ReduceSum(product, others, keepdims=0) if others else product
    count = op.Size(scale)
    positions = op.reshape_like(op.Cast(op.Range(0, count, 1), to=ir.DataType.FLOAT), scale)
    ones = op.Expand(op.constant(1, ir.DataType.INT8), op.shape(product))
    used = op.DequantizeLinear(ones, positions, axis=axis, block_size=block_size or None)
    return op.reshape_like(
        op.ScatterElements(
            op.Expand(op.constant(0, ir.DataType.FLOAT), op.Reshape(count, [1])),
            op.Reshape(op.Cast(used, to=ir.DataType.INT64), [-1]),
            op.Reshape(product, [-1]),
            reduction="add",
        ),
        scale,
    )
