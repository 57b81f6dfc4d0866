"""Rounding noise: what it excuses, what it does not, and that it shows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_grad.checking import GradientReport, check_gradients, evaluators
from onnx_grad.checking.noise import perturbed, rounding_noise
from onnx_grad.checking.own_precision import compare
from onnx_grad.checking.report import OwnPrecision
from tests.graphs import parse

Rule = Callable[..., Any]


def uniform_softmax(weight: float) -> onnx.ModelProto:
    """A convolution by `weight`, a sum over everything, and the softmax of its copies: always uniform.

    The gradient of a softmax sums up to zero, so that the gradient of `x` is exactly zero.
    """
    model = parse(
        "g (float[1,1,50] x) => (float[1,50] y) <int64[2] shape = {1, 50}> "
        "{ c = Conv(x, k) t = ReduceSum<keepdims=0>(c) e = Expand(t, shape) y = Softmax<axis=1>(e) }"
    )
    kernel = np.full((1, 1, 1), weight, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "k"))
    return model


def reference(report: GradientReport) -> list[str]:
    return [note.evaluator for note in report.evaluators if note.role != "gradient graph as shipped"]


class TestMeasuring:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
    def test_a_perturbation_is_one_unit_in_the_last_place(self, dtype: type) -> None:
        value = np.array([1.5, -3.0, 100.0, 0.0]).astype(dtype)
        moved = perturbed(value, np.random.default_rng(0))
        change = np.abs(moved.astype(float) / np.where(value == 0, 1, value).astype(float) - 1.0)[:3]
        epsilon = float(ml_dtypes.finfo(dtype).eps)
        assert moved.dtype == value.dtype
        assert (change > 0.0).all()
        assert (change <= epsilon).all()
        assert moved[3] == 0.0

    def test_integers_and_booleans_stay(self) -> None:
        for value in (np.array([1, 2]), np.array([True]), "text"):
            assert perturbed(value, np.random.default_rng(0)) is value
        (item,) = perturbed([np.ones(1, np.float32)], np.random.default_rng(0))
        assert item != 1.0

    def test_noise_is_condition_times_rounding(self) -> None:
        feeds = {"x": np.array([1.0, 2.0])}

        def evaluate(values: Any) -> dict[str, np.ndarray]:
            return {"well": values["x"], "ill": 1e6 * (values["x"] - 1.0)}

        noise = rounding_noise(evaluate, feeds, evaluate(feeds))
        assert 1e-16 < noise["well"] < 1e-15
        assert 1e-10 < noise["ill"] < 1e-9

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_what_is_not_finite_excuses_nothing(self, value: float) -> None:
        feeds = {"x": np.ones(2)}
        calls = iter([np.ones(2), np.array([value, 1.0]), np.ones(2)])
        assert rounding_noise(lambda _: {"y": next(calls)}, feeds, {"y": np.ones(2)}) == {"y": 0.0}

    def test_another_shape_excuses_nothing(self) -> None:
        assert rounding_noise(lambda _: {"y": np.ones(3)}, {}, {"y": np.ones(2)}) == {"y": 0.0}


class TestShippedGradients:
    REFERENCE = np.array([1e-9, -2e-9])

    def test_noise_excuses_what_is_of_its_size(self) -> None:
        shipped = np.array([0.5, -0.3], np.float32)
        assert not compare(shipped, self.REFERENCE, size=1.0).passed
        found = compare(shipped, self.REFERENCE, size=1.0, noise=0.2)
        assert found.passed
        assert found.ill_conditioned
        assert found.largest == 2e-9

    def test_noise_excuses_nothing_larger(self) -> None:
        shipped = np.array([0.5, -0.3], np.float32)
        found = compare(shipped, self.REFERENCE, size=1.0, noise=0.01)
        assert not found.passed
        assert not found.ill_conditioned


class TestIllConditionedPoints:
    def test_the_gradient_passes_and_the_report_says_so(self) -> None:
        report = check_gradients(uniform_softmax(1e12))
        (x,) = report.tensors
        assert report.passed
        assert reference(report) == ["reference-float64", "reference-float64"]
        assert x.own_precision is not None
        assert x.own_precision.noise > 1.0
        assert x.ill_conditioned
        assert "noise" in x.verdict
        assert "ill-conditioned: x: the last digit of the inputs, or of what the model" in str(report)
        assert "1 of 1 ill-conditioned here" in str(report)
        assert json.loads(report.to_json())["tensors"][0]["ill_conditioned"] is True
        assert GradientReport.from_json(report.to_json()) == report

    def test_a_wrong_gradient_of_that_size_fails_where_the_point_is_well_conditioned(
        self, rule: Rule
    ) -> None:
        """The same graph without the softmax: its gradient is 50 times the weight, and not noise."""
        model = parse(
            "g (float[1,1,50] x) => (float y) { c = Conv(x, k) y = ReduceSum<keepdims=0>(c) }",
        )
        kernel = np.full((1, 1, 1), 1e12, np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "k"))
        right = check_gradients(model)
        assert right.passed
        assert not right.tensors[0].ill_conditioned
        rule("ReduceSum")(lambda op, node, dy: op.Expand(dy * 1.001, op.Shape(node.inputs[0])))
        wrong = check_gradients(model)
        assert not wrong.passed
        assert wrong.tensors[0].failures

    def test_a_wrong_gradient_in_float32_alone_fails_at_a_well_conditioned_point(self, rule: Rule) -> None:
        def wrong(op: Any, node: Any, dy: Any) -> Any:
            y = node.outputs[0]
            dx = dy * (1.0 - y * y)
            return dx * 1.01 if dx.dtype == onnx.TensorProto.FLOAT else dx

        rule("Tanh")(wrong)
        report = check_gradients(parse("g (float[1,1,9] x) => (float[1,1,9] y) { y = Tanh(x) }"))
        own = report.tensors[0].own_precision
        assert not report.passed
        assert own is not None
        assert not own.passed
        assert not own.ill_conditioned
        assert own.noise < 1e-5

    def test_a_well_conditioned_gradient_has_no_note(self) -> None:
        report = check_gradients(uniform_softmax(1e-3))
        assert report.passed
        assert not report.tensors[0].ill_conditioned
        assert "ill-conditioned" not in str(report)


class TestTheReferenceEvaluator:
    def test_it_is_kept_where_float32_is_the_noisy_one(self) -> None:
        report = check_gradients(uniform_softmax(1e12), wrt="x")
        gradient = next(note for note in report.evaluators if note.role == "gradient graph")
        assert gradient.evaluator == "reference-float64"
        assert "rounding in float32 explains" in gradient.caveat
        assert "but its 'x_grad' differs from ONNX Runtime's by" in " ".join(str(report).split())

    def test_it_is_rejected_where_it_is_wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        (conv,) = [r for r in evaluators.REPLACEMENTS if r.__name__ == "Conv"]

        class Conv(conv):  # type: ignore[misc, valid-type]
            def _run(self, *inputs: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
                return (1.01 * super()._run(*inputs, **attributes)[0],)

        others = [r for r in evaluators.REPLACEMENTS if r is not conv]
        monkeypatch.setattr(evaluators, "REPLACEMENTS", (*others, Conv))
        model = parse("g (float[1,1,6] x, float[1,1,2] k) => (float[1,1,5] y) { c = Conv(x, k) y = Tanh(c) }")
        report = check_gradients(model)
        assert set(reference(report)) == {"onnxruntime-float32"}
        assert "which is rounding" in report.evaluators[0].reason


def test_own_precision_is_ill_conditioned_only_where_it_passes() -> None:
    found = OwnPrecision("float32", "[0]", 1.0, 0.0, 1.0, 1.0, 2.0, passed=True, noise=0.2)
    assert found.ill_conditioned
    assert not dataclasses.replace(found, passed=False).ill_conditioned
    assert not dataclasses.replace(found, noise=0.0).ill_conditioned
