"""What the iterations of a `Scan` hand on, in a form that ONNX Runtime takes."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.rules.bodies import placeholder


@dataclass(frozen=True)
class HandedOn:
    """A derivative that iterations hand on: of a state, or of a captured tensor.

    ONNX Runtime wants to know the rank of what a `Scan` hands on. Where it is unknown, it goes as a vector.

    Attributes:
        primal: What it is the derivative of, outside of the bodies.
        initial: What it starts as.
        before: The body's input.
        value: The same in the shape of the primal.
    """

    primal: ir.Value
    initial: ir.Value
    before: ir.Value
    value: ir.Value

    def in_shape(self, op: Builder, result: ir.Value, like: ir.Value) -> ir.Value:
        """A `result` of the `Scan` for it, in the shape of `like`."""
        return result if self.before is self.value else op.reshape_like(result, like)


def hand_on(
    op: Builder, inner: Builder, primal: ir.Value, initial: ir.Value | None, like: ir.Value, kind: str
) -> HandedOn:
    """A derivative that starts as `initial`, or as zeros, of the shape and type of `like` in the body.

    Args:
        op: Builds what is outside of the body.
        inner: Builds the body.
        primal: What it is the derivative of.
        initial: What it starts as, if that is not zeros.
        like: The same as `primal` in the body.
        kind: What to call it.
    """
    initial = op.zeros_like(primal) if initial is None else initial
    if known.rank(like) is not None:
        before = placeholder(op, like, f"{like.name}/{kind}")
        return HandedOn(primal, initial, before, before)
    before = ir.Value(name=op.unique_name(f"{like.name}/{kind}"), shape=ir.Shape([None]), type=like.type)
    flat = op.Reshape(initial, [-1])
    return HandedOn(primal, flat, before, inner.Reshape(before, op.Shape(primal), allowzero=1))


def in_form_of(op: Builder, value: ir.Value, like: ir.Value) -> ir.Value:
    """`value` with the rank of `like` declared, a vector where that is one for its unknown rank."""
    dims, own = known.dimensions(like), known.dimensions(value)
    if dims is None:
        return value
    if len(dims) == 1 and (own is None or len(own) != 1):
        value = op.Reshape(value, [-1])
    if own is None:
        value.shape = ir.Shape([d if isinstance(d, int) else None for d in dims])
    return value
