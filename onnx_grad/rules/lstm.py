"""The recurrence with a cell state: LSTM."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.recurrence import Direction, Pulled, join, join_states, pull_back
from onnx_grad.rules.recurrent_activations import Activation, activations, undefined_activation
from onnx_grad.rules.steps import Stacks, Values

_INITIAL_C, _P = 6, 7
_DEFAULTS = ("Sigmoid", "Tanh", "Tanh")


@gradient("LSTM", refuses=undefined_activation(*_DEFAULTS), convention="as for its activation functions")
def lstm(
    op: Builder, node: ir.Node, dY: ir.Value | None, dY_h: ir.Value | None, dY_c: ir.Value | None
) -> Sequence[InputCotangent]:
    """h = o·φ(c) and c = f·c' + i·g, with c' the cell state before; the gates are σ(a), but g = ψ(a).

    do = dh·φ(c), dc = dc + dh·o·φ'(c), di = dc·g, dg = dc·i, df = dc·c', and then dc' = dc·f, dh' = da·R.

    a = x·Wᵀ + h'·Rᵀ + b, to which peepholes add P·c' for i and f, and P·c for o. With `input_forget`,
    f = 1 − i. The cell states are no outputs: a `Scan` computes them again from the gates. As in ONNX
    Runtime, `clip` bounds every a, and not the argument of φ.
    """
    is_coupled = bool(node.attributes.get_int("input_forget", 0))
    cells = [
        _Cell(op, Direction(op, node, d), is_coupled, *own)
        for d, own in enumerate(activations(node, _DEFAULTS))
    ]
    pulled, d_initial_c = zip(*(cell.pull_back(dY, dY_h, dY_c) for cell in cells), strict=True)
    return [
        *pull_back(op, node, pulled),
        lambda: join_states(op, node, d_initial_c),
        lambda: join(op, [cell.d_peepholes(p.gates) for cell, p in zip(cells, pulled, strict=True)]),
    ][: len(node.inputs)]


class _Cell:
    """The cell of one direction: its gates and cell states in all steps, found again."""

    def __init__(
        self,
        op: Builder,
        own: Direction,
        is_coupled: bool,
        at_gates: Activation,
        at_candidate: Activation,
        at_output: Activation,
    ) -> None:
        self._op, self._own, self._is_coupled = op, own, is_coupled
        self._at_gates, self._at_candidate = at_gates, at_candidate
        self._at_output = dataclasses.replace(at_output, clip=None)
        peepholes = own.weight(_P)
        self._peepholes = None if peepholes is None else op.Split(peepholes, num_outputs=3, outputs=3)
        for peephole in self._peepholes or ():
            peephole.shape = ir.Shape([own.hidden])
        a_i, a_o, a_f, self._a_g = (gate.of(op, own.x, own.h) for gate in own.gates(4))
        self._g = at_candidate(op, self._a_g)
        self._c_before, self._c = map(own.rows, self._cell_states(a_i, a_f))
        self._a_i, self._a_f = self._with_peepholes(a_i, a_f, self._c_before)
        self._a_o = a_o if self._peepholes is None else a_o + self._peepholes[1] * self._c
        self._i, self._f = self._input_and_forget(op, self._a_i, self._a_f)
        self._o = at_gates(op, self._a_o)

    def pull_back(
        self, dY: ir.Value | None, dY_h: ir.Value | None, dY_c: ir.Value | None
    ) -> tuple[Pulled, ir.Value]:
        """The cotangents of the gates and of the initial states, going back through time."""
        own, r, peepholes = self._own, self._own.r, self._peepholes

        def step(op: Builder, states: Values, now: Stacks) -> tuple[Values, Values]:
            dh, dc = states
            if "dY" in now:
                dh = dh + now["dY"]
            da_o = dh * now["da_o/dh"]
            dc = dc + dh * now["dc/dh"]
            if peepholes is not None:
                dc = dc + da_o * peepholes[1]
            da_i, da_f, da_g = (dc * now[f"da_{gate}/dc"] for gate in "ifg")
            da = op.Concat(da_i, da_o, da_f, da_g, axis=1)
            dh_before, dc_before = op.MatMul(da, r), dc * now["f"]
            if peepholes is not None:
                dc_before = dc_before + da_i * peepholes[0] + da_f * peepholes[2]
            if "ended" in now:
                dh_before = dh_before + dh * now["ended"]
            return [dh_before, dc_before], [da]

        stacks = {**self._coefficients(), **own.d_steps(dY), **own.ended()}
        dh, dc, da = own.back(step, [own.d_final(dY_h), own.d_final(dY_c)], stacks, [4])
        rows = own.rows(da)
        return Pulled(own, rows, [(rows, own.h)], dh), dc

    def d_peepholes(self, gates: ir.Value) -> ir.Value:
        """The cotangent of P, [3·H], given that of the gates."""
        da_i, da_o, da_f, _ = self._op.Split(gates, axis=1, num_outputs=4, outputs=4)
        by_state = (da_i * self._c_before, da_o * self._c, da_f * self._c_before)
        return self._op.Concat(*(self._op.ReduceSum(d, [0], keepdims=0) for d in by_state), axis=0)

    def _coefficients(self) -> Stacks:
        """What a step backward multiplies the cotangents of its states with, [T, N, H]."""
        op, own, sigma = self._op, self._own, self._at_gates
        output = self._at_output(op, self._c)
        i_slope = sigma.slope(op, self._a_i, self._i)
        if self._is_coupled:
            by_i, by_f = i_slope * (self._g - self._c_before), self._c * 0.0
        else:
            by_i, by_f = i_slope * self._g, sigma.slope(op, self._a_f, self._f) * self._c_before
        masked = {
            "da_o/dh": sigma.slope(op, self._a_o, self._o) * output,
            "dc/dh": self._at_output.slope(op, self._c, output) * self._o,
            "da_i/dc": by_i,
            "da_f/dc": by_f,
            "da_g/dc": self._at_candidate.slope(op, self._a_g, self._g) * self._i,
        }
        stacks = {name: own.steps(own.where_running(rows)) for name, rows in masked.items()}
        return {**stacks, "f": own.steps(own.handing_on(self._f))}

    def _cell_states(self, a_i: ir.Value, a_f: ir.Value) -> Values:
        """The cell states before and after the steps, [T, N, H], from the gates without peepholes."""
        op, own = self._op, self._own
        initial = [own.initial(_INITIAL_C)]
        if self._peepholes is not None:
            stacks = {"a_i": own.steps(a_i), "a_f": own.steps(a_f), "g": own.steps(self._g), **own.ended()}
            return own.forth(self._peeping_step, initial, stacks, [1, 1])[1:]

        def step(op: Builder, states: Values, now: Stacks) -> tuple[Values, Values]:
            (c,) = states
            after = c * now["f"] + now["ig"]
            return [after], [c, after]

        i, f = self._input_and_forget(op, a_i, a_f)
        stacks = {"f": own.steps(own.handing_on(f)), "ig": own.steps(own.where_running(i * self._g))}
        return own.forth(step, initial, stacks, [1, 1])[1:]

    def _peeping_step(self, op: Builder, states: Values, now: Stacks) -> tuple[Values, Values]:
        (c,) = states
        i, f = self._input_and_forget(op, *self._with_peepholes(now["a_i"], now["a_f"], c))
        after = c * f + i * now["g"]
        if "ended" in now:
            after = after + (c - after) * now["ended"]
        return [after], [c, after]

    def _with_peepholes(self, a_i: ir.Value, a_f: ir.Value, c: ir.Value) -> tuple[ir.Value, ir.Value]:
        """The arguments of the input and the forget gate, to which the cell state before is added."""
        if self._peepholes is None:
            return a_i, a_f
        p_i, _, p_f = self._peepholes
        return a_i + c * p_i, a_f + c * p_f

    def _input_and_forget(self, op: Builder, a_i: ir.Value, a_f: ir.Value) -> tuple[ir.Value, ir.Value]:
        i = self._at_gates(op, a_i)
        return i, 1.0 - i if self._is_coupled else self._at_gates(op, a_f)
