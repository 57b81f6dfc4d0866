"""The recurrence with an update and a reset gate: GRU."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnx_grad.builder import Builder
from onnx_grad.registry import InputCotangent, gradient
from onnx_grad.rules.recurrence import Direction, Pulled, pull_back
from onnx_grad.rules.recurrent_activations import Activation, activations, undefined_activation
from onnx_grad.rules.steps import Stacks, Values

_DEFAULTS = ("Sigmoid", "Tanh")


@gradient("GRU", refuses=undefined_activation(*_DEFAULTS), convention="as for its activation functions")
def gru(op: Builder, node: ir.Node, dY: ir.Value | None, dY_h: ir.Value | None) -> Sequence[InputCotangent]:
    """h = (1 − z)·n + z·h', with h' the state before: dz = dh·(h' − n), dn = dh·(1 − z), dh' = dh·z + ….

    The gates z and r are f(x·Wᵀ + h'·Rᵀ + b), and n = g(x·Wᵀ + (r·h')·Rᵀ + b), through which a step backward
    takes one more product with R, for dr. There is no such product with `linear_before_reset`, which has
    r·(h'·Rᵀ + b) instead.
    """
    cell = _linear_before_reset if node.attributes.get_int("linear_before_reset", 0) else _reset_before_linear
    functions = activations(node, _DEFAULTS)
    pulled = [cell(op, Direction(op, node, d), dY, dY_h, *own) for d, own in enumerate(functions)]
    return pull_back(op, node, pulled)


def _reset_before_linear(
    op: Builder, own: Direction, dY: ir.Value | None, dY_h: ir.Value | None, f: Activation, g: Activation
) -> Pulled:
    """a = x·Wᵀ + (r·h')·Rᵀ + b: d(r·h') = da·R, dr = d(r·h')·h', dh' = … + d(r·h')·r."""
    gate_z, gate_r, gate_n = own.gates(3)
    a_z, a_r = gate_z.of(op, own.x, own.h), gate_r.of(op, own.x, own.h)
    z, r = f(op, a_z), f(op, a_r)
    reset = r * own.h
    a_n = gate_n.of(op, own.x, reset)
    n = g(op, a_n)
    stacks = {
        "z": own.steps(own.handing_on(z)),
        "r": own.steps(r),
        "da_z/dh": _by_update(own, n, f.slope(op, a_z, z)),
        "da_r/dreset": own.steps(own.h * f.slope(op, a_r, r)),
        "da_n/dh": _by_candidate(own, z, g.slope(op, a_n, n)),
        **own.d_steps(dY),
    }
    both = op.Concat(gate_z.r, gate_r.r, axis=0)

    def step(op: Builder, states: Values, now: Stacks) -> tuple[Values, Values]:
        dh = states[0] + now["dY"] if "dY" in now else states[0]
        da_n = dh * now["da_n/dh"]
        d_reset = op.MatMul(da_n, gate_n.r)
        da = op.Concat(dh * now["da_z/dh"], d_reset * now["da_r/dreset"], axis=1)
        return [dh * now["z"] + d_reset * now["r"] + op.MatMul(da, both)], [da, da_n]

    d_initial, *results = own.back(step, [own.d_final(dY_h)], stacks, [2, 1])
    da, da_n = map(own.rows, results)
    return Pulled(own, op.Concat(da, da_n, axis=1), [(da, own.h), (da_n, reset)], d_initial)


def _linear_before_reset(
    op: Builder, own: Direction, dY: ir.Value | None, dY_h: ir.Value | None, f: Activation, g: Activation
) -> Pulled:
    """a = x·Wᵀ + b + r·q with q = h'·Rᵀ + b': dr = da·q, dq = da·r, dh' = … + dq·R."""
    gate_z, gate_r, gate_n = own.gates(3)
    a_z, a_r = gate_z.of(op, own.x, own.h), gate_r.of(op, own.x, own.h)
    z, r = f(op, a_z), f(op, a_r)
    q = op.Gemm(own.h, gate_n.r, gate_n.r_bias, transB=1)
    a_n = op.Gemm(own.x, gate_n.w, gate_n.w_bias, transB=1) + r * q
    n = g(op, a_n)
    stacks = {
        "z": own.steps(own.handing_on(z)),
        "r": own.steps(r),
        "da_z/dh": _by_update(own, n, f.slope(op, a_z, z)),
        "da_r/da_n": own.steps(q * f.slope(op, a_r, r)),
        "da_n/dh": _by_candidate(own, z, g.slope(op, a_n, n)),
        **own.d_steps(dY),
    }

    def step(op: Builder, states: Values, now: Stacks) -> tuple[Values, Values]:
        dh = states[0] + now["dY"] if "dY" in now else states[0]
        da_n = dh * now["da_n/dh"]
        da = op.Concat(dh * now["da_z/dh"], da_n * now["da_r/da_n"], da_n * now["r"], axis=1)
        return [dh * now["z"] + op.MatMul(da, own.r)], [da, da_n]

    d_initial, *results = own.back(step, [own.d_final(dY_h)], stacks, [3, 1])
    da, da_n = map(own.rows, results)
    da_z, da_r, _ = op.Split(da, axis=1, num_outputs=3, outputs=3)
    return Pulled(own, op.Concat(da_z, da_r, da_n, axis=1), [(da, own.h)], d_initial)


def _by_update(own: Direction, n: ir.Value, slope: ir.Value) -> ir.Value:
    """da_z/dh = (h' − n)·f'(a_z), [T, N, H]."""
    return own.steps(own.where_running((own.h - n) * slope))


def _by_candidate(own: Direction, z: ir.Value, slope: ir.Value) -> ir.Value:
    """da_n/dh = (1 − z)·g'(a_n), [T, N, H]."""
    return own.steps(own.where_running((1.0 - z) * slope))
