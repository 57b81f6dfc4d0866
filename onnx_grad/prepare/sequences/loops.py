"""Loop: tensors in the place of the states that are sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.composition import infer_composition
from onnx_grad.liveness import detach
from onnx_grad.path import OBSTACLE
from onnx_grad.prepare.sequences.bodies import give_out
from onnx_grad.prepare.sequences.context import Walk, forget_shapes, holds_tensors
from onnx_grad.prepare.sequences.forms import Form
from onnx_grad.prepare.sequences.loop_states import (
    Appended,
    Fixed,
    SequenceState,
    State,
    appends,
    lasting_symbols,
)
from onnx_grad.prepare.sequences.ragged import Lengths, measured
from onnx_grad.prepare.sequences.runs import NoTensorFormError
from onnx_grad.prepare.sequences.sites import Site
from onnx_grad.prepare.sequences.unrolling import trip_count, unroll
from onnx_grad.wiring import Carried, Iteration, iteration


def loop(walk: Walk, node: ir.Node) -> None:
    """Tensors as states where sequences keep their length; stacked results where a loop appends.

    What is appended must have one shape to be stacked. Where that is not certain and the number of iterations
    is known, the iterations are written one after the other instead, as they are where their sequences
    have no such form. Where that number is not known either, and all that reads the result joins it along an
    axis, a loop before the loop finds out the sizes along that axis, and the pieces are padded. Where
    something else reads it, they are taken to have one shape: ONNX Runtime fails where they have not.
    """
    form = iteration(node)
    positions = [i for i, state in enumerate(form.states) if _is_active_sequence(walk, state)]
    if not positions:
        walk.visit(form.body)
        return
    appended = {i for i in positions if appends(form.states[i])}
    trips = trip_count(node, form)
    try:
        _with_tensors(walk, node, form, positions, appended, must_be_even=trips is not None)
    except NoTensorFormError:
        if trips is None:
            raise
        unroll(walk, node, form, trips)


def _with_tensors(
    walk: Walk,
    node: ir.Node,
    form: Iteration,
    positions: Sequence[int],
    appended: Set[int],
    must_be_even: bool,
) -> None:
    attempt = _Tensors(walk, node, form, positions, appended, must_be_even)
    try:
        attempt.express()
    except NoTensorFormError as error:
        if len(appended) == len(positions):
            attempt.hand_on_obstacles()
            raise
        try:  # a branch of the body may append
            _Tensors(walk, node, form, positions, set(positions), must_be_even).express()
        except NoTensorFormError:
            attempt.hand_on_obstacles()
            raise error from None


def _is_active_sequence(walk: Walk, state: Carried) -> bool:
    is_sequence = holds_tensors(state.before) or holds_tensors(state.initial)
    return is_sequence and any(map(walk.active, (state.before, state.after, state.result)))


class _Tensors:
    """A loop with tensors in the place of some of its sequence states, made of a copy of its body."""

    def __init__(
        self,
        walk: Walk,
        node: ir.Node,
        form: Iteration,
        positions: Sequence[int],
        appended: Set[int],
        must_be_even: bool,
    ) -> None:
        self._must_be_even = must_be_even
        self._walk = walk
        self._node = node
        self._scope = str(node.name)
        self._form = form
        self._positions = positions
        self._appended = appended
        self._kept = [i for i in range(len(form.states)) if i not in positions]
        self._body = form.body.clone(allow_outer_scope_values=True)
        walk.adopt_body(self._body)

    def express(self) -> None:
        """Put the new loop into the place of the node.

        Raises:
            NoTensorFormError: Why it cannot be; then the node is what it was.
        """
        try:
            with self._walk.trying():
                sequences = [self._entering(position) for position in self._positions]
                self._walk.visit(self._body)
                for position, sequence in zip(self._positions, sequences, strict=True):
                    sequence.leave(self._body.outputs[1 + position])
                    self._check_readers(self._body.inputs[2 + position])
                self._settle_shapes([state for sequence in sequences for state in sequence.states])
                symbols = lasting_symbols(self._node, self._body)
                for sequence in sequences:
                    sequence.settle(symbols, self._must_be_even)
        except NoTensorFormError:
            detach(self._body)
            raise
        self._rebuild(sequences)

    def hand_on_obstacles(self) -> None:
        """Let the nodes of the body say what those of the copy do."""
        obstacles = {n.name: n.meta[OBSTACLE] for n in self._body.all_nodes() if OBSTACLE in n.meta}
        for node in self._form.body.all_nodes():
            if node.name in obstacles:
                node.meta[OBSTACLE] = obstacles[node.name]

    def _check_readers(self, sequence: ir.Value) -> None:
        """Nothing reads a sequence of the body any longer, but to make others that nothing reads."""
        pending = [sequence]
        while pending:
            for reader in {use.node for use in pending.pop().uses()}:
                if not all(output in self._walk.forms for output in reader.outputs):
                    default = f"node '{reader.name}' reads '{sequence.name}', which is a state of a loop"
                    raise NoTensorFormError(self._walk.reasons.get(reader, default))
                pending += reader.outputs

    def _entering(self, position: int) -> SequenceState:
        carried, before = self._form.states[position], self._body.inputs[2 + position]
        form = self._walk.forms.get(carried.initial) or self._walk.form(carried.initial)
        if position in self._appended and isinstance(form, Form):
            return Appended(self._walk, self._node, self._body, carried, before, form)
        return Fixed(self._walk, self._node, self._body, carried, before, form)

    def _settle_shapes(self, states: Sequence[State]) -> None:
        """Let the new states have what stays the same of the shape that they start with."""
        forget_shapes(self._body)
        infer_composition(list(self._body), self._walk.writer.opset)
        for state in states:
            before, after = known.dimensions(state.before), known.dimensions(state.after)
            if before is None or after is None or len(before) != len(after):
                state.before.shape = None
                continue
            same = [a if known.same_dimension(a, b) else None for a, b in zip(before, after, strict=True)]
            state.before.shape = ir.Shape(same)

    def _rebuild(self, sequences: Sequence[SequenceState]) -> None:
        body, form = self._body, self._form
        states = [state for sequence in sequences for state in sequence.states]
        slices = [piece for sequence in sequences for piece in sequence.slices]
        inputs = [*body.inputs[:2], *(body.inputs[2 + i] for i in self._kept), *(s.before for s in states)]
        outputs = [body.outputs[0], *(body.outputs[1 + i] for i in self._kept), *(s.after for s in states)]
        state_count = len(outputs) - 1
        outputs += [*body.outputs[1 + len(form.states) :], *slices]
        body.inputs.clear()
        body.inputs.extend(inputs)
        body.outputs.clear()
        give_out(self._walk.writer, body, outputs, self._scope)

        initials = [*(form.states[i].initial for i in self._kept), *(state.initial for state in states)]
        operands = [*self._node.inputs[:2], *initials]
        if operands[-1] is None:  # onnx's inference insists on two operands
            with self._walk.before(self._node).writing() as op:
                operands[-1] = op.constant(True, ir.DataType.BOOL)
        uneven = self._uneven(sequences, len(outputs) - len(slices))
        lengths = measured(self._walk, self._node, operands, body, state_count, list(uneven.values()))
        new = ir.Node(
            "",
            "Loop",
            operands,
            [ir.AttrGraph("body", body)],
            num_outputs=len(outputs) - 1,
            name=self._node.name,
            metadata_props=dict(self._node.metadata_props),
        )
        for result, value in zip(new.outputs, body.outputs[1:], strict=True):
            result.name, result.type = (
                self._walk.writer.unique_name(f"{self._scope}/{value.name}"),
                value.type,
            )
        self._supersede(new, state_count, sequences, dict(zip(uneven, lengths, strict=True)))

    def _uneven(self, sequences: Sequence[SequenceState], first: int) -> dict[SequenceState, tuple[int, int]]:
        """Those whose slices may differ in size: the output of the body from `first` on, and the axis."""
        found = {}
        for sequence in sequences:
            if sequence.ragged_axis is not None:
                found[sequence] = (first, sequence.ragged_axis)
            first += len(sequence.slices)
        return found

    def _supersede(
        self,
        new: ir.Node,
        state_count: int,
        sequences: Sequence[SequenceState],
        lengths: Mapping[SequenceState, Lengths],
    ) -> None:
        scans = [write.whole for write in self._form.writes]
        behind = state_count + len(scans)
        finals, stacks = iter(new.outputs[len(self._kept) : state_count]), iter(new.outputs[behind:])
        kept = dict(zip((self._form.states[i].result for i in self._kept), new.outputs, strict=False))
        kept |= dict(zip(scans, new.outputs[state_count:behind], strict=True))
        self._walk.supersede(self._node, new, kept)
        detach(self._form.body)
        site = Site.after(self._walk.writer, new)
        for sequence in sequences:
            own_finals = [next(finals) for _ in sequence.states]
            own_stacks = [next(stacks) for _ in sequence.slices]
            final = sequence.final(own_finals, own_stacks, lengths.get(sequence), site)
            self._walk.drop_sequence(sequence.carried.result, final, site)
