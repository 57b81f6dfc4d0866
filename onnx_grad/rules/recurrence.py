"""What RNN, GRU and LSTM share: directions, sequence lengths, and pulling gates back to inputs and weights.

The forward node stays as it is. Its output Y holds the states of all steps, so that its gates are found again
for all steps at once: of x·Wᵀ and h·Rᵀ, with h the states before the steps, each is one large product for a
gate. A `Scan` then goes back through time. Its matrix product is that of the gates' cotangents with R, which
gives the cotangent of the state before. With the gates' cotangents of all steps in one tensor, the cotangents
of X, W, R and B are again one large product, or sum, each.

Where a sequence ends early, ONNX Runtime gives zeros for the rest of Y and hands the state on. Where it has
no steps at all, it gives zeros for Y_h and Y_c.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnx_grad import known
from onnx_grad.builder import Builder
from onnx_grad.masking import as_number
from onnx_grad.registry import InputCotangent
from onnx_grad.rules.steps import Stacks, Step, Values, scan_steps

# Positions of the inputs that the three operators have in common.
X, W, R, B, SEQUENCE_LENS, INITIAL_H = range(6)

_END = 2**63 - 1


def direction_count(node: ir.Node) -> int:
    """How many directions a recurrent node has: 1 or 2."""
    return 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1


@dataclass(frozen=True)
class Gate:
    """The weights of one gate.

    Attributes:
        w: [H, I].
        r: [H, H].
        w_bias: What is added to x·wᵀ, [H].
        r_bias: What is added to h·rᵀ, [H].
    """

    w: ir.Value
    r: ir.Value
    w_bias: ir.Value | None
    r_bias: ir.Value | None

    def of(self, op: Builder, x: ir.Value, h: ir.Value) -> ir.Value:
        """x·wᵀ + h·rᵀ with the biases, for rows of x and of states h."""
        if self.w_bias is None or self.r_bias is None:
            return op.Gemm(h, self.r, op.Gemm(x, self.w, transB=1), transB=1)
        return op.Gemm(h, self.r, op.Gemm(x, self.w, op.Add(self.w_bias, self.r_bias), transB=1), transB=1)


class Direction:
    """One direction of a recurrent node: its weights, and one row for each step of each sequence.

    Shapes are written with T steps, N sequences, I inputs, H hidden values and G gates.

    Args:
        op: Builds the nodes.
        node: The node.
        index: Which of its directions.

    Attributes:
        w: [G·H, I].
        r: [G·H, H].
        x: The inputs, [T·N, I].
        y: The states after the steps, [T·N, H].
        h: The states before the steps, [T·N, H].
    """

    def __init__(self, op: Builder, node: ir.Node, index: int) -> None:
        self._op, self._node, self._index = op, node, index
        self._is_reverse = index == 1 or node.attributes.get_string("direction", "forward") == "reverse"
        inputs, lengths = known.operand(node, X), known.optional_operand(node, SEQUENCE_LENS)
        outputs = op.optional_output(node, 0, inputs.dtype or ir.DataType.FLOAT)
        self._inputs = _steps_first(op, node, inputs)
        self._states = self._steps_of(outputs)
        self._lengths = None if lengths is None else op.Cast(lengths, to=ir.DataType.INT64)
        self._running = self._find_running()
        self.w, self.r = (self._part(known.operand(node, position), 0) for position in (W, R))
        self.r.shape = ir.Shape([None, self.hidden])
        self.x, self.y, self.h = map(self.rows, (self._inputs, self._states, self._states_before()))

    @property
    def hidden(self) -> known.Dimension:
        """H."""
        return self._dimensions()[-1]

    def rows(self, steps: ir.Value) -> ir.Value:
        """[T, N, …] as [T·N, …]."""
        rows = self._op.Flatten(steps, axis=2)
        if steps.shape is not None:
            rows.shape = ir.Shape([self._row_count(), *steps.shape.dims[2:]])
        return rows

    def steps(self, rows: ir.Value) -> ir.Value:
        """[T·N, H] as [T, N, H]."""
        return self._of_steps(self._op.reshape_like(rows, self._states))

    def weight(self, position: int) -> ir.Value | None:
        """The row of a weight that may be left out."""
        value = known.optional_operand(self._node, position)
        return None if value is None else self._part(value, 0)

    def gates(self, count: int) -> list[Gate]:
        """The weights of the `count` gates."""
        w, r = (_split(self._op, weight, count) for weight in (self.w, self.r))
        bias = self.weight(B)
        biases = [None] * (2 * count) if bias is None else _split(self._op, bias, 2 * count)
        return [Gate(*weights) for weights in zip(w, r, biases[:count], biases[count:], strict=True)]

    def initial(self, position: int) -> ir.Value:
        """The part of an initial state, [N, H]; zeros where it is left out."""
        return self._state(known.optional_operand(self._node, position))

    def d_final(self, cotangent: ir.Value | None) -> ir.Value:
        """The part of the cotangent of a final state, [N, H]: zeros for a sequence without steps."""
        op, own = self._op, self._state(cotangent)
        if cotangent is None or self._lengths is None:
            return own
        return self._of_sequences(own * as_number(op, op.Unsqueeze(op.Greater(self._lengths, 0), [1]), own))

    def d_steps(self, cotangent: ir.Value | None) -> Stacks:
        """As "dY", the part of the cotangent of Y, or zeros where a sequence has ended; none for `None`."""
        if cotangent is None:
            return {}
        own = self._steps_of(cotangent)
        return {"dY": own if self._running is None else self._of_steps(own * self._running)}

    def where_running(self, rows: ir.Value) -> ir.Value:
        """`rows`, or zeros where a sequence has ended."""
        return rows if self._running is None else rows * self.rows(self._running)

    def handing_on(self, rows: ir.Value) -> ir.Value:
        """`rows` of factors of a state in the next one, or ones where a sequence has ended."""
        return rows if self._running is None else self.where_running(rows) + (1.0 - self.rows(self._running))

    def ended(self) -> Stacks:
        """As "ended", 1 where a sequence has ended, else 0, [T, N, 1]; none where no sequence ends early."""
        if self._running is None:
            return {}
        ended = 1.0 - self._running
        ended.shape = ir.Shape([*self._dimensions()[:2], 1])
        return {"ended": ended}

    def forth(self, step: Step, states: Values, stacks: Stacks, widths: Sequence[int]) -> Values:
        """`scan_steps` in the order in which the node takes the steps."""
        return scan_steps(self._op, self._node, step, states, stacks, widths, backward=self._is_reverse)

    def back(self, step: Step, states: Values, stacks: Stacks, widths: Sequence[int]) -> Values:
        """`scan_steps` in the opposite order."""
        return scan_steps(self._op, self._node, step, states, stacks, widths, backward=not self._is_reverse)

    def _part(self, value: ir.Value, axis: int) -> ir.Value:
        """This direction's part of `value`, whose axis `axis` is that of the directions."""
        op = self._op
        if direction_count(self._node) == 2:
            value = op.Split(value, axis=axis, num_outputs=2, outputs=2)[self._index]
        return op.Squeeze(value, [axis])

    def _steps_of(self, value: ir.Value) -> ir.Value:
        """The part of Y or of its cotangent, [T, N, H]."""
        own = self._part(value, 2 if _is_batch_first(self._node) else 1)
        return self._of_steps(_steps_first(self._op, self._node, own))

    def _state(self, value: ir.Value | None) -> ir.Value:
        """The part of an initial or final state, or of its cotangent, [N, H]; zeros for `None`."""
        op = self._op
        if value is not None:
            return self._of_sequences(self._part(value, int(_is_batch_first(self._node))))
        shape = op.Concat(op.Shape(self._inputs, start=1, end=2), op.Shape(self.r, start=1), axis=0)
        return self._of_sequences(op.Expand(op.scalar_like(0.0, self._inputs), shape))

    def _states_before(self) -> ir.Value:
        """The states before the steps, [T, N, H]: the initial one, and those after all steps but the last."""
        op, initial = self._op, self.initial(INITIAL_H)
        if not self._is_reverse:
            return op.Slice(op.Concat(op.Unsqueeze(initial, [0]), self._states, axis=0), [0], [-1], [0])
        if self._running is None:
            return self._states_behind(initial)
        is_first = as_number(op, op.Equal(self._positions() + 1, self._ends()), initial)
        return self._states_behind(self._state(None)) + is_first * initial

    def _states_behind(self, last: ir.Value) -> ir.Value:
        """The states after the next steps, and `last` for the last step."""
        op = self._op
        return op.Slice(op.Concat(self._states, op.Unsqueeze(last, [0]), axis=0), [1], [_END], [0])

    def _find_running(self) -> ir.Value | None:
        """1 where a sequence has a step, else 0, [T, N, 1]; `None` where all have all steps."""
        if self._lengths is None:
            return None
        return as_number(self._op, self._op.Less(self._positions(), self._ends()), self._inputs)

    def _positions(self) -> ir.Value:
        """The number of each step, [T, 1, 1]."""
        op = self._op
        return op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(self._inputs, start=0, end=1)), 1), [1, 2])

    def _ends(self) -> ir.Value:
        """The length of each sequence, [1, N, 1]."""
        return self._op.Unsqueeze(self._lengths, [0, 2])

    def _of_steps(self, value: ir.Value) -> ir.Value:
        """`value` with the shape [T, N, H] noted."""
        value.shape = ir.Shape(self._dimensions())
        return value

    def _of_sequences(self, value: ir.Value) -> ir.Value:
        """`value` with the shape [N, H] noted."""
        value.shape = ir.Shape(self._dimensions()[1:])
        return value

    def _row_count(self) -> known.Dimension:
        """T·N."""
        length, sequences, _ = self._dimensions()
        if isinstance(length, int) and isinstance(sequences, int):
            return length * sequences
        return ir.SymbolicDim(f"{self._op.scope}/rows")

    def _dimensions(self) -> list[known.Dimension]:
        """T, N and H: symbols of their own where they are not known, since they are the same throughout."""
        inputs = known.dimensions(known.operand(self._node, X)) or (None, None)
        recurrent = known.dimensions(known.operand(self._node, R)) or (None,)
        length, sequences = inputs[1::-1] if _is_batch_first(self._node) else inputs[:2]
        hidden = self._node.attributes.get_int("hidden_size", 0) or recurrent[-1]
        found = zip((length, sequences, hidden), ("length", "sequences", "hidden"), strict=True)
        return [
            ir.SymbolicDim(f"{self._op.scope}/{name}")
            if dim is None or (isinstance(dim, ir.SymbolicDim) and dim.value is None)
            else dim
            for dim, name in found
        ]


@dataclass(frozen=True)
class Pulled:
    """What the cotangents of the inputs of one direction are made of.

    Attributes:
        direction: The direction.
        gates: The cotangent of x·Wᵀ, [T·N, G·H].
        recurrent: What R was multiplied with, rows of R at a time: the cotangent of a·R'ᵀ for some rows R' of
            R, and a, [T·N, H].
        initial_h: The cotangent of the initial state, [N, H].
    """

    direction: Direction
    gates: ir.Value
    recurrent: Sequence[tuple[ir.Value, ir.Value]]
    initial_h: ir.Value


def pull_back(op: Builder, node: ir.Node, directions: Sequence[Pulled]) -> list[InputCotangent]:
    """The cotangents of X, W, R, B, sequence_lens (none) and initial_h, as far as the node has them."""
    inputs = known.operand(node, X)

    def d_x() -> ir.Value:
        rows = functools.reduce(operator.add, (op.Gemm(p.gates, p.direction.w) for p in directions))
        steps = op.reshape_like(rows, _steps_first(op, node, inputs))
        return _steps_first(op, node, steps)

    def d_b(p: Pulled) -> ir.Value:
        rows = [p.gates, *(d for d, _ in p.recurrent)]
        return op.Concat(*(op.ReduceSum(d, [0], keepdims=0) for d in rows), axis=0)

    def d_r(p: Pulled) -> ir.Value:
        rows = [op.Gemm(d, a, transA=1) for d, a in p.recurrent]
        return op.Concat(*rows, axis=0) if len(rows) > 1 else rows[0]

    cotangents: list[InputCotangent] = [
        d_x,
        lambda: join(op, [op.Gemm(p.gates, p.direction.x, transA=1) for p in directions]),
        lambda: join(op, [d_r(p) for p in directions]),
        lambda: join(op, [d_b(p) for p in directions]),
        None,
        lambda: join_states(op, node, [p.initial_h for p in directions]),
    ]
    return cotangents[: len(node.inputs)]


def join(op: Builder, parts: Values, axis: int = 0) -> ir.Value:
    """The parts of the directions, along a new axis."""
    parts = [op.Unsqueeze(part, [axis]) for part in parts]
    return op.Concat(*parts, axis=axis) if len(parts) > 1 else parts[0]


def join_states(op: Builder, node: ir.Node, parts: Values) -> ir.Value:
    """The parts of an initial state's cotangent."""
    return join(op, parts, axis=int(_is_batch_first(node)))


def _split(op: Builder, weight: ir.Value, count: int) -> Values:
    """`weight` by gate."""
    return op.Split(weight, axis=0, num_outputs=count, outputs=count) if count > 1 else [weight]


def _steps_first(op: Builder, node: ir.Node, value: ir.Value) -> ir.Value:
    """[T, N, …] of a tensor of the node's layout, and the other way round."""
    return op.Transpose(value, perm=[1, 0, 2]) if _is_batch_first(node) else value


def _is_batch_first(node: ir.Node) -> bool:
    return bool(node.attributes.get_int("layout", 0))
