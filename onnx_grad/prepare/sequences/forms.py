"""What stands for a sequence or an optional: tensors, and how they make it up.

A form asks for what is known of it when transforming: how many elements there are, their order, their shapes.
What it cannot tell raises `NoTensorFormError`, whose text says why.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Iterable, Sequence

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.prepare.sequences.choosing import Part, chosen, extended, found
from onnx_grad.prepare.sequences.runs import Kind, NoTensorFormError, Position, Run
from onnx_grad.prepare.sequences.sites import Site


class Form(abc.ABC):
    """A sequence over tensors.

    Args:
        site: Where its tensors can be read, outside of loops that read its elements.
    """

    def __init__(self, site: Site) -> None:
        self.site = site

    @property
    @abc.abstractmethod
    def kind(self) -> Kind:
        """What makes two sequences the same but for their tensors."""

    @abc.abstractmethod
    def tensors(self) -> list[ir.Value]:
        """The tensors that it is made of."""

    @abc.abstractmethod
    def of(self, tensors: Sequence[ir.Value], site: Site) -> Form:
        """A sequence of the same kind of other tensors."""

    @abc.abstractmethod
    def elements(self) -> list[ir.Value]:
        """Every element, where it is known how many there are."""

    @abc.abstractmethod
    def count(self) -> int | None:
        """How many elements there are, where that is known."""

    @abc.abstractmethod
    def is_even(self) -> bool:
        """Whether all elements certainly have the same shape."""

    @abc.abstractmethod
    def length(self, op: Builder) -> ir.Value:
        """How many elements there are, as a scalar."""

    @abc.abstractmethod
    def at(self, op: Builder, position: Position) -> ir.Value:
        """The element at `position`, which counts from the end where it is negative."""

    @abc.abstractmethod
    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """All elements concatenated along `axis`, or stacked along it where it is a new one."""

    @abc.abstractmethod
    def sequence(self, op: Builder, type_: ir.TypeProtocol | None) -> ir.Value:
        """A sequence of the elements, of a given type."""

    @abc.abstractmethod
    def inserted(self, op: Builder, tensor: ir.Value, position: Position | None, site: Site) -> Form:
        """The same with `tensor` before the element at `position`, or behind all of them."""

    @abc.abstractmethod
    def erased(self, op: Builder, position: Position, site: Site) -> Form:
        """The same without the element at `position`."""


class Listed(Form):
    """Tensors and runs of tensors in a known order.

    Args:
        parts: The tensors and runs.
        site: Where they can be read.
    """

    def __init__(self, parts: Iterable[Part], site: Site) -> None:
        super().__init__(site)
        self.parts = tuple(parts)
        self._stack: ir.Value | None = None

    @property
    def kind(self) -> Kind:
        """The kinds of its parts."""
        return tuple(part.kind if isinstance(part, Run) else "tensor" for part in self.parts)

    def tensors(self) -> list[ir.Value]:
        """Those of its parts."""
        return [t for part in self.parts for t in (part.tensors() if isinstance(part, Run) else [part])]

    def of(self, tensors: Sequence[ir.Value], site: Site) -> Listed:
        """Parts of the same kinds."""
        left = iter(tensors)
        return Listed(
            [
                part.of(list(itertools.islice(left, len(part.tensors()))), site)
                if isinstance(part, Run)
                else next(left)
                for part in self.parts
            ],
            site,
        )

    def elements(self) -> list[ir.Value]:
        """Those of its parts."""
        return [t for part in self.parts for t in (part.parts() if isinstance(part, Run) else [part])]

    def count(self) -> int | None:
        """The sum over its parts."""
        counts = [_count(part) for part in self.parts]
        numbers = [count for count in counts if count is not None]
        return sum(numbers) if len(numbers) == len(counts) else None

    def is_even(self) -> bool:
        """Whether the shapes are known to be the same, symbols included."""
        if len(self.parts) == 1:
            (part,) = self.parts
            return not isinstance(part, Run) or part.is_even()
        shapes = [_element_shape(part) for part in self.parts]
        return all(shape is not None and _same(shape, shapes[0]) for shape in shapes)

    def length(self, op: Builder) -> ir.Value:
        """The sum over its parts."""
        lengths = [part.length(op) for part in self.parts if isinstance(part, Run)]
        listed = len(self.parts) - len(lengths)
        if listed or not lengths:
            lengths.append(op.constant(listed, ir.DataType.INT64))
        total = lengths[0]
        for length in lengths[1:]:
            total = op.Add(total, length)
        return total

    def at(self, op: Builder, position: Position) -> ir.Value:
        """An element of a part; of all of them in one stack where they have one shape; else branches."""
        if isinstance(position, int):
            return self._at_number(op, position)
        if len(self.parts) == 1 and isinstance(self.parts[0], Run):
            return self.parts[0].at(op, position)
        if self.is_even():
            return op.Gather(self.stack(), position)
        if self.count() is not None:
            return self.arranged().at(op, position)
        return found(
            op, self.parts, op.Where(op.Less(position, 0), op.Add(position, self.length(op)), position)
        )

    def _at_number(self, op: Builder, position: int) -> ir.Value:
        try:
            index, offset = self._locate(position)
        except NoTensorFormError:
            if self.count() is not None:
                raise
            return self.at(op, op.constant(position, ir.DataType.INT64))
        part = self.parts[index]
        if not isinstance(part, Run):
            return part
        count = part.count()
        return part.parts()[offset] if count is not None and count <= LARGEST_SPLIT else part.at(op, offset)

    def _locate(self, position: int) -> tuple[int, int]:
        """The part that holds the element at `position`, and the position in that part."""
        backwards = position < 0
        left = -1 - position if backwards else position
        indices = list(range(len(self.parts)))[:: -1 if backwards else 1]
        for index in indices:
            count = _count(self.parts[index])
            if count is None and index != indices[-1]:
                raise NoTensorFormError(
                    f"which tensor is number {position} of its sequence is only known when the model runs"
                )
            if count is None:
                return index, -1 - left if backwards else left
            if left < count:
                return index, count - 1 - left if backwards else left
            left -= count
        raise NoTensorFormError(f"number {position} is read of a sequence of {self.count()} tensors")

    def _parted(self, position: int) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
        """The parts before the element at `position`, and those from it on."""
        index, offset = self._locate(position)
        part = self.parts[index]
        if offset == 0 or not isinstance(part, Run):
            return self.parts[:index], self.parts[index:]
        pieces = part.parts()
        before, behind = pieces[:offset], pieces[offset:]
        return (*self.parts[:index], *before), (*behind, *self.parts[index + 1 :])

    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """A `Concat` of what its parts are joined to."""
        if not self.parts:
            raise NoTensorFormError("it is empty, and nothing can be joined")
        pieces: list[ir.Value] = []
        for part in self.parts:
            if isinstance(part, Run):
                pieces += _joined_run(op, part, axis, new_axis)
            else:
                pieces.append(op.Unsqueeze(part, [axis]) if new_axis else part)
        return pieces[0] if len(pieces) == 1 else op.Concat(*pieces, axis=axis)

    def sequence(self, op: Builder, type_: ir.TypeProtocol | None) -> ir.Value:
        """A sequence of single tensors; runs are split, or inserted in a loop."""
        if self.parts and not any(isinstance(part, Run) for part in self.parts):
            return op.SequenceConstruct(*self.tensors())
        first, rest = (self.parts[0], self.parts[1:]) if self.parts else (None, ())
        if isinstance(first, Run):
            result = first.sequence(op)
        else:
            result = op.SequenceEmpty(dtype=None if type_ is None or type_.dtype is None else type_.dtype)
            rest = self.parts
        for part in rest:
            result = extended(op, result, part) if isinstance(part, Run) else op.SequenceInsert(result, part)
            result.type = type_
        return result

    def inserted(self, op: Builder, tensor: ir.Value, position: Position | None, site: Site) -> Form:
        """One part more, between others or among the elements of one."""
        if position is None:
            return Listed((*self.parts, tensor), site)
        if isinstance(position, ir.Value):
            return self.arranged().inserted(op, tensor, position, site)
        if position == 0:
            return Listed((tensor, *self.parts), site)
        if position == self.count():
            return Listed((*self.parts, tensor), site)
        before, behind = self._parted(position)
        return Listed((*before, tensor, *behind), site)

    def erased(self, op: Builder, position: Position, site: Site) -> Form:
        """One part less, or one less among the elements of a part."""
        if isinstance(position, ir.Value):
            return self.arranged().erased(op, position, site)
        before, (first, *behind) = self._parted(position)
        rest = first.parts()[1:] if isinstance(first, Run) else []
        return Listed((*before, *rest, *behind), site)

    def arranged(self) -> Arranged:
        """The same with an order that a tensor holds."""
        elements = self.elements()
        with self.site.writing() as op:
            order = op.constant(range(len(elements)), ir.DataType.INT64)
        return Arranged(elements, order, len(elements), self.site)

    def stack(self) -> ir.Value:
        """All elements in one tensor, along a new first axis; they have the same shape."""
        if self._stack is None:
            with self.site.writing() as op:
                self._stack = self.joined(op, 0, new_axis=True)
        return self._stack


class Arranged(Form):
    """Tensors in an order that is only known when the model runs.

    Args:
        candidates: The tensors.
        order: Which of them each element is, as a 1-D int64 tensor.
        count: How many elements there are.
        site: Where they can be read.
    """

    def __init__(self, candidates: Sequence[ir.Value], order: ir.Value, count: int, site: Site) -> None:
        super().__init__(site)
        self._candidates = list(candidates)
        self._order = order
        self._count = count
        self._elements: list[ir.Value] | None = None

    @property
    def kind(self) -> Kind:
        """How many candidates, and how many elements."""
        return ("arranged", len(self._candidates), self.count())

    def tensors(self) -> list[ir.Value]:
        """The candidates and their order."""
        return [*self._candidates, self._order]

    def of(self, tensors: Sequence[ir.Value], site: Site) -> Arranged:
        """As many candidates and elements."""
        return Arranged(tensors[:-1], tensors[-1], self._count, site)

    def elements(self) -> list[ir.Value]:
        """A candidate for each."""
        if self._elements is None:
            with self.site.writing() as op:
                self._elements = [self.at(op, position) for position in range(self.count())]
        return self._elements

    def count(self) -> int:
        """The length of the order."""
        return self._count

    def is_even(self) -> bool:
        """Whether all candidates have one shape."""
        return Listed(self._candidates, self.site).is_even()

    def length(self, op: Builder) -> ir.Value:
        """The length of the order."""
        return op.constant(self.count(), ir.DataType.INT64)

    def at(self, op: Builder, position: Position) -> ir.Value:
        """A `Gather` from all candidates in one tensor where they have one shape; else branches."""
        index = op.Gather(self._order, position)
        if self.is_even():
            return op.Gather(Listed(self._candidates, self.site).joined(op, 0, new_axis=True), index)
        return chosen(op, self._candidates, index)

    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """A `Concat` of the elements."""
        return Listed(self.elements(), self.site).joined(op, axis, new_axis)

    def sequence(self, op: Builder, type_: ir.TypeProtocol | None) -> ir.Value:
        """A sequence of the elements."""
        return op.SequenceConstruct(*(self.at(op, position) for position in range(self.count())))

    def inserted(self, op: Builder, tensor: ir.Value, position: Position | None, site: Site) -> Arranged:
        """One candidate more, and its number in the order."""
        last = [len(self._candidates)]
        if position is None:
            order = op.Concat(self._order, op.constant(last, ir.DataType.INT64), axis=0)
        else:
            place = [position] if isinstance(position, int) else op.Reshape(position, [1])
            before, behind = op.Slice(self._order, [0], place), op.Slice(self._order, place, [_END])
            order = op.Concat(before, op.constant(last, ir.DataType.INT64), behind, axis=0)
        return Arranged([*self._candidates, tensor], order, self._count + 1, site)

    def erased(self, op: Builder, position: Position, site: Site) -> Arranged:
        """One number less in the order."""
        at = op.constant(position, ir.DataType.INT64) if isinstance(position, int) else position
        place = op.Reshape(op.Mod(at, self.count()), [1])
        before, behind = op.Slice(self._order, [0], place), op.Slice(self._order, op.Add(place, 1), [_END])
        order = op.Concat(before, behind, axis=0)
        return Arranged(self._candidates, order, self._count - 1, site)


_END = 2**63 - 1
# More pieces than this are sliced off one by one where they are read.
LARGEST_SPLIT = 64


def _count(part: Part) -> int | None:
    return part.count() if isinstance(part, Run) else 1


def _joined_run(op: Builder, run: Run, axis: int, new_axis: bool) -> list[ir.Value]:
    """The joined parts of a run, or its parts where only these can be joined."""
    try:
        return [run.joined(op, axis, new_axis)]
    except NoTensorFormError:
        if run.count() is None:
            raise
    return [op.Unsqueeze(part, [axis]) if new_axis else part for part in run.parts()]


def _element_shape(part: Part) -> tuple[known.Dimension, ...] | None:
    """The dimensions of what a part holds, as far as all of it has the same."""
    return part.part_shape() if isinstance(part, Run) else known.dimensions(part)


def _same(a: Sequence[known.Dimension], b: Sequence[known.Dimension] | None) -> bool:
    return b is not None and len(a) == len(b) and all(map(known.same_dimension, a, b))
