"""Which evaluator is chosen, and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnx_grad.checking import evaluators
from onnx_grad.checking.evaluators import Candidate, Choice, choose_evaluator, relative_distance
from onnx_grad.checking.precision import to_precision
from onnx_grad.errors import InputError
from onnx_grad.prepare.infer import infer
from tests.graphs import parse


def choose(graph: str, feeds: dict[str, np.ndarray], *, opset: int = 18, **options: object) -> Choice:
    model = ir.from_proto(infer(parse(graph, opset=opset)))
    float64 = to_precision(model, ir.DataType.DOUBLE)
    float32 = to_precision(model, ir.DataType.FLOAT)
    return choose_evaluator(
        Candidate(float64.model, float64.held),
        Candidate(float32.model, float32.held),
        feeds,
        **options,  # type: ignore[arg-type]
    )


ADD = "g (float[2] x) => (float[2] y) { y = Add(x, x) }"
CONV = "g (float[1,1,4] x, float[1,1,2] w) => (float[1,1,3] y) { y = Conv(x, w) }"
CONV_FEEDS = {"x": np.arange(4.0).reshape(1, 1, 4), "w": np.array([[[1.0, -1.0]]])}


def test_onnx_runtime_in_float64_where_it_has_the_kernels() -> None:
    choice = choose(ADD, {"x": np.array([0.1, 0.2])})
    assert choice.evaluator.name == "onnxruntime-float64"
    assert choice.evaluator.precision == "float64"
    assert choice.reason == ""
    assert choice.evaluator({"x": np.array([0.1, 0.2])})["y"].tolist() == [0.2, 0.4]


def test_the_reference_evaluator_where_a_kernel_is_missing() -> None:
    choice = choose(CONV, CONV_FEEDS)
    assert choice.evaluator.name == "reference-float64"
    assert choice.evaluator.precision == "float64"
    assert "no kernel for Conv" in choice.reason


def test_float32_where_the_reference_evaluator_is_too_slow() -> None:
    choice = choose(CONV, CONV_FEEDS, evaluations=1000, time_limit=0.0)
    assert choice.evaluator.name == "onnxruntime-float32"
    assert choice.evaluator.precision == "float32"
    assert "1000 evaluations" in choice.reason


def test_float32_where_the_reference_evaluator_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    class Conv(evaluators.REPLACEMENTS[0]):  # type: ignore[misc, name-defined]
        def _run(self, x: np.ndarray, w: np.ndarray, **attributes: object) -> tuple[np.ndarray]:
            return (np.ones((1, 1, 3)),)

    monkeypatch.setattr(evaluators, "REPLACEMENTS", (Conv,))
    choice = choose(CONV, CONV_FEEDS)
    assert choice.evaluator.name == "onnxruntime-float32"
    assert "differs from ONNX Runtime's" in choice.reason


def test_float32_where_the_reference_evaluator_has_only_that() -> None:
    graph = (
        "g (float[1,1,2,2] x, float[1,2,2,2] grid) => (float[1,1,2,2] y) "
        "{ c = Conv(x, k) y = GridSample(c, grid) } "
    ).replace("=> (float[1,1,2,2] y)", "=> (float[1,1,2,2] y) <float[1,1,1,1] k = {2}>")
    feeds = {"x": np.arange(4.0).reshape(1, 1, 2, 2), "grid": np.zeros((1, 2, 2, 2))}
    choice = choose(graph, feeds, opset=20)
    assert choice.evaluator.name == "onnxruntime-float32"
    assert "computes GridSample in float32" in choice.reason


def test_a_node_held_in_float32_makes_the_evaluation_float32() -> None:
    graph = "g (uint8[2] q, float s) => (float[2] y) { y = DequantizeLinear(q, s) }"
    choice = choose(graph, {"q": np.array([1, 2], np.uint8), "s": np.array(0.5)})
    assert choice.evaluator.name == "onnxruntime-float64"
    assert choice.evaluator.precision == "float32"
    assert "no float64 for DequantizeLinear" in choice.reason


def test_the_evaluator_asked_for() -> None:
    feeds = {"x": np.array([0.1, 0.2])}
    for name in evaluators.EVALUATORS:
        choice = choose(ADD, feeds, only=name)
        assert choice.evaluator.name == name
    with pytest.raises(InputError, match=r"onnxruntime-float64: .*no kernel for Conv"):
        choose(CONV, CONV_FEEDS, only="onnxruntime-float64")


def test_nothing_can_evaluate() -> None:
    with pytest.raises(InputError, match=r"onnxruntime-float64: .*reference-float64: .*float32: "):
        choose(
            "g (float[2] x, float[3] w) => (float[2] y) { a = Shape(w) y = Reshape(x, a) }",
            {"x": np.ones(2), "w": np.ones(3)},
        )


def test_relative_distance() -> None:
    a = np.array([1.0, 2.0])
    assert relative_distance(a, a) == 0.0
    assert relative_distance(a, np.array([1.0, 4.0])) == 0.5
    assert relative_distance(a, np.ones(3)) == float("inf")
    assert relative_distance(np.array([np.nan]), np.array([np.nan])) == 0.0
    assert relative_distance(np.array([1.0]), np.array([np.nan])) == float("inf")
