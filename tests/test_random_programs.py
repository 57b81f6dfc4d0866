"""Random programs of nested If, Loop and Scan over elementwise bodies, against finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
from onnx import TensorProto

from tests.oracle import SHAPE_KNOWLEDGE, check, graph_model

UNARY = ("Tanh", "Sin", "Sigmoid", "Neg")
BINARY = ("Add", "Mul", "Sub")
SIZE = 2
DEPTH = 2


class Program:
    """Draws the nodes of one graph after the other, every value of shape [SIZE] and visible in bodies."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.names = (f"v{i}" for i in itertools.count())

    def block(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        """Some statements, and everything in scope after them."""
        nodes: list[onnx.NodeProto] = []
        scope = list(scope)
        for _ in range(self.draw(st.integers(1, 3))):
            kinds = ["elementwise"] if depth == 0 else ["elementwise", "if", "loop", "scan"]
            made, results = getattr(self, f"_{self.draw(st.sampled_from(kinds))}")(scope, depth)
            nodes += made
            scope += results
        return nodes, scope

    def _pick(self, scope: list[str]) -> str:
        """Any value in scope, the newest ones more often."""
        return self.draw(st.sampled_from(scope[-3:] + scope))

    def _elementwise(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        result = next(self.names)
        op_type = self.draw(st.sampled_from(UNARY + BINARY))
        operands = [self._pick(scope) for _ in range(1 if op_type in UNARY else 2)]
        return [onnx.helper.make_node(op_type, operands, [result])], [result]

    def _if(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        count = self.draw(st.integers(1, 2))
        branches = {}
        for name in ("then_branch", "else_branch"):
            nodes, inner = self.block(scope, depth - 1)
            handed, ends = self._ends(inner, count)
            branches[name] = self._graph([*nodes, *handed], [], ends)
        condition = list(self._is_positive(self._pick(scope)))
        results = [next(self.names) for _ in range(count)]
        node = onnx.helper.make_node("If", [condition[-1].output[0]], results, **branches)
        return [*condition, node], results

    def _loop(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        states = self.draw(st.integers(1, 2))
        before = [next(self.names) for _ in range(states)]
        nodes, inner = self.block([*scope, *before], depth - 1)
        handed, ends = self._ends(inner, states + 1)
        counter, going, goes_on = (next(self.names) for _ in range(3))
        if self.draw(st.booleans()):
            condition = list(self._is_positive(self._pick(inner)))
            condition[-1].output[0] = goes_on
        else:
            condition = [onnx.helper.make_node("Identity", [going], [goes_on])]
        body = self._graph(
            [*nodes, *handed, *condition],
            [(counter, TensorProto.INT64, []), (going, TensorProto.BOOL, []), *map(_vector, before)],
            ends,
            [(goes_on, TensorProto.BOOL, [])],
        )
        trips, results = next(self.names), [next(self.names) for _ in range(states)]
        stack, zero, total = (next(self.names) for _ in range(3))
        return [
            _constant(trips, np.asarray(self.draw(st.integers(0, 3)))),
            onnx.helper.make_node(
                "Loop", [trips, "", *map(self._pick, [scope] * states)], [*results, stack], body=body
            ),
            _constant(zero, np.asarray([0])),
            onnx.helper.make_node("ReduceSum", [stack, zero], [total], keepdims=0),
        ], [*results, total]

    def _scan(self, scope: list[str], depth: int) -> tuple[list[onnx.NodeProto], list[str]]:
        state, piece = next(self.names), next(self.names)
        nodes, inner = self.block([*scope, state, piece], depth - 1)
        handed, ends = self._ends(inner, 2)
        body = self._graph([*nodes, *handed], list(map(_vector, [state, piece])), ends)
        axes, whole, result, written = (next(self.names) for _ in range(4))
        axis, direction = self.draw(st.sampled_from([0, 1, -1])), self.draw(st.integers(0, 1))
        scan = onnx.helper.make_node(
            "Scan",
            [self._pick(scope), whole],
            [result, written],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[axis],
            scan_input_directions=[direction],
            scan_output_axes=[self.draw(st.sampled_from([0, 1, -1]))],
            scan_output_directions=[self.draw(st.integers(0, 1))],
        )
        total, first = next(self.names), next(self.names)
        pieces = [self._pick(scope) for _ in range(SIZE)]
        columns = [next(self.names) for _ in pieces]
        return [
            _constant(axes, np.asarray([1])),
            *(
                onnx.helper.make_node("Unsqueeze", [p, axes], [c])
                for p, c in zip(pieces, columns, strict=True)
            ),
            onnx.helper.make_node("Concat", columns, [whole], axis=1),
            scan,
            _constant(first, np.asarray(0)),
            onnx.helper.make_node("Gather", [written, first], [total], axis=1),
        ], [result, total]

    def _ends(self, scope: list[str], count: int) -> tuple[list[onnx.NodeProto], list[str]]:
        """Outputs of a body, which must be its own."""
        ends = [next(self.names) for _ in range(count)]
        return [onnx.helper.make_node("Identity", [self._pick(scope)], [end]) for end in ends], ends

    def _is_positive(self, value: str) -> Iterator[onnx.NodeProto]:
        total, zero, answer = (next(self.names) for _ in range(3))
        yield onnx.helper.make_node("ReduceSum", [value], [total], keepdims=0)
        yield _constant(zero, np.asarray(0.1))
        yield onnx.helper.make_node("Greater", [total, zero], [answer])

    def _graph(
        self,
        nodes: list[onnx.NodeProto],
        inputs: list[tuple[str, int, list[int]]],
        ends: list[str],
        before: list[tuple[str, int, list[int]]] | None = None,
    ) -> onnx.GraphProto:
        outputs = [*(before or []), *map(_vector, ends)]
        make = onnx.helper.make_tensor_value_info
        return onnx.helper.make_graph(
            nodes, "body", [make(*info) for info in inputs], [make(*info) for info in outputs]
        )


def _vector(name: str) -> tuple[str, int, list[int]]:
    return name, TensorProto.DOUBLE, [SIZE]


def _constant(name: str, content: np.ndarray) -> onnx.NodeProto:
    return onnx.helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(content))


@st.composite
def programs(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A random program, and a point to check it at."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inputs = {name: generator.uniform(-1, 1, SIZE) for name in ("a", "b")}
    program = Program(draw)
    nodes, scope = program.block(list(inputs), DEPTH)
    handed, ends = program._ends(scope, 2)
    return graph_model([*nodes, *handed], inputs, ends), inputs


@hypothesis.given(case=programs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE), second=st.booleans())
@hypothesis.settings(max_examples=40, deadline=None)
def test_against_finite_differences(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], knowledge: str, second: bool
) -> None:
    model, inputs = case
    hypothesis.note(onnx.printer.to_text(model))
    check(model, inputs, shapes=[knowledge], second_order=second, rtol=1e-5, atol=1e-6, step=1e-5)
