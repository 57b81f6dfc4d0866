"""Operators on elements: the batch axis is one more that they broadcast along."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import aligned, aligned_to, rank_of, shifted
from onnx_grad.batching.emission import again
from onnx_grad.batching.folds import common_fold, folded_into
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import unfolded
from onnx_grad.builder import Builder

UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal RegexFullMatch Relu "
    "Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
)
BROADCASTING = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max "
    "Mean Min Mod Mul Or Pow StringConcat Sub Sum Where Xor"
)


@batching(*UNARY.split())
def unary(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = f(x): the same for every element of the batch."""
    return _on_fold(op, node, x) or again(op, node, x[0])


@batching(*BROADCASTING.split())
def broadcasting(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = f(a, b, …): operands of fewer axes get axes of length 1 behind the batch axis."""
    return _on_fold(op, node, x) or again(op, node, *aligned(op, node, x))


def _on_fold(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The result where all operands were unfolded from the same form, or are a single number."""
    batched = [index for index in range(len(x)) if x.is_batched(index)]
    if any(x.rank(index) != 0 for index in range(len(x)) if index not in batched):
        return None
    batches = [x[index] for index in batched]
    fold = common_fold(batches, [known.operand(node, index) for index in batched])
    if fold is None:
        return None
    operands = [
        folded_into(op, x[index], fold.axis) if index in batched else x[index] for index in range(len(x))
    ]
    (result,) = again(op, node, *operands)
    return unfolded(op, node.outputs[0], result, fold.axis, fold.lengths)


@batching("SwiGLU")
def swiglu(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = swish(a)·b, of the same shape."""
    return again(op, node, x.repeated(0), x.repeated(1))


@batching("CastLike", shape_only=[1])
def cast_like(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = x in the type of another tensor."""
    return again(op, node, x[0], x[1])


@batching("PRelu")
def prelu(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = x, or s·x where it is negative: the slope is stretched to x, and x to the batch."""
    if not x.is_batched(1):
        return again(op, node, x[0], x[1])
    return again(op, node, x.repeated(0), aligned_to(op, x, 1, rank_of(op, x, 0)))


@batching("Clip")
def clip(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = min(max(x, low), high); bounds that differ between examples are met by comparing."""
    if x.only(0):
        return again(op, node, *x.all())
    result = x[0]
    for index, beyond in ((1, op.Less), (2, op.Greater)):
        if x.get(index) is not None:
            bound = aligned_to(op, x, index, rank_of(op, x, 0))
            result = op.Where(beyond(result, bound), bound, result)
    return result


@batching("DequantizeLinear", "QuantizeLinear")
def quantization(op: Builder, node: ir.Node, x: Operands) -> Result:
    """By one scale and zero point, which along the batch axis may differ, or by shared ones along an axis."""
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    if x.only(0) and x.rank(1) == 0:
        return again(op, node, *x.all())
    if block or x.rank(0) is None or x.rank(1) is None:
        return None
    if x.rank(1) == 0:
        zero_point = None if x.get(2) is None else x.repeated(2)
        return again(op, node, x.repeated(0), x.repeated(1), zero_point, axis=0)
    return again(op, node, *x.all(), axis=shifted(axis)) if x.only(0) else None
