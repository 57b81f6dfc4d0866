"""Random operators: each example that is batched has draws of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import aligned_to, rank_of
from onnx_grad.batching.emission import again
from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import folded
from onnx_grad.builder import Builder


@batching("Dropout")
def dropout(op: Builder, node: ir.Node, x: Operands) -> Result:
    """y = x·m/(1 − p) in training, else x; with masks m that are drawn here where p differs."""
    if x.only(0):
        return again(op, node, *x.all())
    values, training = x.repeated(0), x.get(2)
    if training is None or known.constant(training) == np.array(False):
        everything = op.Expand(op.constant(True, ir.DataType.BOOL), op.Shape(values))
        return [values, everything][: len(node.outputs)]
    rank = rank_of(op, x, 0)
    ratio = (
        op.scalar_like(0.5, values) if x.get(1) is None else op.CastLike(aligned_to(op, x, 1, rank), values)
    )
    seed = node.attributes.get_int("seed", None)
    draw = op.RandomUniformLike(values, seed=None if seed is None else float(seed))
    kept = op.GreaterOrEqual(draw, ratio)
    unchanged = op.Not(aligned_to(op, x, 2, rank))
    dropped = op.Where(kept, op.Div(values, op.Sub(op.scalar_like(1.0, values), ratio)), 0.0)
    return [op.Where(unchanged, values, dropped), op.Or(unchanged, kept)][: len(node.outputs)]


@batching("Bernoulli", "RandomNormalLike", "RandomUniformLike")
def random_like(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Draws of the shape of x: each example has its own."""
    return again(op, node, x[0])


@batching("Multinomial")
def multinomial(op: Builder, node: ir.Node, x: Operands) -> Result:
    """Draws by row: each example has its own."""
    return folded(op, node, x, [0])
