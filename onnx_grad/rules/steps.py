"""A `Scan` over the steps of sequences of any length, in either direction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.recording import recording
from onnx_grad.rules.bodies import body_graph

Values = Sequence[ir.Value]
Stacks = Mapping[str, ir.Value]
Step = Callable[[Builder, Values, Stacks], tuple[Values, Values]]


def scan_steps(
    op: Builder,
    node: ir.Node,
    step: Step,
    states: Values,
    stacks: Stacks,
    widths: Sequence[int],
    *,
    backward: bool,
) -> Values:
    """The states after all steps, then the stacked results of the steps, [T, N, width·H].

    ONNX Runtime does not scan tensors of length 0: where there may be no steps, the `Scan` is in an `If`, and
    without steps the states are zeros.

    Args:
        op: Builds the nodes.
        node: The forward node that they serve.
        step: Called with a builder, the states before a step and a slice of each stack; gives the states
            after it, and its results.
        states: The states to begin with, [N, H].
        stacks: Tensors [T, N, …] of which each step reads a slice, by name; their ranks must be known.
        widths: Of the results of a step, [N, width·H].
        backward: Whether to go from the last step to the first.
    """
    any_stack = next(iter(stacks.values()))
    length, *_ = known.dimensions(any_stack) or (None,)
    if isinstance(length, int) and length > 0:
        return _scan(op, node, step, states, stacks, widths, backward)
    some, none = op.for_body(node), op.for_body(node)
    results = _scan(some, node, step, states, stacks, widths, backward)
    branches: dict[str, Any] = {
        "then_branch": body_graph(some, some.nodes, [], results, f"{op.scope}/some_steps"),
        "else_branch": body_graph(
            none, none.nodes, [], _nothing(none, states, widths), f"{op.scope}/no_steps"
        ),
    }
    any_step = op.Greater(op.Size(any_stack), 0)
    handed: Values = op.node("If", any_step, outputs=len(results), shared=False, **branches)
    for value, result in zip(handed, results, strict=True):
        value.type, value.shape = result.type, result.shape
    return handed


def _scan(
    op: Builder,
    node: ir.Node,
    step: Step,
    states: Values,
    stacks: Stacks,
    widths: Sequence[int],
    backward: bool,
) -> Values:
    inner = op.for_body(node, repeats=True)
    before = [_input(op, "state", state, state.shape) for state in states]
    slices = {
        name: _input(op, name, stack, ir.Shape((known.dimensions(stack) or ())[1:]))
        for name, stack in stacks.items()
    }
    with recording(inner):
        after, given = step(inner, before, slices)
    # ONNX Runtime wants to know the ranks.
    shapes = [*(_dimensions(state) for state in states), *(_row(states[0], width) for width in widths)]
    for value, dims in zip((*after, *given), shapes, strict=True):
        if value.shape is None:
            value.shape = ir.Shape(dims)
    body = body_graph(inner, inner.nodes, [*before, *slices.values()], [*after, *given], f"{op.scope}/step")
    directions: dict[str, Any] = {
        "scan_input_directions": [1] * len(stacks),
        "scan_output_directions": [1] * len(widths),
    }
    results: Values = op.node(
        "Scan",
        *states,
        *stacks.values(),
        outputs=len(states) + len(widths),
        shared=False,
        body=body,
        num_scan_inputs=len(stacks),
        **(directions if backward else {}),
    )
    length, *_ = known.dimensions(next(iter(stacks.values()))) or (None,)
    for index, (value, dims) in enumerate(zip(results, shapes, strict=True)):
        value.type = states[0].type
        value.shape = ir.Shape(dims if index < len(states) else [length, *dims])
    return results


def _dimensions(state: ir.Value) -> list[known.Dimension | None]:
    """The sizes of a state, [N, H]."""
    return list(known.dimensions(state) or (None, None))


def _row(state: ir.Value, width: int) -> list[known.Dimension | None]:
    """The sizes of a result that is `width` times as wide as a state."""
    sequences, hidden = _dimensions(state)
    if width == 1:
        return [sequences, hidden]
    return [sequences, width * hidden if isinstance(hidden, int) else None]


def _nothing(op: Builder, states: Values, widths: Sequence[int]) -> Values:
    """What there is without steps: zeros, and stacks of length 0."""
    zero = op.scalar_like(0.0, states[0])
    zeros = [op.Expand(zero, op.Shape(state)) for state in states]
    shapes = (op.Concat([0], op.Mul(op.Shape(states[0]), [1, width]), axis=0) for width in widths)
    return [*zeros, *(op.Expand(zero, shape) for shape in shapes)]


def _input(op: Builder, name: str, like: ir.Value, shape: ir.Shape | None) -> ir.Value:
    """An input of a body."""
    return ir.Value(name=op.unique_name(f"{op.scope}/{name}"), shape=shape, type=like.type)
