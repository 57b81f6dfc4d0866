"""Ranks that follow though shapes do not: onnx's inference gives up both at once.

A `Reshape` to a shape that is computed at run time has as many axes as that shape has elements, and most
operators keep the rank of an operand. With ranks, batching needs less at run time.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.rules.pointwise import BROADCASTING, UNARY

_KEEPING = frozenset(
    (
        f"{UNARY} Clip CumProd CumSum Dropout Expand GatherElements Hardmax LogSoftmax LpNormalization Pad "
        "PRelu ScatterElements ScatterND Slice Softmax Tile Transpose Trilu"
    ).split()
)
_BROADCASTING = frozenset(BROADCASTING.split())


def settle_ranks(nodes: Iterable[ir.Node]) -> None:
    """Note the ranks of results of `nodes`, in topological order, where they follow and no shape is known."""
    for node in nodes:
        if node.domain == "" and node.outputs and node.outputs[0].shape is None:
            rank = _rank(node)
            if rank is not None:
                node.outputs[0].shape = ir.Shape([None] * rank)


def _rank(node: ir.Node) -> int | None:
    """The rank of the first output."""
    ranks = [None if value is None else known.rank(value) for value in node.inputs]
    if node.op_type in _BROADCASTING:
        present = [rank for rank in ranks if rank is not None]
        return max(present) if len(present) == len(ranks) else None
    if node.op_type in ("Reshape", "ConstantOfShape"):
        return _length(node, len(ranks) - 1)
    if not ranks or ranks[0] is None:
        return None
    if node.op_type in ("Expand", "Squeeze", "Unsqueeze"):
        return _with_length(node.op_type, ranks[0], _length(node, 1))
    if node.op_type == "MatMul" and ranks[1] is not None:
        vectors = ranks.count(1)
        return max(ranks[0], ranks[1]) - vectors if vectors < 2 else 0
    if node.op_type.startswith("Reduce"):
        return _reduced(node, ranks[0])
    if node.op_type == "Gather" and ranks[1] is not None:
        return ranks[0] - 1 + ranks[1]
    return ranks[0] if node.op_type in _KEEPING else None


def _with_length(op_type: str, rank: int, length: int | None) -> int | None:
    if length is None or (op_type == "Squeeze" and not length):
        return None
    if op_type == "Expand":
        return max(rank, length)
    return rank + length if op_type == "Unsqueeze" else rank - length


def _reduced(node: ir.Node, rank: int) -> int | None:
    if node.attributes.get_int("keepdims", 1):
        return rank
    length = _length(node, 1)
    return rank - length if length else None


def _length(node: ir.Node, index: int) -> int | None:
    """How many elements the vector has that is operand `index`."""
    value = known.optional_operand(node, index)
    shape = None if value is None else known.static_shape(value)
    return shape[0] if shape else None
