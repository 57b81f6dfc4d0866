"""The states of a loop that are sequences, and the tensors that stand for them."""

from __future__ import annotations

import abc
from collections.abc import Sequence, Set
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import RANDOM_OPERATORS, Builder
from onnx_grad.liveness import read_values
from onnx_grad.prepare.sequences.context import Walk
from onnx_grad.prepare.sequences.forms import LARGEST_SPLIT, Form, Listed
from onnx_grad.prepare.sequences.optionals import Option
from onnx_grad.prepare.sequences.ragged import Lengths, without_padding
from onnx_grad.prepare.sequences.runs import Cuts, Kind, NoTensorFormError, Position, Run, Stack, merged
from onnx_grad.prepare.sequences.sites import Site
from onnx_grad.wiring import Carried, bodies


@dataclass
class State:
    """A tensor that the new loop hands on.

    Attributes:
        initial: What it starts as.
        before: The body's input.
        after: The body's output.
    """

    initial: ir.Value
    before: ir.Value
    after: ir.Value


class SequenceState(abc.ABC):
    """A state that is a sequence or an optional, as the states and scan outputs of the new loop.

    Args:
        walk: Knows the forms of sequences.
        node: The loop.
        body: The body of the new loop, so far that of the old one.
        carried: The state.
        before: The input of `body` that it is.

    Attributes:
        carried: The state.
        states: The states of the new loop that stand for it.
        slices: What the new loop stacks for it.
        ragged_axis: The axis along which what it stacks may differ in size.
    """

    def __init__(self, walk: Walk, node: ir.Node, body: ir.Graph, carried: Carried, before: ir.Value) -> None:
        self.carried = carried
        self.states: list[State] = []
        self.slices: list[ir.Value] = []
        self.ragged_axis: int | None = None
        self._walk = walk
        self._node = node
        self._body = body
        self._before = before
        self._start = Site.start(walk.writer, body, str(node.name))
        self._end = Site.end(walk.writer, body, str(node.name))

    @abc.abstractmethod
    def leave(self, after: ir.Value) -> None:
        """Take up what an iteration makes of it."""

    @abc.abstractmethod
    def settle(self, symbols: Set[str | None], must_be_even: bool) -> None:
        """Look at the shapes.

        Args:
            symbols: The sizes that stay the same in all iterations.
            must_be_even: Whether what is stacked must certainly have one shape.
        """

    @abc.abstractmethod
    def final(
        self, finals: Sequence[ir.Value], stacks: Sequence[ir.Value], lengths: Lengths | None, site: Site
    ) -> Form | Option:
        """What stands for it behind the loop.

        Args:
            finals: What its states end as.
            stacks: What is stacked for it.
            lengths: How long what is stacked was, where it is padded.
            site: Behind the loop.
        """

    def _placeholder(self, suffix: str, type_: ir.TypeProtocol | None, shape: ir.Shape | None) -> ir.Value:
        name = self._walk.writer.unique_name(f"{self._before.name}/{suffix}")
        return ir.Value(name=name, type=type_ or _element_type(self._before), shape=shape)


class Fixed(SequenceState):
    """A state that keeps its length: a state for each of its tensors."""

    def __init__(
        self,
        walk: Walk,
        node: ir.Node,
        body: ir.Graph,
        carried: Carried,
        before: ir.Value,
        initial: Form | Option,
    ) -> None:
        super().__init__(walk, node, body, carried, before)
        self._initial = _one_by_one(initial, initial.site) if isinstance(initial, Form) else initial
        for index, tensor in enumerate(self._initial.tensors()):
            inner = self._placeholder(str(index), tensor.type, tensor.shape)
            self.states.append(State(tensor, inner, inner))
        walk.forms[before] = self._initial.of([state.before for state in self.states], self._start)

    def leave(self, after: ir.Value) -> None:
        """A tensor for each state."""
        form = self._walk.forms.get(after) or self._walk.form(after)
        form = _one_by_one(form, self._end) if isinstance(form, Form) else form
        if form.kind != self._initial.kind:
            raise NoTensorFormError(
                f"the loop changes the length of its state '{self.carried.before.name}', and not by "
                "appending to it in every iteration"
            )
        for state, tensor in zip(self.states, form.tensors(), strict=True):
            state.after = tensor

    def settle(self, symbols: Set[str | None], must_be_even: bool) -> None:
        """A state may change its shape."""

    def final(
        self, finals: Sequence[ir.Value], stacks: Sequence[ir.Value], lengths: Lengths | None, site: Site
    ) -> Form | Option:
        """The same of what the states end as."""
        return self._initial.of(finals, site)


class Appended(SequenceState):
    """A state that every iteration appends to: what it appends is stacked."""

    def __init__(
        self,
        walk: Walk,
        node: ir.Node,
        body: ir.Graph,
        carried: Carried,
        before: ir.Value,
        initial: Form,
    ) -> None:
        super().__init__(walk, node, body, carried, before)
        self._initial = initial
        self._last = self._placeholder("last", None, None)
        self._at_front = False
        self._count = 1
        walk.forms[before] = Listed([_Earlier(self._last, self._start)], self._start)

    def leave(self, after: ir.Value) -> None:
        """What it appends; and a state for the last tensor, where the body reads that."""
        form = self._walk.form(after)
        parts = form.parts if isinstance(form, Listed) else ()
        new = [part for part in parts if isinstance(part, ir.Value)]
        self._at_front = bool(parts) and not isinstance(parts[0], _Earlier)
        is_earlier = bool(parts) and isinstance(parts[-1 if self._at_front else 0], _Earlier)
        if not new or not is_earlier or len(new) + 1 < len(parts) or (self._at_front and len(new) > 1):
            raise NoTensorFormError(
                f"the loop changes its state '{self.carried.before.name}', and not by appending to it in "
                "every iteration"
            )
        if self._last.uses():
            with self._walk.before(self._node).writing() as op:
                initial = self._initial.at(op, -1)
            self._last.shape = initial.shape
            self.states = [State(initial, self._last, new[-1])]
        self._count = len(new)
        self.slices = [self._together(new)]

    def _together(self, new: Sequence[ir.Value]) -> ir.Value:
        """What one iteration appends, in one tensor."""
        if len(new) == 1:
            return new[0]
        axis = _joined_axis(self.carried.result)
        with self._end.writing() as op:
            if axis is not None:
                return op.Concat(*new, axis=axis)
            return op.Concat(*(op.Unsqueeze(tensor, [0]) for tensor in new), axis=0)

    def settle(self, symbols: Set[str | None], must_be_even: bool) -> None:
        """Whether what it appends may differ in size along the axis that it is joined along."""
        axis, (piece,) = _joined_axis(self.carried.result), self.slices
        dims = known.dimensions(piece)
        lasting = dims is not None and all(_lasts(dims, i, symbols) for i in range(len(dims)))
        if lasting or _must_agree(self.carried.result):
            return
        if must_be_even:
            raise NoTensorFormError(
                f"what a loop appends to '{self.carried.before.name}' may differ in shape"
            )
        if axis is None or self._at_front or (dims is not None and _lasts(dims, axis, symbols)):
            return
        if dims is None and axis < 0:
            raise NoTensorFormError(
                f"what a loop appends to '{self.carried.before.name}' is joined along axis {axis}, and its "
                "rank and size are not known"
            )
        if any(map(_is_random, self._body)):
            raise NoTensorFormError(
                f"what a loop appends to '{self.carried.before.name}' may differ in size, which would have "
                "to be found out before, and the loop draws random numbers"
            )
        self.ragged_axis = axis

    def final(
        self, finals: Sequence[ir.Value], stacks: Sequence[ir.Value], lengths: Lengths | None, site: Site
    ) -> Form:
        """What it held before the loop, and what was appended."""
        (stack,) = stacks
        with site.writing() as op:
            run = self._run(op, stack, lengths, site)
        initial = self._initial.parts if isinstance(self._initial, Listed) else self._initial.elements()
        return Listed([run, *initial] if self._at_front else [*initial, run], site)

    def _run(self, op: Builder, stack: ir.Value, lengths: Lengths | None, site: Site) -> Run:
        if lengths is not None:
            whole = without_padding(op, stack, lengths, site)
            return Cuts(whole, lengths.axis, site, lengths.sizes)
        if self._at_front:
            stack = op.Slice(stack, [-1], [_BEFORE_THE_START], [0], [-1])
        elif self._count > 1 and _joined_axis(self.carried.result) is None:
            stack = merged(op, stack, 0)
        return Stack(stack, 0, site)


class _Earlier(Run):
    """What a sequence holds before an iteration appends to it; its last tensor is a state of the loop."""

    def __init__(self, last: ir.Value, site: Site) -> None:
        super().__init__(last, 0, site)

    @property
    def kind(self) -> Kind:
        """It is one of a kind."""
        return ("earlier", self.whole)

    def tensors(self) -> list[ir.Value]:
        """None: it is not handed on."""
        return []

    def of(self, tensors: Sequence[ir.Value], site: Site) -> _Earlier:
        """Itself."""
        return self

    def count(self) -> int | None:
        """Unknown."""
        return None

    def is_even(self) -> bool:
        """Unknown."""
        return False

    def part_shape(self) -> tuple[known.Dimension, ...] | None:
        """Unknown."""
        return None

    def length(self, op: Builder) -> ir.Value:
        """Unknown."""
        raise self._unknown()

    def at(self, op: Builder, position: Position) -> ir.Value:
        """The last tensor."""
        if position == -1:
            return self.whole
        raise self._unknown()

    def joined(self, op: Builder, axis: int, new_axis: bool) -> ir.Value:
        """Unknown."""
        raise self._unknown()

    def sequence(self, op: Builder) -> ir.Value:
        """Unknown."""
        raise self._unknown()

    def parts(self) -> list[ir.Value]:
        """Unknown."""
        raise self._unknown()

    def _cut(self, op: Builder, count: int) -> list[ir.Value]:
        raise self._unknown()

    def _unknown(self) -> NoTensorFormError:
        return NoTensorFormError("a loop appends to a sequence, and reads more than the last tensor of it")


def appends(state: Carried) -> bool:
    """Whether the body inserts into what it is given, and does nothing else to it."""
    value, insertions = state.after, 0
    while value is not state.before:
        node = value.producer()
        if node is None or node.op_type not in ("SequenceInsert", "Identity"):
            return False
        insertions += node.op_type == "SequenceInsert"
        value = known.operand(node, 0)
    return insertions > 0


def lasting_symbols(node: ir.Node, body: ir.Graph) -> set[str | None]:
    """The symbolic dimensions that are the same in every iteration: those of what the body reads."""
    own = {*body.inputs, *(result for inner in body for result in inner.outputs)}
    read = {value for inner in body for value in read_values(inner)} - own
    outer = [*read, *(value for value in node.inputs if value is not None)]
    dims = (dim for value in outer for dim in known.dimensions(value) or ())
    return {dim.value for dim in dims if isinstance(dim, ir.SymbolicDim)} - {None}


def _must_agree(sequence: ir.Value) -> bool:
    """Whether all that reads a sequence fails where its tensors differ in shape."""
    nodes = [use.node for use in sequence.uses()]
    return bool(nodes) and all(n.op_type == "ConcatFromSequence" and _is_new_axis(n) for n in nodes)


def _joined_axis(sequence: ir.Value) -> int | None:
    """The axis along which all that reads a sequence joins it, where that is the same and not a new one."""
    nodes = [use.node for use in sequence.uses()]
    if any(node.op_type != "ConcatFromSequence" or _is_new_axis(node) for node in nodes):
        return None
    axes = {node.attributes.get_int("axis") for node in nodes}
    return axes.pop() if len(axes) == 1 else None


def _is_new_axis(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("new_axis", 0))


def _is_random(node: ir.Node) -> bool:
    return node.op_type in RANDOM_OPERATORS or any(_is_random(n) for body in bodies(node) for n in body)


def _lasts(dims: Sequence[known.Dimension], axis: int, symbols: Set[str | None]) -> bool:
    dim = dims[axis] if -len(dims) <= axis < len(dims) else None
    return isinstance(dim, int) or (dim is not None and dim.value in symbols)


def _one_by_one(form: Form, site: Site) -> Form:
    """The tensors of a sequence one by one, where they are known and few."""
    count = form.count()
    return form if count is None or count > LARGEST_SPLIT else Listed(form.elements(), site)


def _element_type(value: ir.Value) -> ir.TypeProtocol | None:
    return value.type.elem_type if isinstance(value.type, (ir.SequenceType, ir.OptionalType)) else None


_BEFORE_THE_START = -(2**63)
