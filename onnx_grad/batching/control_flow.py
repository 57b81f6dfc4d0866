"""Control flow whose way is the same for all examples: its bodies are batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.batching.axes import shifted, transpose
from onnx_grad.batching.emission import attributes
from onnx_grad.batching.extents import extents, product, reshape
from onnx_grad.builder import Builder
from onnx_grad.rules.bodies import body_graph
from onnx_grad.wiring import Iteration, body, certainly_runs, iteration

if TYPE_CHECKING:
    from onnx_grad.batching.walk import Walk

_BRANCHES = ("then_branch", "else_branch")


def batch_bodies(walk: Walk, node: ir.Node) -> None:
    """Build an `If`, `Loop` or `Scan` over batches, and note the counterparts of its outputs."""
    if node.op_type == "If":
        _if(walk, node)
    elif node.op_type == "Loop":
        _loop(walk, node)
    else:
        _scan(walk, node)


def _if(walk: Walk, node: ir.Node) -> None:
    """The branches batched. What one of them gives as a batch, the other gives as one too."""
    given = [output for output in node.outputs if output.name]
    positions = [i for i, output in enumerate(node.outputs) if output.name]
    branches: dict[str, Any] = {}
    for name in _BRANCHES:
        branch = body(node, name)
        branches[name] = _batched_body(
            walk, node, branch, [], [(branch.outputs[i], node.outputs[i] in walk.marked) for i in positions]
        )
    results = walk.op.node(
        "If", walk.shared(known.operand(node, 0)), outputs=len(given), shared=False, **branches
    )
    for output, result in zip(given, results, strict=True):
        result.type = output.type
        walk.note(output, result, output in walk.marked)


def _loop(walk: Walk, node: ir.Node) -> None:
    """The body batched, with every state that ever depends on the example as a batch from the start.

    A `Loop` stacks what its iterations write along the first axis, before the batch axis.
    """
    form = iteration(node)
    states = [_state(walk, s.initial, s.before in walk.marked) for s in form.states]
    outputs = [(form.body.outputs[0], False), *_given(walk, form)]
    graph = _batched_body(walk, node, form.body, form.body.inputs, outputs)
    control = [None if v is None else walk.shared(v) for v in (*node.inputs, None, None)[:2]]
    results = _run(walk, node, [*control, *states], graph)
    for s, result in zip(form.states, results, strict=False):
        if s.result.name:
            walk.note(s.result, result, s.before in walk.marked)
    for w, stack in zip(form.writes, results[len(states) :], strict=True):
        if w.whole.name:
            batched = w.slice in walk.marked
            walk.note(w.whole, _examples_first(walk, node, stack, w.slice) if batched else stack, batched)


def _scan(walk: Walk, node: ir.Node) -> None:
    """The same as for `Loop`; a `Scan` reads and writes slices along any axis."""
    form = iteration(node)
    states = [_state(walk, s.initial, s.before in walk.marked) for s in form.states]
    graph = _batched_body(walk, node, form.body, form.body.inputs, _given(walk, form))
    # ONNX Runtime wants to know the ranks of the states.
    for before, after in zip(graph.inputs[: len(states)], graph.outputs, strict=False):
        if after.shape is None and before.shape is not None:
            after.shape = ir.Shape([None] * len(before.shape))
    results = _run(
        walk,
        node,
        [*states, *(walk.value(r.whole) for r in form.reads)],
        graph,
        scan_input_axes=[shifted(r.axis) if r.slice in walk.marked else r.axis for r in form.reads] or None,
        scan_output_axes=[shifted(w.axis) if w.slice in walk.marked else w.axis for w in form.writes] or None,
    )
    carried = [(s.result, s.before in walk.marked) for s in form.states]
    written = [(w.whole, w.slice in walk.marked) for w in form.writes]
    for (output, batched), result in zip((*carried, *written), results, strict=True):
        if output.name:
            walk.note(output, result, batched)


def _state(walk: Walk, initial: ir.Value, batched: bool) -> ir.Value:
    return walk.repeated(initial) if batched else walk.shared(initial)


def _given(walk: Walk, form: Iteration) -> list[tuple[ir.Value, bool]]:
    """What an iteration gives out, with whether it is to be a batch."""
    states = [(s.after, s.before in walk.marked) for s in form.states]
    return [*states, *((w.slice, w.slice in walk.marked) for w in form.writes)]


def _run(
    walk: Walk,
    node: ir.Node,
    operands: Sequence[ir.Value | None],
    graph: ir.Graph,
    **changes: list[int] | None,
) -> tuple[ir.Value, ...]:
    own = attributes(node) | {"body": graph} | changes
    count = len(iteration(node).states) + len(iteration(node).writes)
    results: tuple[ir.Value, ...] = walk.op.node(node.op_type, *operands, outputs=count, shared=False, **own)
    for result, output in zip(results, node.outputs, strict=True):
        result.type = output.type
    return results


def _batched_body(
    walk: Walk,
    node: ir.Node,
    graph: ir.Graph,
    inputs: Sequence[ir.Value],
    outputs: Sequence[tuple[ir.Value, bool]],
) -> ir.Graph:
    """A body of `node` over batches.

    Args:
        walk: The walk through the graph that the node is in.
        node: The node.
        graph: Its body.
        inputs: The inputs of the body.
        outputs: Its outputs, with whether they are to be batches.
    """
    op = walk.op
    inner = op.for_body(node, repeats=node.op_type != "If")
    inside = walk.inside(inner)
    for value in graph.initializers.values():
        inside.note(value, _initializer(inner, value), batched=False)
    given = [_input(inside, value) for value in inputs]
    inside.run(graph, every=True)
    results = [inside.repeated(y) if batched else inside.shared(y) for y, batched in outputs]
    return body_graph(inner, inner.nodes, given, results, graph.name or f"{node.name}/body")


def _input(inside: Walk, value: ir.Value) -> ir.Value:
    """The counterpart of an input of a body."""
    batched = value in inside.marked
    shape = inside.batch.shape(value) if batched else value.shape
    counterpart = ir.Value(name=inside.op.unique_name(str(value.name)), shape=shape, type=value.type)
    inside.note(value, counterpart, batched)
    return counterpart


def _initializer(op: Builder, value: ir.Value) -> ir.Value:
    copy = ir.Value(
        name=op.unique_name(str(value.name)),
        shape=value.shape,
        type=value.type,
        const_value=value.const_value,
    )
    op.initializers.append(copy)
    return copy


def _examples_first(walk: Walk, node: ir.Node, stack: ir.Value, piece: ir.Value) -> ir.Value:
    """A stack [T, B, …] of batches as a batch [B, T, …] of stacks."""
    op, dims = walk.op, known.dimensions(piece)
    if dims is not None:
        stack.shape = ir.Shape([None, walk.batch.dimension, *dims])
    if certainly_runs(node) and dims is not None:
        return transpose(op, stack, [1, 0, *range(2, len(dims) + 2)])
    # Without an iteration, ONNX Runtime makes dimensions that it does not know zero, that of the batch too.
    return reshape(op, _swapped(op, stack), [walk.batch.size, *extents(stack, 0, 1), *extents(stack, 2)])


def _swapped(op: Builder, stack: ir.Value) -> ir.Value:
    matrices = reshape(op, stack, [*extents(stack, 0, 1), *extents(stack, 1, 2), product(extents(stack, 2))])
    return op.Transpose(matrices, perm=[1, 0, 2])
