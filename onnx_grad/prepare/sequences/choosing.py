"""Nodes that find one tensor of many when the model runs, and that make sequences then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.prepare.sequences.runs import Run

Part: TypeAlias = ir.Value | Run


def extended(op: Builder, sequence: ir.Value, run: Run) -> ir.Value:
    """A sequence with the parts of `run` behind it: a loop that inserts them."""
    inner = op.apart()
    index = ir.Value(name=op.unique_name("index"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.INT64))
    runs_on = ir.Value(name=op.unique_name("on"), shape=ir.Shape([]), type=ir.TensorType(ir.DataType.BOOL))
    before = ir.Value(name=op.unique_name("before"), type=sequence.type)
    after = inner.SequenceInsert(before, run.at(inner, index))
    after.type = sequence.type
    inputs, outputs = [index, runs_on, before], [inner.Identity(runs_on), after]
    body = ir.Graph(inputs, outputs, nodes=inner.nodes, name=op.unique_name("extended"))
    return op.node("Loop", run.length(op), None, sequence, shared=False, body=body)  # type: ignore[no-any-return]


def found(op: Builder, parts: Sequence[Part], position: ir.Value) -> ir.Value:
    """The tensor at `position`, which is not negative, of parts whose lengths are known at run time."""
    first, *rest = parts
    if not rest:
        return first.at(op, position) if isinstance(first, Run) else first
    length = first.length(op) if isinstance(first, Run) else op.constant(1, ir.DataType.INT64)
    return either(
        op,
        op.Less(position, length),
        lambda inner: found(inner, [first], position),
        lambda inner: found(inner, rest, inner.Sub(position, length)),
    )


def chosen(op: Builder, candidates: Sequence[ir.Value], index: ir.Value, first: int = 0) -> ir.Value:
    """Candidate number `index` of tensors of any shapes, counted from `first`: branches, halving them."""
    if len(candidates) == 1:
        return candidates[0]
    half = len(candidates) // 2
    return either(
        op,
        op.Less(index, first + half),
        lambda inner: chosen(inner, candidates[:half], index, first),
        lambda inner: chosen(inner, candidates[half:], index, first + half),
    )


def either(
    op: Builder,
    condition: ir.Value,
    then: Callable[[Builder], ir.Value],
    otherwise: Callable[[Builder], ir.Value],
) -> ir.Value:
    """What `then` builds where `condition` holds, else what `otherwise` builds; only that one is computed."""
    branches = [_branch(op, build) for build in (then, otherwise)]
    result = op.node("If", condition, shared=False, then_branch=branches[0], else_branch=branches[1])
    result.type = branches[0].outputs[0].type
    return result  # type: ignore[no-any-return]


def _branch(op: Builder, build: Callable[[Builder], ir.Value]) -> ir.Graph:
    inner = op.apart()
    value = build(inner)
    result = value
    if value.producer() not in inner.nodes:
        result = inner.Identity(value)
        result.shape = value.shape
    return ir.Graph([], [result], nodes=inner.nodes, name=op.unique_name(f"{op.scope}/branch"))
