"""The recurrence without gates: RNN."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.recurrence import Direction, Pulled, pull_back
from onnx_grad.rules.recurrent_activations import Activation, activations, undefined_activation
from onnx_grad.rules.steps import Stacks, Values

_DEFAULTS = ("Tanh",)


@gradient("RNN", refuses=undefined_activation(*_DEFAULTS), convention="as for its activation functions")
def rnn(op: Builder, node: ir.Node, dY: ir.Value | None, dY_h: ir.Value | None) -> Sequence[InputCotangent]:
    """h = f(a), a = x·Wᵀ + h'·Rᵀ + b, with h' the state before: da = dh·f'(a), dh' = da·R.

    For most functions, f'(a) is found from h.
    """
    functions = activations(node, _DEFAULTS)
    pulled = [_pull_back(op, Direction(op, node, d), dY, dY_h, *own) for d, own in enumerate(functions)]
    return pull_back(op, node, pulled)


def _pull_back(
    op: Builder, direction: Direction, dY: ir.Value | None, dY_h: ir.Value | None, f: Activation
) -> Pulled:
    (gate,) = direction.gates(1)
    slope = f.slope(op, lambda: gate.of(op, direction.x, direction.h), direction.y)
    stacks = {
        "slope": direction.steps(direction.where_running(slope)),
        **direction.d_steps(dY),
        **direction.ended(),
    }

    def step(op: Builder, states: Values, now: Stacks) -> tuple[Values, Values]:
        (dh,) = states
        if "dY" in now:
            dh = dh + now["dY"]
        da = dh * now["slope"]
        before = op.MatMul(da, direction.r)
        if "ended" in now:
            before = before + dh * now["ended"]
        return [before], [da]

    d_initial, da = direction.back(step, [direction.d_final(dY_h)], stacks, [1])
    rows = direction.rows(da)
    return Pulled(direction, rows, [(rows, direction.h)], d_initial)
