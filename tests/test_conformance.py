"""The gradients of ONNX's own backend cases, with and without shapes, and that the command would notice.

Each case is judged in one of the two forms here; `python -m tests.conformance`, with `--erase-shapes` or
without, judges all of them in one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from rich.console import Console

from onnx_grad import registry
from onnx_grad.builder import Builder
from tests.conformance.__main__ import main
from tests.conformance.cases import Case, fast_subset, load_cases, without_shapes
from tests.conformance.judging import NOT_CONFIRMED, judge
from tests.conformance.report import WIDTH, lost, share_right, show, to_json
from tests.conformance.running import available_cores, judge_all, judge_in_one_form
from tests.conformance.verdicts import Outcome, Precision, Verdict
from tests.oracle import graph_model, single_node

# More than half of the 203 operators have a differentiable case.
FEWEST_OPERATORS = 120

# Every differentiable case that is not right, and why.
INTEGERS = "its derivative is zero or undefined"
NOT_RIGHT = {
    "test_dynamicquantizelinear": INTEGERS,
    "test_dynamicquantizelinear_max_adjusted": INTEGERS,
    "test_dynamicquantizelinear_min_adjusted": INTEGERS,
}

# What is compared in float32 only: ONNX Runtime has no float64 kernel, and its float32 kernel has another
# opinion of the operator than the reference evaluator.
IN_FLOAT32 = {
    "test_maxunpool_export_with_output_shape",
    "test_resize_downsample_scales_cubic_align_corners",
    "test_resize_downsample_scales_linear_align_corners",
}


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


@pytest.fixture(scope="module")
def cheapest(cases: list[Case]) -> list[Verdict]:
    """On the cheapest cases of every operator, as they are."""
    return list(judge_all(fast_subset(cases)))


def test_the_cheapest_cases_of_every_operator_are_right(cheapest: list[Verdict]) -> None:
    wrong = [verdict for verdict in cheapest if verdict.outcome is Outcome.WRONG]
    right = {verdict.operator for verdict in cheapest if verdict.outcome is Outcome.RIGHT}
    assert wrong == []
    assert len(right) >= FEWEST_OPERATORS


@pytest.fixture(scope="module")
def verdicts(cases: list[Case], cheapest: list[Verdict]) -> list[Verdict]:
    """On all cases, half of them with all shapes taken from the models: minutes.

    Other tests run at the same time, so that a process here and there would only be one more to start.
    """
    return judge_in_one_form(cases, jobs=max(1, available_cores() // 2), as_they_are=cheapest)


@pytest.mark.slow
class TestAllCases:
    def test_no_gradient_is_wrong(self, verdicts: list[Verdict]) -> None:
        assert [verdict for verdict in verdicts if verdict.outcome is Outcome.WRONG] == []

    def test_nearly_all_are_right(self, verdicts: list[Verdict]) -> None:
        assert share_right(verdicts) >= 0.99

    def test_the_others_are_known_with_their_reasons(self, verdicts: list[Verdict]) -> None:
        others = {v.case: v.reason for v in verdicts if v.outcome in (Outcome.REFUSED, Outcome.UNEVALUABLE)}
        assert others.keys() == NOT_RIGHT.keys()
        assert all(reason in others[name] for name, reason in NOT_RIGHT.items())

    def test_they_are_compared_in_float64(self, verdicts: list[Verdict]) -> None:
        assert {verdict.case for verdict in verdicts if verdict.precision is Precision.FLOAT32} == IN_FLOAT32


def test_what_only_a_body_reads_is_differentiated_too(cases: list[Case]) -> None:
    (expanded,) = (case for case in cases if case.name == "test_affine_grid_2d_expanded")

    assert expanded.wrt == ["theta"]


def test_long_names_leave_room_for_the_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["Add + Mul + Neg + Sigmoid + Tanh + Relu", "Add"]
    verdicts = [
        Verdict(f"test_{i}", names[i % 2], Outcome.RIGHT, "", 0.1, Precision.FLOAT64) for i in range(5000)
    ]
    show(verdicts, Console(width=WIDTH))

    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH
    assert ["total", "5000", "5000"] in [line.split() for line in text.splitlines()]


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


@pytest.mark.parametrize(
    ("seed", "outcome"), [(None, Outcome.UNEVALUABLE), (0, Outcome.RIGHT), (3, Outcome.RIGHT)]
)
def test_a_random_mask_is_compared_where_a_seed_repeats_it(seed: int | None, outcome: Outcome) -> None:
    x = np.arange(1.0, 9.0)
    point = {"x": x, "ratio": np.float64(0.5), "training": np.array(True)}
    model = single_node("Dropout", point, **({} if seed is None else {"seed": seed}))

    verdict = judge(Case("test_dropout", "Dropout", model, (point,)))
    assert verdict.outcome is outcome
    if outcome is Outcome.RIGHT:
        assert verdict.precision is Precision.FLOAT64
    else:
        assert "differs between two evaluations" in verdict.reason


def test_a_draw_that_nothing_confirms_says_so() -> None:
    x = np.full(20, 0.5)

    verdict = judge(case_of(single_node("Bernoulli", {"x": x}), x=x))
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_DIFFERENTIABLE, NOT_CONFIRMED)


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
    assert any(
        line.startswith("2 of 2 differentiable cases are right (100.0%): 2 compared") for line in lines
    )


def test_the_command_names_what_is_not_right_in_100_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "DynamicQuantizeLinear"]) == 0

    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= WIDTH == 100
    assert "refused: 3" in text
    assert "test_dynamicquantizelinear_max_adjusted" in text
    assert INTEGERS in " ".join(text.split())


def test_the_command_fails_where_a_gradient_is_wrong(rules: None, capsys: pytest.CaptureFixture[str]) -> None:
    @registry.gradient("Relu")
    def wrong(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
        return op.Neg(dy)

    assert main(["--only", "test_relu"]) == 1
    assert "wrong: 1" in capsys.readouterr().out


def test_the_command_fails_where_a_case_of_the_baseline_is_lost(
    rules: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--only", "test_relu", "--json"]) == 0
    baseline = tmp_path / "baseline.json"
    baseline.write_text(capsys.readouterr().out)
    assert main(["--only", "test_relu", "--baseline", str(baseline)]) == 0
    registry.refused("Relu", reason="rectification is not supported")

    assert main(["--only", "test_relu", "--baseline", str(baseline)]) == 1
    assert "and not here: test_relu" in capsys.readouterr().err


def test_a_pattern_that_matches_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "test_no_such_thing"]) == 2
    assert "no case matches 'test_no_such_thing'" in capsys.readouterr().err
