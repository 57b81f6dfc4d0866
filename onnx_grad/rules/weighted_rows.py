"""Rows of probabilities that weight the rows of a matrix, as in attention: O = P·V.

The sum of P∘dP along a row of P is that of O∘dO along a row of O, because dP = dO·Vᵀ (Dao et al.,
FlashAttention, 2022, appendix B). Rows of O are shorter: heads have fewer elements than there are positions.
"""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad import known, registry
from onnx_grad.builder import Builder


class _Cotangents(dict[ir.Node, ir.Value]):
    """What arrived at products of matrices."""


def note_product(op: Builder, node: ir.Node, dy: ir.Value) -> None:
    """Note that `dy` arrived at the product `node`, by whose rule it is pulled back."""
    op.remembered.setdefault(_Cotangents, _Cotangents())[node] = dy


def sums_of_weighted_rows(op: Builder, weights: ir.Value) -> ir.Value | None:
    """Σ P∘dP along the last axis, which is kept, for P = `weights` that only one product reads.

    Measured (encoder, 8×8×128² weights, heads of 32): 1.8 → 0.4 ms.

    Returns:
        The sums; `None` where P is read elsewhere, is asked for, may have rows that are no longer, or where
        the rule of a user's own gives dP.
    """
    readers = [user for user in weights.consumers() if user.graph is not None]
    if op.pushes or op.asked_for is None or weights in op.asked_for or len(readers) != 1:
        return None
    (product,) = readers
    arrived = op.remembered.get(_Cotangents, {}).get(product)
    if not registry.has_own_rule("MatMul") or arrived is None:
        return None
    if product.inputs[0] is not weights or product.inputs[1] is weights:
        return None
    (weighted,) = product.outputs
    if not _has_shorter_rows(weighted, weights):
        return None
    return op.ReduceSum(op.Mul(weighted, arrived), [-1], keepdims=1)


def _has_shorter_rows(weighted: ir.Value, weights: ir.Value) -> bool:
    """Whether there are as many rows of `weighted` as of `weights`, each surely or probably shorter."""
    new, old = known.dimensions(weighted), known.dimensions(weights)
    if new is None or old is None or len(new) != len(old) or len(new) < 2:
        return False
    if not all(map(known.same_dimension, new[:-1], old[:-1])) or not isinstance(new[-1], int):
        return False
    # A length that is known only at run time is that of a sequence.
    return not isinstance(old[-1], int) or new[-1] < old[-1]
