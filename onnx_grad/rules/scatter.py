"""Operators that write updates at given indices: ScatterElements, ScatterND, TensorScatter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number, keep_where
from onnx_grad.registry import InputCotangent, gradient, refused
from onnx_grad.rules.precision import widen
from onnx_grad.rules.products import product_of_others

refused(
    "Scatter", reason="it ended with opset 10; lift the model to a newer opset, where it is ScatterElements"
)

_TIES = "a maximum or minimum met several times shares its cotangent evenly"


@dataclass(frozen=True)
class _Places:
    """The places that an operator writes to.

    Attributes:
        read: `read(y)` is what stands at these places, of the shape of the updates.
        write: `write(data, updates, reduction)` is `data` with the updates written there.
    """

    read: Callable[[ir.Value], ir.Value]
    write: Callable[[ir.Value, ir.Value, str], ir.Value]


@gradient("ScatterElements", convention=_TIES)
def scatter_elements(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = data with updates written, added, … at indices along an axis; see `_written` and below."""
    indices = known.operand(node, 1)
    axis = node.attributes.get_int("axis", 0)
    places = _Places(
        lambda y: op.GatherElements(y, indices, axis=axis),
        lambda data, updates, reduction: op.ScatterElements(
            data, indices, updates, axis=axis, reduction=reduction
        ),
    )
    return _scattered(op, node, dy, places)


@gradient("ScatterND", convention=_TIES)
def scatter_nd(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = data with slices written, added, … at indices; see `_written` and below."""
    indices = known.operand(node, 1)
    places = _Places(
        lambda y: op.GatherND(y, indices),
        lambda data, updates, reduction: op.ScatterND(data, indices, updates, reduction=reduction),
    )
    return _scattered(op, node, dy, places)


@gradient("TensorScatter")
def tensor_scatter(op: Builder, node: ir.Node, dy: ir.Value) -> Sequence[InputCotangent]:
    """y = a cache with an update written into it: d cache = dy with zeros there, d update = dy there."""
    update, starts = known.operand(node, 1), known.optional_operand(node, 2)
    axis, mode = node.attributes.get_int("axis", -2), node.attributes.get_string("mode", "linear")
    dcache = op.TensorScatter(dy, op.zeros_like(update), starts, axis=axis, mode=mode)
    return dcache, lambda: op.GatherElements(dy, _written_positions(op, node), axis=axis)


def _written_positions(op: Builder, node: ir.Node) -> ir.Value:
    """For each element of the update, its position along the axis of the cache."""
    cache, update, starts = known.operand(node, 0), known.operand(node, 1), known.optional_operand(node, 2)
    axis = node.attributes.get_int("axis", -2)
    shape = op.Shape(update)
    # The last axis has no end: -1 + 1 would be the first.
    length = op.Shape(update, start=axis, end=axis + 1 or None)
    offsets = op.Range(0, op.Squeeze(length), 1)
    ones = op.Expand([1], op.Shape(shape))
    positions = op.Reshape(offsets, op.ScatterElements(ones, [axis], length), allowzero=1)
    if starts is not None:
        samples = op.ScatterElements(ones, [0], op.Shape(starts))
        positions = op.Reshape(starts, samples, allowzero=1) + positions
    if node.attributes.get_string("mode", "linear") == "circular":
        positions = op.Mod(positions, op.Shape(cache, start=axis, end=axis + 1 or None))
    return op.Expand(positions, shape)


def _scattered(op: Builder, node: ir.Node, dy: ir.Value, places: _Places) -> Sequence[InputCotangent]:
    match node.attributes.get_string("reduction", "none"):
        case "add":
            return dy, None, lambda: places.read(dy)
        case "mul":
            return _multiplied(op, node, dy, places)
        case "max" | "min":
            return _extremum(op, node, dy, places)
        case _:
            return _written(op, node, dy, places)


def _written(op: Builder, node: ir.Node, dy: ir.Value, places: _Places) -> Sequence[InputCotangent]:
    """The updates replace what was there: d data = dy with zeros there, d updates = dy there."""
    updates = known.operand(node, 2)
    return lambda: places.write(dy, op.zeros_like(updates), "none"), None, lambda: places.read(dy)


def _multiplied(op: Builder, node: ir.Node, dy: ir.Value, places: _Places) -> Sequence[InputCotangent]:
    """The updates multiply what was there: the cotangent of each factor is dy times all the others."""
    y = node.outputs[0]
    data, updates, wide_dy = (widen(op, v, y) for v in (known.operand(node, 0), known.operand(node, 2), dy))

    def ddata() -> ir.Value:
        ones = op.Expand(op.scalar_like(1.0, data), op.shape(data))
        return op.CastLike(wide_dy * places.write(ones, updates, "mul"), y)

    def dupdates() -> ir.Value:
        others = product_of_others(
            op,
            updates,
            product=lambda factors: places.read(places.write(data, factors, "mul")),
            total=lambda terms: places.read(places.write(op.zeros_like(data), terms, "add")),
        )
        return op.CastLike(places.read(wide_dy) * others, y)

    return ddata, None, dupdates


def _extremum(op: Builder, node: ir.Node, dy: ir.Value, places: _Places) -> Sequence[InputCotangent]:
    """The largest or smallest stays: dy goes in equal shares to all that equal it, as in PyTorch."""
    data, updates, (y,) = known.operand(node, 0), known.operand(node, 2), node.outputs
    wide_dy = widen(op, dy, dy)
    kept, taken = op.Equal(data, y), op.Equal(updates, places.read(y))
    ties = places.write(as_number(op, kept, wide_dy), as_number(op, taken, wide_dy), "add")
    share = op.CastLike(wide_dy / ties, dy)
    return (
        lambda: keep_where(op, node, kept, share),
        None,
        lambda: keep_where(op, node, taken, places.read(share)),
    )
