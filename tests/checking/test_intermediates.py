"""Noise that the inputs do not show: functions that saturate, and what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnx_grad.checking import GradientReport, check_gradients
from onnx_grad.checking.intermediates import intermediate_noise
from onnx_grad.checking.noise import rounding_noise
from onnx_grad.prepare.infer import infer
from tests.graphs import parse, run

Rule = Callable[..., Any]

# The slope of tanh, from its value, as a gradient graph computes it.
SLOPE = "g (double[2] x) => (double[2] s) <double one = {1}> { y = Tanh(x) q = Mul(y, y) s = Sub(one, q) }"
SATURATED = np.array([8.0, -8.5])
UNIT = 2.0**-23


def evaluate(model: ir.Model) -> Mapping[str, np.ndarray]:
    return run(ir.to_proto(model), {"x": SATURATED})


def noise_of(graph: str, epsilon: Callable[[ir.Value], float]) -> dict[str, float]:
    model = ir.from_proto(infer(parse(graph)))
    before = ir.to_proto(model).SerializeToString()
    noise = intermediate_noise(model, evaluate, evaluate(model), epsilon)
    assert ir.to_proto(model).SerializeToString() == before
    return noise


def test_it_is_found_where_perturbed_inputs_show_none() -> None:
    model = parse(SLOPE)
    float32 = SATURATED.astype(np.float32).astype(np.float64)
    of_inputs = rounding_noise(lambda feeds: run(model, feeds), {"x": float32}, run(model, {"x": float32}))
    of_intermediates = noise_of(SLOPE, lambda value: UNIT)
    assert of_inputs["s"] < 1e-15
    assert of_intermediates["s"] == pytest.approx(2 * UNIT, rel=1.0)


def test_what_is_left_alone_makes_none() -> None:
    assert noise_of(SLOPE, lambda value: 0.0) == {"s": 0.0}
    of_one = noise_of(SLOPE, lambda value: UNIT if value.name == "q" else 0.0)
    assert of_one["s"] == pytest.approx(UNIT, rel=1e-3)


def test_what_is_not_finite_excuses_nothing() -> None:
    """One and a bit is outside the domain of √(1 - y²)."""
    graph = SLOPE.replace("Tanh", "Sign").replace("s = Sub(one, q)", "d = Sub(one, q) s = Sqrt(d)")
    assert noise_of(graph, lambda value: UNIT) == {"s": 0.0}


class TestChecks:
    """A convolution, which no float64 kernel computes, and tanh far out."""

    @pytest.fixture(autouse=True)
    def right_tanh(self, rule: Rule) -> None:
        rule("Tanh")(lambda op, node, dy: dy * (1.0 - node.outputs[0] * node.outputs[0]))

    def check(self, x: float) -> GradientReport:
        """The slope of tanh(20 x), where x is small beside another channel, which does not matter."""
        model = parse("g (float[1,2,3] x) => (float[1,1,3] y) { c = Conv(x, k) y = Tanh(c) }")
        kernel = np.array([[[20.0], [0.0]]], np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(kernel, "k"))
        return check_gradients(model, inputs={"x": np.array([[[x] * 3, [10.0] * 3]], np.float32)})

    def test_the_gradient_passes_and_the_report_says_why(self) -> None:
        report = self.check(0.41)
        own = report.tensors[0].own_precision
        assert report.passed
        assert own is not None
        assert report.tensors[0].max_rel_error < 1e-6
        assert own.max_rel_error > 0.01
        assert own.ill_conditioned
        assert "or of what the model computes" in " ".join(str(report).split())

    def test_float64_is_not_given_up_for_what_float32_rounds(self) -> None:
        gradient = next(note for note in self.check(0.41).evaluators if note.role == "gradient graph")
        assert gradient.evaluator == "reference-float64"
        assert "rounding in float32 explains" in gradient.caveat

    def test_a_wrong_gradient_in_float32_alone_fails_where_nothing_saturates(self, rule: Rule) -> None:
        def wrong(op: Any, node: Any, dy: Any) -> Any:
            dx = dy * (1.0 - node.outputs[0] * node.outputs[0])
            return dx * 1.05 if dx.dtype == onnx.TensorProto.FLOAT else dx

        assert self.check(0.03).passed
        rule("Tanh")(wrong)
        assert not self.check(0.03).passed
