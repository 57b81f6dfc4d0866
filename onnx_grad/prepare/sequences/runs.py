"""Runs of tensors that are slices or pieces of one tensor, in order, however many there are."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Self

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.errors import OnnxGradError
from onnx_grad.prepare.sequences.sites import Site

Position = int | ir.Value
Kind = tuple[object, ...]


class NoTensorFormError(OnnxGradError):
    """Why something cannot be expressed over tensors."""


class Run(abc.ABC):
    """Consecutive parts of `whole` along `axis`.

    Args:
        whole: The tensor.
        axis: The axis, counted from the end where it is negative.
        site: Where `whole` can be read, outside of loops that read the parts.
    """

    def __init__(self, whole: ir.Value, axis: int, site: Site) -> None:
        self.whole = whole
        self.axis = axis
        self.site = site
        self._parts: list[ir.Value] | None = None

    @property
    @abc.abstractmethod
    def kind(self) -> Kind:
        """What makes two runs the same but for their tensors."""

    def tensors(self) -> list[ir.Value]:
        """The tensors that it is made of."""
        return [self.whole]

    @abc.abstractmethod
    def of(self, tensors: Sequence[ir.Value], site: Site) -> Self:
        """A run of the same kind of other tensors."""

    @abc.abstractmethod
    def count(self) -> int | None:
        """How many parts there are, where that is known."""

    @abc.abstractmethod
    def is_even(self) -> bool:
        """Whether all parts certainly have the same shape."""

    @abc.abstractmethod
    def part_shape(self) -> tuple[known.Dimension, ...] | None:
        """The dimensions of each part, where all have the same."""

    @abc.abstractmethod
    def length(self, op: Builder) -> ir.Value:
        """How many parts there are, as a scalar."""

    @abc.abstractmethod
    def at(self, op: Builder, position: Position) -> ir.Value:
        """The part at `position`, which counts from the end where it is negative."""

    @abc.abstractmethod
    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """All parts concatenated along `axis`, or stacked along it where it is a new one."""

    @abc.abstractmethod
    def sequence(self, op: Builder) -> ir.Value:
        """A sequence of the parts."""

    def parts(self) -> list[ir.Value]:
        """Every part, where it is known how many there are."""
        count = self.count()
        if count is None:
            raise NoTensorFormError(
                f"how many pieces '{self.whole.name}' is cut into is only known when the model runs"
            )
        if self._parts is None:
            with self.site.writing() as op:
                self._parts = self._cut(op, count)
        return self._parts

    @abc.abstractmethod
    def _cut(self, op: Builder, count: int) -> list[ir.Value]:
        """The `count` parts."""

    def _size(self) -> int | None:
        """The size of the axis, where it is known."""
        dims = known.dimensions(self.whole)
        if dims is None or not -len(dims) <= self.axis < len(dims):
            return None
        size = dims[self.axis]
        return size if isinstance(size, int) else None

    def _cannot_join(self, axis: int) -> NoTensorFormError:
        return NoTensorFormError(
            f"the pieces of '{self.whole.name}' along axis {self.axis} are joined along axis {axis}, and "
            "their number, their sizes or their rank is only known when the model runs"
        )


class Stack(Run):
    """The slices of a tensor along an axis, without that axis."""

    @property
    def kind(self) -> Kind:
        """A stack along an axis."""
        return ("stack", self.axis)

    def of(self, tensors: Sequence[ir.Value], site: Site) -> Stack:
        """A stack along the same axis."""
        return Stack(tensors[0], self.axis, site)

    def count(self) -> int | None:
        """The size of the axis."""
        return self._size()

    def is_even(self) -> bool:
        """They have."""
        return True

    def part_shape(self) -> tuple[known.Dimension, ...] | None:
        """The other axes."""
        dims = known.dimensions(self.whole)
        axis = self.axis % len(dims) if dims else 0
        return None if dims is None else dims[:axis] + dims[axis + 1 :]

    def length(self, op: Builder) -> ir.Value:
        """The size of the axis."""
        return op.Gather(op.shape(self.whole), self.axis)

    def at(self, op: Builder, position: Position) -> ir.Value:
        """A `Gather` without the axis."""
        return op.Gather(self.whole, position, axis=self.axis)

    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """The tensor with its axis moved; merged with the one behind it where there is to be no new one."""
        rank = known.rank(self.whole)
        if rank is not None:
            axes = rank if new_axis else rank - 1
            if not -axes <= axis < axes:
                raise self._cannot_join(axis)
            target, source = axis % axes, self.axis % rank
            moved = _moved(op, self.whole, source, target, rank)
        elif axis >= 0 and self.axis >= 0:
            moved, target = _moved_at_any_rank(op, self.whole, self.axis, axis), axis
        elif axis == self.axis and new_axis:
            return self.whole
        else:
            raise self._cannot_join(axis)
        return moved if new_axis else merged(op, moved, target)

    def sequence(self, op: Builder) -> ir.Value:
        """A split into slices."""
        return op.SplitToSequence(self.whole, axis=self.axis, keepdims=0)

    def _cut(self, op: Builder, count: int) -> list[ir.Value]:
        if count == 0:
            return []
        slices = op.Split(self.whole, outputs=count, axis=self.axis, num_outputs=count)
        return [op.Squeeze(piece, [self.axis]) for piece in slices]


class Chunks(Run):
    """The pieces of a tensor along an axis that are `size` long, the last one as long as what is left.

    Args:
        whole: The tensor.
        axis: The axis.
        site: Where they can be read.
        size: How long: a number, or a scalar.
    """

    def __init__(self, whole: ir.Value, axis: int, site: Site, size: Position) -> None:
        super().__init__(whole, axis, site)
        self._length = size

    @property
    def kind(self) -> Kind:
        """Pieces along an axis, of a length that is known or not."""
        return ("chunks", self.axis, self._length if isinstance(self._length, int) else None)

    def tensors(self) -> list[ir.Value]:
        """The tensor, and the length where it is one."""
        return [self.whole, *([] if isinstance(self._length, int) else [self._length])]

    def of(self, tensors: Sequence[ir.Value], site: Site) -> Chunks:
        """Pieces along the same axis."""
        whole, *length = tensors
        return Chunks(whole, self.axis, site, length[0] if length else self._length)

    def count(self) -> int | None:
        """The size of the axis over the length, rounded up."""
        size = self._size()
        return -(-size // self._length) if size is not None and isinstance(self._length, int) else None

    def is_even(self) -> bool:
        """Whether the length divides the size of the axis."""
        size = self._size()
        return self._length == 1 or (
            size is not None and isinstance(self._length, int) and size % self._length == 0
        )

    def part_shape(self) -> tuple[known.Dimension, ...] | None:
        """The length instead of the size of the axis."""
        dims = known.dimensions(self.whole)
        if dims is None or not self.is_even() or not isinstance(self._length, int):
            return None
        axis = self.axis % len(dims)
        return (*dims[:axis], self._length, *dims[axis + 1 :])

    def length(self, op: Builder) -> ir.Value:
        """⌈size of the axis / length⌉."""
        size = op.Gather(op.shape(self.whole), self.axis)
        return op.Div(op.Add(size, op.Sub(_integer(op, self._length), 1)), _integer(op, self._length))

    def at(self, op: Builder, position: Position) -> ir.Value:
        """A `Slice` from position · length on, or a `Gather`."""
        if self._length == 1:
            index = [position] if isinstance(position, int) else op.Reshape(position, [1])
            return op.Gather(self.whole, index, axis=self.axis)
        if isinstance(position, int) and position >= 0:
            place = _integer(op, position)
        else:
            place = op.Mod(_integer(op, position), self.length(op))
        length = op.Reshape(_integer(op, self._length), [1])
        start = op.Mul(place, length)
        return op.Slice(self.whole, start, op.Add(start, length), [self.axis])

    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """The tensor itself along its axis; where pieces are of length 1, the stack of its slices."""
        if not new_axis and _same_axis(axis, self.axis, self.whole):
            return self.whole
        if self._length != 1:
            raise self._cannot_join(axis)
        behind = self.axis + 1 if self.axis >= 0 else self.axis
        slices = op.Unsqueeze(self.whole, [behind])
        rank = known.rank(self.whole)
        slices.shape = None if rank is None else ir.Shape([None] * (rank + 1))
        source = self.axis if self.axis >= 0 else self.axis - 1
        return Stack(slices, source, self.site).joined(op, axis, new_axis)

    def sequence(self, op: Builder) -> ir.Value:
        """A split into pieces of that length."""
        return op.SplitToSequence(self.whole, _integer(op, self._length), axis=self.axis)

    def _cut(self, op: Builder, count: int) -> list[ir.Value]:
        if not isinstance(self._length, int) or (size := self._size()) is None or count == 0:
            return []
        sizes = [self._length] * (count - 1) + [size - self._length * (count - 1)]
        return list(op.Split(self.whole, sizes, outputs=count, axis=self.axis))


class Cuts(Run):
    """The pieces of a tensor along an axis that are as long as `sizes` says.

    Args:
        whole: The tensor.
        axis: The axis.
        site: Where they can be read.
        sizes: How long, as a 1-D int64 tensor.
    """

    def __init__(self, whole: ir.Value, axis: int, site: Site, sizes: ir.Value) -> None:
        super().__init__(whole, axis, site)
        self._sizes = sizes

    @property
    def kind(self) -> Kind:
        """Pieces along an axis."""
        return ("cuts", self.axis)

    def tensors(self) -> list[ir.Value]:
        """The tensor and the sizes."""
        return [self.whole, self._sizes]

    def of(self, tensors: Sequence[ir.Value], site: Site) -> Cuts:
        """Pieces along the same axis."""
        return Cuts(tensors[0], self.axis, site, tensors[1])

    def count(self) -> int | None:
        """How many sizes there are."""
        shape = known.static_shape(self._sizes)
        return None if shape is None else shape[0]

    def is_even(self) -> bool:
        """Whether the sizes are known and equal."""
        sizes = known.constant_integers(self._sizes)
        return sizes is not None and len(set(sizes)) <= 1

    def part_shape(self) -> tuple[known.Dimension, ...] | None:
        """Unknown."""
        return None

    def length(self, op: Builder) -> ir.Value:
        """How many sizes there are."""
        return op.Size(self._sizes)

    def at(self, op: Builder, position: Position) -> ir.Value:
        """A `Slice` behind all sizes before it."""
        place = op.Reshape(_integer(op, position), [1])
        start = op.ReduceSum(op.Slice(self._sizes, [0], place), keepdims=1)
        return op.Slice(self.whole, start, op.Add(start, op.Gather(self._sizes, place)), [self.axis])

    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """The tensor itself, along its axis."""
        if new_axis or not _same_axis(axis, self.axis, self.whole):
            raise self._cannot_join(axis)
        return self.whole

    def sequence(self, op: Builder) -> ir.Value:
        """A split into pieces of these sizes."""
        return op.SplitToSequence(self.whole, self._sizes, axis=self.axis)

    def _cut(self, op: Builder, count: int) -> list[ir.Value]:
        return list(op.Split(self.whole, self._sizes, outputs=count, axis=self.axis)) if count else []


def merged(op: Builder, value: ir.Value, axis: int) -> ir.Value:
    """`value` with `axis`, which is not negative, and the one behind it made one."""
    before = [op.Shape(value, end=axis)] if axis else []
    product = op.Mul(op.Shape(value, start=axis, end=axis + 1), op.Shape(value, start=axis + 1, end=axis + 2))
    shape = op.Concat(*before, product, op.Shape(value, start=axis + 2), axis=0)
    return op.Reshape(value, shape, allowzero=1)


def _moved(op: Builder, value: ir.Value, source: int, target: int, rank: int) -> ir.Value:
    """`value` with axis `source` at `target`, the others in their order."""
    if source == target:
        return value
    order = [axis for axis in range(rank) if axis != source]
    order.insert(target, source)
    return op.Transpose(value, perm=order)


def _moved_at_any_rank(op: Builder, value: ir.Value, source: int, target: int) -> ir.Value:
    """The same for an unknown rank: the axes that are passed are one for a while, and so are the others."""
    if source == target:
        return value
    first, behind = min(source, target), max(source, target) + 1
    start = [op.Shape(value, end=first)] if first else []
    moved, end = op.Shape(value, start=source, end=source + 1), op.Shape(value, start=behind)
    is_forward = source < target
    passed = (
        op.Shape(value, start=source + 1, end=behind)
        if is_forward
        else op.Shape(value, start=first, end=source)
    )
    before, after = (moved, passed) if is_forward else (passed, moved)
    sizes = [op.ReduceProd(sizes, keepdims=1) for sizes in (*start, before, after, end)]
    split = op.Reshape(value, op.Concat(*sizes, axis=0), allowzero=1)
    order = [*range(len(start)), len(start) + 1, len(start), len(start) + 2]
    shape = op.Concat(*start, after, before, end, axis=0)
    return op.Reshape(op.Transpose(split, perm=order), shape, allowzero=1)


def _same_axis(a: int, b: int, value: ir.Value) -> bool:
    rank = known.rank(value)
    return a == b or (rank is not None and a % rank == b % rank)


def _integer(op: Builder, number: Position) -> ir.Value:
    return op.constant(number, ir.DataType.INT64) if isinstance(number, int) else number
