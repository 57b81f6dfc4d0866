"""Matrix products with more in them: FusedMatMul, TransposeMatMul, FusedGemm, GemmFastGelu."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.broadcasting import undo_broadcast
from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, composition, gradient
from onnx_grad.rules.activations import tanh_gelu_slope
from onnx_grad.rules.contrib.activation import activated, undefined_activation
from onnx_grad.rules.contrib.domain import DOMAIN
from onnx_grad.rules.linear import annotate_stretched, product_cotangents, swap_last_two


@gradient("FusedMatMul", domain=DOMAIN)
@gradient("TransposeMatMul", domain=DOMAIN)
def fused_matmul(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = α·A'·B': dA' = α·dY·B'ᵀ, dB' = α·A'ᵀ·dY, where A' is A or Aᵀ and B' is B or Bᵀ."""
    a, b = (_Factor(op, node, index) for index in (0, 1))
    alpha = node.attributes.get_float("alpha", 1.0)
    if alpha != 1:
        dy = dy * alpha
    if not a.transposed and not b.transposed:
        da, db = product_cotangents(op, a.matrices, b.matrices, node.outputs[0], dy)
    elif 1 in (known.rank(a.matrices), known.rank(b.matrices)):
        da, db = _with_vector(op, a, b, node.outputs[0], dy)
    elif known.rank(b.matrices) == 2 and not a.transposed:
        da, db = _linear_layer(op, a, b, dy)
    else:
        da, db = _batched(op, a, b, node.outputs[0], dy)
    return lambda: a.cotangent(da), lambda: b.cotangent(db)


class _Factor:
    """An operand of a product: a stack of matrices, each of which may be transposed.

    With `transBatch`, the first axis of the operand counts the rows, and the axes after it are those of the
    stack.

    Attributes:
        matrices: The operand with its rows on the last axis but one.
        transposed: Whether the transposed matrices are multiplied.
    """

    def __init__(self, op: Builder, node: ir.Node, index: int) -> None:
        self._op, self._operand = op, known.operand(node, index)
        name = "AB"[index]
        rank = known.rank(self._operand)
        self.transposed = rank != 1 and bool(node.attributes.get_int(f"trans{name}", 0))
        self._rows_first = rank not in (1, 2) and bool(node.attributes.get_int(f"transBatch{name}", 0))
        self.matrices = self._rows_last(self._operand) if self._rows_first else self._operand

    def cotangent(self, cotangent: InputCotangent) -> ir.Value | None:
        """The cotangent of the operand, given that of `matrices`."""
        value = cotangent() if callable(cotangent) else cotangent
        if value is None or not self._rows_first:
            return value
        op, rank = self._op, known.rank(self._operand)
        if rank is not None:
            return op.Transpose(value, perm=[rank - 2, *range(rank - 2), rank - 1])
        stack = op.ReduceProd(op.Shape(self._operand, start=1, end=-1), keepdims=1)
        ends = op.Shape(self._operand, end=1), op.Shape(self._operand, start=-1)
        merged = op.Reshape(value, op.Concat(stack, *ends, axis=0), allowzero=1)
        return op.reshape_like(op.Transpose(merged, perm=[1, 0, 2]), self._operand)

    def _rows_last(self, x: ir.Value) -> ir.Value:
        op, rank = self._op, known.rank(x)
        if rank is not None:
            rows_last = op.Transpose(x, perm=[*range(1, rank - 1), 0, rank - 1])
            dims = known.dimensions(x)
            if dims is not None:
                rows_last.shape = ir.Shape([*dims[1:-1], dims[0], dims[-1]])
            return rows_last
        rows, stack, last = op.Shape(x, end=1), op.Shape(x, start=1, end=-1), op.Shape(x, start=-1)
        merged = op.Reshape(x, op.Concat(rows, op.ReduceProd(stack, keepdims=1), last, axis=0), allowzero=1)
        turned = op.Transpose(merged, perm=[1, 0, 2])
        return op.Reshape(turned, op.Concat(stack, rows, last, axis=0), allowzero=1)


def _with_vector(op: Builder, a: _Factor, b: _Factor, y: ir.Value, dy: ir.Value) -> Sequence[InputCotangent]:
    """One operand is a vector, the other one is transposed: as MatMul of what is transposed before."""

    def turned(factor: _Factor) -> ir.Value:
        if not factor.transposed:
            return factor.matrices
        dims = known.dimensions(factor.matrices)
        result = swap_last_two(op, factor.matrices, None if dims is None else len(dims))
        result.shape = None if dims is None else ir.Shape([*dims[:-2], dims[-1], dims[-2]])
        return result

    def turned_back(cotangent: InputCotangent, factor: _Factor) -> ir.Value | None:
        value = cotangent() if callable(cotangent) else cotangent
        if value is None or not factor.transposed:
            return value
        return swap_last_two(op, value, known.rank(factor.matrices))

    da, db = product_cotangents(op, turned(a), turned(b), y, dy)
    return lambda: turned_back(da, a), lambda: turned_back(db, b)


def _linear_layer(op: Builder, a: _Factor, b: _Factor, dy: ir.Value) -> Sequence[InputCotangent]:
    """Y = A·Bᵀ with B of rank 2: all rows of A meet the same B."""

    def db() -> ir.Value:
        return op.Gemm(op.Flatten(dy, axis=-1), op.Flatten(a.matrices, axis=-1), transA=1)

    return lambda: op.MatMul(dy, b.matrices), db


def _batched(op: Builder, a: _Factor, b: _Factor, y: ir.Value, dy: ir.Value) -> Sequence[InputCotangent]:
    """The four cases of `Gemm` for stacks of matrices; only operands are transposed, which fuses again."""
    dims = known.dimensions(y)
    stack = None if dims is None else dims[:-2]

    def turned(x: ir.Value, transposed: bool) -> ir.Value:
        return swap_last_two(op, x, known.rank(y if x is dy else x)) if transposed else x

    def summed(stretched: ir.Value, factor: _Factor) -> ir.Value:
        annotate_stretched(stretched, stack, factor.matrices)
        return undo_broadcast(op, stretched, factor.matrices, stretched)

    def da() -> ir.Value:
        if a.transposed:
            return summed(op.MatMul(turned(b.matrices, b.transposed), turned(dy, True)), a)
        return summed(op.MatMul(dy, turned(b.matrices, not b.transposed)), a)

    def db() -> ir.Value:
        if b.transposed:
            return summed(op.MatMul(turned(dy, True), turned(a.matrices, a.transposed)), b)
        return summed(op.MatMul(turned(a.matrices, not a.transposed), dy), b)

    return da, db


@composition("FusedGemm", domain=DOMAIN, refuses=undefined_activation)
def fused_gemm(op: Builder, node: ir.Node) -> ir.Value:
    """Y = activation(α·A'·B' + β·C)."""
    attributes = {
        name: attribute.value
        for name, attribute in node.attributes.items()
        if not name.startswith("activation")
    }
    return activated(op, node, op.Gemm(*node.inputs, **attributes))


@gradient("GemmFastGelu", domain=DOMAIN)
def gemm_fast_gelu(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = gelu(u), u = X·W + b, in the approximation with tanh: du = dy·gelu'(u), then as for MatMul."""
    x, w, bias = known.operand(node, 0), known.operand(node, 1), known.optional_operand(node, 2)
    product = op.MatMul(x, w)
    du = dy * tanh_gelu_slope(op, product if bias is None else product + bias)
    dx, dw = product_cotangents(op, x, w, node.outputs[0], du)
    if bias is None:
        return dx, dw
    return dx, dw, lambda: undo_broadcast(op, du, bias, node.outputs[0])
