"""Loops with a known number of iterations, written one after the other."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnx_grad import known
from onnx_grad.prepare.sequences import settled
from onnx_grad.prepare.sequences.bodies import unfold
from onnx_grad.prepare.sequences.context import Walk
from onnx_grad.wiring import Iteration

# Together, the copies of a body have no more nodes than this.
_MOST_NODES = 2000


def trip_count(node: ir.Node, form: Iteration) -> int | None:
    """How many iterations a `Loop` runs, where that is known and its copies would be few enough."""
    trips = settled.number(known.optional_operand(node, 0))
    condition = known.optional_operand(node, 1)
    if trips is None or trips * max(len(form.body), 1) > _MOST_NODES:
        return None
    starts = True if condition is None else settled.content(condition)
    return trips if starts is not None and np.all(starts) and _goes_on(form) else None


def _goes_on(form: Iteration) -> bool:
    """Whether an iteration never ends the loop."""
    value = form.body.outputs[0]
    producer = value.producer()
    if producer is not None and producer.op_type == "Identity":
        value = known.operand(producer, 0)
    content = settled.content(value)
    return value is form.body.inputs[1] or (content is not None and bool(content.all()))


def unroll(walk: Walk, node: ir.Node, form: Iteration, trips: int) -> None:
    """Put `trips` copies of the body of a `Loop` into its place, each reading what the one before gives."""
    site = walk.before(node)
    states = [state.initial for state in form.states]
    scans: list[list[ir.Value]] = [[] for _ in form.writes]
    nodes: list[ir.Node] = []
    rank = known.rank(form.body.inputs[0]) or 0
    for trip in range(trips):
        with site.writing() as op:
            index = op.constant(np.full([1] * rank, trip), ir.DataType.INT64)
            goes_on = op.constant(
                np.full([1] * (known.rank(form.body.inputs[1]) or 0), True), ir.DataType.BOOL
            )
        copies, results = unfold(
            walk.writer, form.body, [index, goes_on, *states], site, f"{node.name}/{trip}"
        )
        nodes += copies
        states = results[1 : 1 + len(states)]
        for scan, piece in zip(scans, results[1 + len(states) :], strict=True):
            scan.append(piece)
    with site.writing() as op:
        stacked = [op.Concat(*(op.Unsqueeze(piece, [0]) for piece in scan), axis=0) for scan in scans]
    walk.adopt(nodes)
    walk.replace(node, [*states, *stacked])
    walk.visit(nodes)
