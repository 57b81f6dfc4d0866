"""Matrix products: one large product where all examples share a matrix."""

from __future__ import annotations

import string

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import aligned_to, behind_batch, transpose
from onnx_grad.batching.emission import again
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.builder import Builder


@batching("MatMul")
def matmul(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Y = A·B: the batch axis is one more that the matrices are stacked along.

    ONNX Runtime multiplies a stack with one matrix B as one product of all rows.
    """
    rank_a, rank_b = x.rank(0), x.rank(1)
    if rank_a is None or rank_b is None:
        return _of_unknown_rank(op, node, x)
    if rank_a == 1 and rank_b == 2 and not x.is_batched(1):
        return op.MatMul(x[0], x[1])
    if rank_a == 2 and rank_b == 1 and not x.is_batched(0):
        return op.MatMul(x[1], transpose(op, x[0], [1, 0]))
    a = _matrix(op, x, 0, -2, rank_a)
    b = _matrix(op, x, 1, -1, rank_b)
    rank = max(rank_a, rank_b, 2)
    a = behind_batch(op, a, rank - max(rank_a, 2)) if x.is_batched(0) else a
    b = behind_batch(op, b, rank - max(rank_b, 2)) if x.is_batched(1) else b
    product = op.MatMul(a, b)
    added = [axis for axis, r in ((-2, rank_a), (-1, rank_b)) if r == 1]
    return op.Squeeze(product, added) if added else product


def _matrix(op: Builder, x: Operands, index: int, axis: int, rank: int) -> ir.Value:
    """An operand, where it is a vector with an axis to make it a matrix."""
    if rank > 1:
        return x[index]
    result = op.Unsqueeze(x[index], [axis])
    dims = known.dimensions(x[index])
    if dims is not None:
        result.shape = ir.Shape([*dims[:-1], 1, dims[-1]] if axis == -2 else [*dims, 1])
    return result


def _of_unknown_rank(op: Builder, node: ir.Node, x: Operands) -> Result:
    """The same where it is seen at run time which operands are vectors."""
    ranks = [_rank(op, x, index) for index in (0, 1)]
    vector = [op.Cast(op.Equal(rank, 1), to=ir.DataType.INT64) for rank in ranks]
    a, b = (
        op.Unsqueeze(x[index], op.Expand(op.constant([axis], ir.DataType.INT64), vector[index]))
        for index, axis in ((0, -2), (1, -1))
    )
    full = [op.Max(rank, [2]) for rank in ranks]
    highest = op.Max(*full)
    operands = []
    for index, value in enumerate((a, b)):
        if x.is_batched(index):
            end = op.Squeeze(op.Add(op.Sub(highest, full[index]), [1]), [0])
            value = op.Unsqueeze(value, op.Range(1, end, 1))
        operands.append(value)
    product = op.MatMul(*operands)
    kept = op.Concat(
        op.Shape(product, start=0, end=-2),
        op.Slice(op.Shape(product, start=-2, end=-1), vector[0], [1]),
        op.Slice(op.Shape(product, start=-1), vector[1], [1]),
        axis=0,
    )
    return op.Reshape(product, kept, allowzero=1)


def _rank(op: Builder, x: Operands, index: int) -> ir.Value:
    """The rank of an operand of one example, as a tensor of shape [1]."""
    total = op.Shape(op.Shape(x[index]))
    return op.Sub(total, [1]) if x.is_batched(index) else total


@batching("Gemm")
def gemm(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Y = α·A'·B' + β·C: a stack of products, or one of all rows where all examples share B."""
    get = node.attributes.get_float
    alpha, beta = get("alpha", 1.0), get("beta", 1.0)
    a = _transposed(op, x[0]) if node.attributes.get_int("transA", 0) else x[0]
    b = _transposed(op, x[1]) if node.attributes.get_int("transB", 0) else x[1]
    if not (x.is_batched(0) or x.is_batched(1)):
        shared = {name: attribute.value for name, attribute in node.attributes.items() if name != "beta"}
        product = op.Gemm(x[0], x[1], **shared)
    else:
        product = op.MatMul(a, b)
        if alpha != 1.0:
            product = product * op.scalar_like(alpha, product)
    if x.get(2) is None or beta == 0.0:
        return product
    c = aligned_to(op, x, 2, 2)
    return product + (c if beta == 1.0 else c * op.scalar_like(beta, c))


def _transposed(op: Builder, value: ir.Value) -> ir.Value:
    """Each matrix of a stack transposed, or a single matrix."""
    rank = known.rank(value)
    if rank is None:
        swapped = op.Einsum(value, equation="...ij->...ji")
        swapped.type = value.type
        return swapped
    return transpose(op, value, [*range(rank - 2), rank - 1, rank - 2])


@batching("Einsum")
def einsum(op: Builder, node: ir.Node, x: Operands) -> Result:
    """One more label, of the batch axis, in every batched term and in the result."""
    text = node.attributes["equation"].as_string().replace(" ", "")
    inputs, arrow, output = text.partition("->")
    if not arrow:
        labels = inputs.replace("...", "").replace(",", "")
        once = sorted(label for label in set(labels) if labels.count(label) == 1)
        output = "..." * ("..." in inputs) + "".join(once)
    label = next(c for c in string.ascii_letters if c not in text)
    terms = [(label if x.is_batched(i) else "") + term for i, term in enumerate(inputs.split(","))]
    return op.Einsum(*x.all(), equation=f"{','.join(terms)}->{label}{output}")


@batching("MatMulInteger")
def matmul_integer(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Y = (A − a₀)·(B − b₀), with zero points that all examples share."""
    return _quantized(op, node, x, 0, 1, [2, 3])


@batching("QLinearMatMul")
def quantized_matmul(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Y = A·B on quantised numbers, with scales and zero points that all examples share."""
    return _quantized(op, node, x, 0, 3, [1, 2, 4, 5, 6, 7])


def _quantized(op: Builder, node: ir.Node, x: Operands, first: int, second: int, scales: list[int]) -> Result:
    ranks = x.rank(first), x.rank(second)
    if not x.only(first, second) or None in ranks or min(r or 0 for r in ranks) < 2:
        return None
    if any(x.get(i) is not None and x.rank(i) != 0 for i in scales):
        return None
    operands = x.all()
    highest = max(r or 0 for r in ranks)
    for index, rank in zip((first, second), ranks, strict=True):
        value = operands[index]
        if x.is_batched(index) and value is not None:
            operands[index] = behind_batch(op, value, highest - (rank or 0))
    return again(op, node, *operands)
