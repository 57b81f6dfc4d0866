"""Which evaluator is chosen, and why."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnx_grad.checking import evaluators
from onnx_grad.checking.choice import Choice, choose_evaluator, relative_distance
from onnx_grad.checking.evaluators import Candidate
from onnx_grad.checking.precision import to_precision
from onnx_grad.errors import InputError, ModelError
from onnx_grad.prepare.infer import infer
from tests.graphs import parse


def choose(graph: str, feeds: dict[str, np.ndarray], *, opset: int = 18, **options: object) -> Choice:
    return choose_for(parse(graph, opset=opset), feeds, **options)


def choose_for(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], **options: object) -> Choice:
    model = ir.from_proto(infer(proto))
    float64 = to_precision(model, ir.DataType.DOUBLE)
    float32 = to_precision(model, ir.DataType.FLOAT)
    return choose_evaluator(
        Candidate(float64.model, float64.held),
        lambda: Candidate(float32.model, float32.held),
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
    model = parse(
        "g (float[1,2] x) => (float[1,2] y) { y = ai.onnx.ml.Scaler<offset=[1.0], scale=[2.0]>(x) }"
    )
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    choice = choose_for(model, {"x": np.array([[0.1, 0.2]])})
    assert choice.evaluator.name == "onnxruntime-float64"
    assert choice.evaluator.precision == "float32"
    assert "no float64 for Scaler" in choice.reason


class TestRandomNumbers:
    def choose(self, n: int, training: int, seed: str) -> Choice:
        constants = f"float r = {{0.5}}, bool t = {{{training}}}"
        graph = f"g (float[{n}] x) => (float[{n}] y) <{constants}> {{ y = Dropout{seed}(x, r, t) }}"
        return choose(graph, {"x": np.arange(1.0, n + 1)})

    @pytest.mark.parametrize("seed", ["<seed=0>", "<seed=1>", "<seed=42>"])
    @pytest.mark.parametrize("n", [2, 20])
    def test_a_fixed_seed_is_left_to_the_reference_evaluator(self, seed: str, n: int) -> None:
        """ONNX Runtime's first two masks are the same for the seed 0."""
        choice = self.choose(n, 1, seed)
        assert (choice.evaluator.name, choice.evaluator.precision) == ("reference-float64", "float64")
        assert "onnxruntime-float64: it draws other random numbers for 'y' every time" in choice.reason
        assert "not compared with ONNX Runtime" in choice.caveat

    def test_without_a_seed_there_is_no_function(self) -> None:
        for n in (2, 20):
            with pytest.raises(ModelError, match="'y' differs between two evaluations at the same point"):
                self.choose(n, 1, "")

    def test_what_is_turned_off_draws_nothing(self) -> None:
        assert self.choose(20, 0, "").evaluator.name == "onnxruntime-float64"


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
