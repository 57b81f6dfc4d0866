"""The gradients of ONNX's own backend cases, a few of every operator, and that the command would notice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnx_grad import registry
from onnx_grad.builder import Builder
from tests.conformance.__main__ import main
from tests.conformance.cases import Case, fast_subset, load_cases, without_shapes
from tests.conformance.judging import Outcome, Verdict, judge
from tests.conformance.report import lost, to_json
from tests.oracle import graph_model, single_node

# More than half of the 203 operators have a differentiable case.
FEWEST_OPERATORS = 120


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return load_cases()


@pytest.fixture
def rules() -> Iterator[None]:
    """Puts the rules back that a test replaces."""
    before = registry.operators()
    yield
    registry._table.clear()
    registry._table.update(before)


def case_of(model: onnx.ModelProto, **point: np.ndarray) -> Case:
    return Case("test_case", model.graph.node[0].op_type, model, (point,))


def test_the_cheapest_cases_of_every_operator_are_right(cases: list[Case]) -> None:
    verdicts = [judge(case) for case in fast_subset(cases)]

    wrong = [verdict for verdict in verdicts if verdict.outcome is Outcome.WRONG]
    right = {verdict.operator for verdict in verdicts if verdict.outcome is Outcome.RIGHT}
    assert wrong == []
    assert len(right) >= FEWEST_OPERATORS


def test_an_expanded_function_counts_for_its_operator(cases: list[Case]) -> None:
    expanded = [case for case in cases if case.name.startswith("test_gelu") and "_expanded" in case.name]

    assert expanded
    assert {case.operator for case in expanded} == {"Gelu"}


@pytest.mark.parametrize(
    "x",
    [np.array([0.5, -1.0, 2.0]), np.array([0.5, 0.0, 0.0]), np.zeros(40)],
    ids=["smooth", "partly a kink", "nothing but kinks"],
)
def test_a_wrong_gradient_is_noticed_kinks_or_not(rules: None, x: np.ndarray) -> None:
    model = single_node("Relu", {"x": x})
    assert judge(case_of(model, x=x)).outcome is Outcome.RIGHT

    @registry.gradient("Relu")
    def wrong(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
        return op.Neg(dy)

    assert judge(case_of(model, x=x)).outcome is Outcome.WRONG


def test_a_derivative_that_is_wrongly_declared_zero_is_noticed(rules: None) -> None:
    x = np.array([0.5, -1.0, 2.0])
    registry.derivative_is_zero("Tanh")

    assert judge(case_of(single_node("Tanh", {"x": x}), x=x)).outcome is Outcome.WRONG


def test_a_rule_that_crashes_is_wrong(rules: None) -> None:
    x = np.array([0.5, -1.0, 2.0])

    @registry.gradient("Tanh")
    def wrong(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
        raise ZeroDivisionError("division by zero")

    verdict = judge(case_of(single_node("Tanh", {"x": x}), x=x))
    assert verdict.outcome is Outcome.WRONG
    assert verdict.reason.startswith("ZeroDivisionError at test_conformance.py:")


def test_a_refused_operator_is_refused_with_its_reason(rules: None) -> None:
    x = np.array([0.5, -1.0, 2.0])
    registry.refused("Tanh", reason="hyperbole is not supported")

    verdict = judge(case_of(single_node("Tanh", {"x": x}), x=x))
    assert (verdict.outcome, verdict.reason) == (Outcome.REFUSED, "hyperbole is not supported")


@pytest.mark.parametrize(
    ("operator", "x"),
    [("Floor", np.array([0.5, -1.25])), ("ReduceSum", np.array([1, 2]))],
    ids=["zero everywhere", "integers"],
)
def test_a_case_without_a_derivative_is_not_differentiable(operator: str, x: np.ndarray) -> None:
    assert judge(case_of(single_node(operator, {"x": x}), x=x)).outcome is Outcome.NOT_DIFFERENTIABLE


def test_a_model_without_finite_values_is_unevaluable() -> None:
    x = np.array([1.0, 2.0])
    nodes = [
        onnx.helper.make_node("Exp", ["x"], ["e"]),
        onnx.helper.make_node("Neg", ["e"], ["n"]),
        onnx.helper.make_node("Log", ["n"], ["y"]),
    ]

    verdict = judge(case_of(graph_model(nodes, {"x": x}, ["y"]), x=x))
    assert verdict.outcome is Outcome.UNEVALUABLE
    assert "'y' is not finite" in verdict.reason


def test_outside_the_domain_a_point_inside_is_found() -> None:
    x = np.array([-1.0, -2.0])

    assert judge(case_of(single_node("Log", {"x": x}), x=x)).outcome is Outcome.RIGHT


def test_an_empty_tensor_has_an_empty_gradient() -> None:
    x = np.ones((0, 3))

    verdict = judge(case_of(single_node("ReduceMax", {"x": x}), x=x))
    assert (verdict.outcome, verdict.reason) == (Outcome.RIGHT, "all tensors are empty")


def test_a_scalar_is_compared() -> None:
    x, low = np.array([0.5, -1.0, 2.0]), np.array(0.0)

    assert judge(case_of(single_node("Clip", {"x": x, "low": low}), x=x, low=low)).outcome is Outcome.RIGHT


def test_an_initializer_that_lifting_adds_stays(cases: list[Case]) -> None:
    (pad,) = (case for case in cases if case.name == "test_operator_pad")

    assert judge(pad).outcome is Outcome.RIGHT


def test_a_case_that_takes_too_long_says_so() -> None:
    x = np.ones(1000)

    verdict = judge(case_of(single_node("Tanh", {"x": x}), x=x), time_limit=1e-4)
    assert verdict.outcome is Outcome.UNEVALUABLE
    assert verdict.reason == "it takes more than 0.0001 s"


def test_erasing_shapes_leaves_none() -> None:
    x = np.ones((2, 3))
    nodes = [
        onnx.helper.make_node("Tanh", ["x"], ["t"]),
        onnx.helper.make_node("ReduceSum", ["t"], ["y"]),
    ]
    model = onnx.shape_inference.infer_shapes(graph_model(nodes, {"x": x}, ["y"]))

    erased = without_shapes(model).graph
    assert not erased.value_info
    assert not any(v.type.tensor_type.HasField("shape") for v in (*erased.input, *erased.output))
    assert judge(case_of(model, x=x), erase_shapes=True).outcome is Outcome.RIGHT


def test_the_baseline_tells_which_cases_are_lost() -> None:
    before = [Verdict(name, "Op", Outcome.RIGHT, "", 0.0) for name in ("test_a", "test_b")]
    now = [before[0], Verdict("test_b", "Op", Outcome.UNEVALUABLE, "it takes too long", 0.0)]

    assert lost(now, to_json(before)) == ["test_b"]


def test_the_command_prints_a_line_per_operator_and_a_total(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "test_relu*"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:3] == ["Relu", "2", "2"] for line in lines)
    assert any(line.startswith("2 of 2 differentiable cases are right") for line in lines)
