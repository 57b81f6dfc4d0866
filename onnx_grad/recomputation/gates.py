"""Holding values back until the backward pass has come to where they are read.

ONNX Runtime runs the nodes of a graph in an order of its own, and merges equal nodes. A gate is an integer
that is always zero, but depends on what the backward pass has computed so far. A value that is held at it,

    Reshape(x, Shape(x) + gate),

is x itself: no element is copied or computed with, so that nothing is rounded. But it is another value than
x, and is there only when the gate is. A gate is made of sizes of tensors: the minimum of some of them and 0.
ONNX Runtime computes no `Size` before a model runs, as it does with a `Shape` that is static.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.memory.sizes import HELD

# ONNX Runtime has kernels of `Size` for other devices than the CPU up to this opset.
_LAST_SIZE_ON_DEVICES = 18


def open_gate(op: Builder, after: Iterable[ir.Value], gate: ir.Value | None = None) -> ir.Value:
    """A gate that opens when the tensors `after`, and an earlier `gate`, are there."""
    first = op.constant(0, ir.DataType.INT64) if gate is None else gate
    with op.serving("gate"):
        sizes = [_size(op, value) for value in after if isinstance(value.type, ir.TensorType)]
        zero: ir.Value = op.Min(first, *sizes)
    return zero


def hold(op: Builder, value: ir.Value, gate: ir.Value) -> ir.Value:
    """`value`, when `gate` opens."""
    with op.serving(str(value.name)):
        held: ir.Value = op.Reshape(value, op.Add(_shape(op, value), gate), allowzero=1)
        op.label(held, f"{value.name}/held")
    held.shape, held.type = value.shape, value.type
    node = held.producer()
    if node is not None:
        node.metadata_props[HELD] = str(value.name)
    return held


def _size(op: Builder, value: ir.Value) -> ir.Value:
    """A number that is there when `value` is, and not negative."""
    if op.opset > _LAST_SIZE_ON_DEVICES:
        # A `Size` on the host has its operand copied there, which is to have no elements.
        value = op.Slice(op.Reshape(value, [-1]), [0], [0])
    return op.Size(value)


def _shape(op: Builder, value: ir.Value) -> ir.Value:
    static = known.static_shape(value)
    # Not what a conversion made the value of, which need not be alive.
    shape: ir.Value = op.node("Shape", value) if static is None else op.shape(value)
    return shape
