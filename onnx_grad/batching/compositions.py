"""Operators without a batching rule that others compose: what gives their gradient gives their batch too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir

from onnx_grad import registry
from onnx_grad.batching.dependence import dependents, refusals
from onnx_grad.composition import infer_composition
from onnx_grad.liveness import detach, live_nodes, read_values
from onnx_grad.recording import recording

if TYPE_CHECKING:
    from onnx_grad.batching.walk import Walk


def by_composition(walk: Walk, node: ir.Node) -> Sequence[ir.Value | None] | None:
    """The batched results of what `node` is composed of, by its gradient rule; `None` where there is none.

    Also where that lacks a result that is read, or cannot be batched itself.
    """
    entry = registry.lookup(node.domain, node.op_type, walk.op.opset)
    if entry.composition is None or (entry.refuses is not None and entry.refuses(node) is not None):
        return None
    apart = walk.op.apart()
    with recording(apart):
        made = entry.composition(apart, node)
    results: list[ir.Value | None] = [made] if isinstance(made, ir.Value) else list(made)
    results += [None] * (len(node.outputs) - len(results))
    infer_composition(apart.nodes, walk.op.opset)
    composed = live_nodes(apart.nodes, [result for result in results if result is not None])
    batched = _batched(walk, node, composed, results) if _is_complete(node, composed, results) else None
    detach(apart.nodes)
    return batched


def _is_complete(node: ir.Node, composed: Sequence[ir.Node], results: Sequence[ir.Value | None]) -> bool:
    """Whether every result that is read is composed, and of operands alone."""
    missing = [y for y, result in zip(node.outputs, results, strict=False) if y.name and result is None]
    if any(y.uses() or y.is_graph_output() for y in missing):
        return False
    return not any(value in node.outputs for inner in composed for value in read_values(inner))


def _batched(
    walk: Walk, node: ir.Node, composed: Sequence[ir.Node], results: Sequence[ir.Value | None]
) -> Sequence[ir.Value | None] | None:
    marked = dependents(composed, walk.marked)
    if next(refusals(composed, marked), None) is not None:
        return None
    walk.marked |= marked
    walk.beside_model().run(composed, every=True)
    return [
        walk.repeated(result) if result is not None and output.name else None
        for output, result in zip(node.outputs, results, strict=False)
    ]
