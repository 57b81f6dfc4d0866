"""Shapes made of parts that are known now and parts that are read when the graph runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder


@dataclass(frozen=True)
class Extent:
    """The dimensions of a value along the axes from `start` up to `end`, read at run time."""

    value: ir.Value
    start: int
    end: int | None

    @property
    def is_single(self) -> bool:
        """Whether this is certainly one dimension."""
        if self.end is None:
            return self.start == -1
        return self.end == self.start + 1 and known.rank(self.value) is not None


@dataclass(frozen=True)
class Product:
    """The product of dimensions, as one dimension."""

    factors: tuple[int | Extent | ir.Value, ...]


Part = int | Extent | Product | ir.Value
"""Dimensions of a shape; a value is a 1-D int64 tensor with one of them."""


def extents(value: ir.Value, start: int = 0, end: int | None = None) -> list[Part]:
    """The dimensions of `value` along the axes from `start` up to `end`: numbers, where they are known."""
    dims = known.dimensions(value)
    if dims is None:
        return [Extent(value, start, end)]
    axes = range(len(dims))[start:end]
    return [d if isinstance(d := dims[axis], int) else Extent(value, axis, axis + 1) for axis in axes]


def product(parts: Sequence[Part]) -> Part:
    """The product of dimensions as one: a number, where all are known."""
    total, rest = 1, list[Extent | ir.Value]()
    for part in parts:
        if isinstance(part, int):
            total *= part
        elif isinstance(part, Product):
            total *= math.prod(f for f in part.factors if isinstance(f, int))
            rest += [f for f in part.factors if not isinstance(f, int)]
        else:
            rest.append(part)
    if not rest:
        return total
    if len(rest) == 1 and total == 1 and not (isinstance(rest[0], Extent) and not rest[0].is_single):
        return rest[0]
    return Product((*rest, total) if total != 1 else tuple(rest))


def concatenated(op: Builder, parts: Sequence[Part]) -> ir.Value:
    """The parts as one 1-D int64 tensor."""
    pieces: list[ir.Value] = []
    for group in _grouped(parts):
        if isinstance(group, list):
            pieces.append(op.constant(group, ir.DataType.INT64))
        elif isinstance(group, Extent):
            pieces.append(op.Shape(group.value, start=group.start or None, end=group.end))
        elif isinstance(group, Product):
            pieces.append(op.ReduceProd(concatenated(op, group.factors), [0], keepdims=1))
        else:
            pieces.append(group)
    if not pieces:
        return op.constant([], ir.DataType.INT64)
    return pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=0)


def reshape(op: Builder, value: ir.Value, parts: Sequence[Part]) -> ir.Value:
    """`value` in the shape that the parts make, which has as many elements."""
    numbers = [part for part in parts if isinstance(part, int)]
    others = [part for part in parts if not isinstance(part, int)]
    if not others:
        result = op.Reshape(value, op.constant(numbers, ir.DataType.INT64), allowzero=_allowzero(numbers))
    elif len(others) == 1 and _is_single(others[0]) and 0 not in numbers:
        sizes = [part if isinstance(part, int) else -1 for part in parts]
        result = op.Reshape(value, sizes)
    else:
        result = op.Reshape(value, concatenated(op, parts), allowzero=1)
    if result.shape is None and all(_is_single(part) for part in parts):
        result.shape = ir.Shape([_dimension(part) for part in parts])
    return result


def _allowzero(numbers: Sequence[int]) -> int | None:
    return 1 if 0 in numbers else None


def _is_single(part: Part) -> bool:
    return part.is_single if isinstance(part, Extent) else True


def _dimension(part: Part) -> known.Dimension:
    if isinstance(part, int):
        return part
    dims = known.dimensions(part.value) if isinstance(part, Extent) else None
    return ir.SymbolicDim(None) if dims is None or not isinstance(part, Extent) else dims[part.start]


def _grouped(parts: Sequence[Part]) -> list[list[int] | Extent | Product | ir.Value]:
    """Neighbouring numbers as a list, and neighbouring dimensions of one value as one extent."""
    groups: list[list[int] | Extent | Product | ir.Value] = []
    for part in parts:
        last = groups[-1] if groups else None
        if isinstance(part, int):
            if isinstance(last, list):
                last.append(part)
            else:
                groups.append([part])
        elif isinstance(part, Extent) and isinstance(last, Extent) and _follows(part, last):
            groups[-1] = Extent(part.value, last.start, part.end)
        else:
            groups.append(part)
    return groups


def _follows(part: Extent, before: Extent) -> bool:
    return part.value is before.value and part.start == before.end
