"""Recurrent networks: more sequences for the same weights."""

from __future__ import annotations

import onnx_ir as ir

from onnx_grad.batching.operands import Operands
from onnx_grad.batching.registry import Result, batching
from onnx_grad.batching.rules.folding import folded
from onnx_grad.builder import Builder


@batching("RNN", "GRU", "LSTM")
def recurrent(op: Builder, node: ir.Node, x: Operands) -> Result:
    """hₜ = f(xₜ, hₜ₋₁) for N sequences. Weights that differ between the examples run in a `Scan`."""
    if not x.only(0, 4, 5, 6):
        return None
    # Of the layouts [T, N, …] and [N, T, …], states [directions, N, …] and [N, directions, …].
    if node.attributes.get_int("layout", 0):
        return folded(op, node, x, [0, 4, 5, 6])
    return folded(op, node, x, {0: 1, 4: 0, 5: 1, 6: 1}, [2, 1, 1])
