"""The checker accepts right gradients and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnx_grad.checking import GradientReport, check_gradients, comparison
from onnx_grad.checking.finite_differences import Point
from onnx_grad.errors import (
    InputError,
    ModelError,
    NoPathWarning,
    NotDifferentiableError,
    RuntimeUnavailableError,
    UnknownNameError,
)
from tests.graphs import parse

TANH = "g (float[N,3] x, float[3] w) => (float[N,3] y) { h = Tanh(x) y = Mul(h, w) }"
Rule = Callable[..., Any]


def tanh(op: Any, node: Any, dy: Any) -> Any:
    (y,) = node.outputs
    return dy * (1.0 - y * y)


@pytest.fixture(autouse=True)
def right_tanh(rule: Rule) -> None:
    rule("Tanh")(tanh)


def evaluator_of(report: GradientReport, role: str) -> str:
    return next(note.evaluator for note in report.evaluators if note.role == role)


class TestRightGradients:
    def test_every_element_of_small_tensors(self) -> None:
        report = check_gradients(parse(TANH))
        assert report.passed
        x, w = report.tensors
        assert (x.name, x.shape, x.coordinates) == ("x", (2, 3), 6)
        assert (w.name, w.shape, w.coordinates) == ("w", (3,), 3)
        assert max(x.max_rel_error, w.max_rel_error) < 1e-10
        assert {note.evaluator for note in report.evaluators[:2]} == {"onnxruntime-float64"}

    def test_directions_of_large_tensors(self) -> None:
        report = check_gradients(parse(TANH), dims={"N": 50}, random_directions=5)
        x = report.tensors[0]
        assert report.passed
        assert (x.coordinates, x.directions) == (0, 6)

    def test_initializers(self) -> None:
        graph = "g (float[N,2] x) => (float[N,2] y) <float[2] W = {0.5, -2.0}> { h = Mul(x, W) y = Tanh(h) }"
        report = check_gradients(parse(graph), wrt=["W", "x"])
        assert report.passed
        assert [tensor.name for tensor in report.tensors] == ["W", "x"]

    def test_intermediate_tensors_each_with_what_is_upstream_held(self) -> None:
        """y = h x with h = x x: dy/dx = 3 x x, but dy/dh = x."""
        graph = "g (float[2] x) => (float[2] y) { h = Mul(x, x) y = Mul(h, x) }"
        assert check_gradients(parse(graph), wrt=["x", "h"]).passed

    def test_intermediate_tensors_in_of(self) -> None:
        graph = "g (float[2] x) => (float[2] y) { h = Tanh(x) y = Mul(h, x) }"
        report = check_gradients(parse(graph), of=["h", "y"])
        assert report.passed
        assert report.of == ("h", "y")

    def test_a_tensor_that_is_both_wrt_and_of(self) -> None:
        graph = "g (float[2] x) => (float[2] y) { h = Tanh(x) y = Mul(h, h) }"
        assert check_gradients(parse(graph), wrt="h", of=["h", "y"]).passed

    def test_stop_holds_a_tensor_in_both(self) -> None:
        graph = "g (float[2] x) => (float[2] y) { h = Tanh(x) y = Mul(h, x) }"
        assert check_gradients(parse(graph), stop="h").passed

    def test_integer_inputs_have_a_range(self) -> None:
        graph = "g (float[4,2] t, int64[K] ids) => (float[K,2] y) { r = Gather(t, ids) y = Mul(r, r) }"
        report = check_gradients(parse(graph), integer_ranges={"ids": (0, 4)}, dims={"K": 9})
        assert report.passed
        assert report.inputs == {"t": "float32[4, 2]", "ids": "int64[9]"}

    def test_several_outputs_of_several_types(self) -> None:
        graph = (
            "g (float[3] x) => (float[3] y, int64[1] s, double[3] z) "
            "{ y = Tanh(x) s = Shape(x) d = Cast<to=11>(x) z = Mul(d, d) }"
        )
        report = check_gradients(parse(graph))
        assert report.passed
        assert report.of == ("y", "z")

    def test_a_gradient_of_zeros(self) -> None:
        graph = "g (float[2] x, float[2] u) => (float[2] y) { y = Tanh(x) v = Tanh(u) }"
        with pytest.warns(NoPathWarning):
            report = check_gradients(parse(graph), wrt=["u", "x"])
        assert report.passed

    def test_an_empty_tensor(self) -> None:
        report = check_gradients(parse(TANH), inputs={"x": np.zeros((0, 3), np.float32)})
        assert report.passed
        assert report.tensors[0].verdict == "nothing to compare"

    def test_float16_is_checked_in_float64_and_as_it_ships(self) -> None:
        graph = "g (float16[N,3] x) => (float16[N,3] y) { h = Tanh(x) y = Mul(h, x) }"
        report = check_gradients(parse(graph))
        (x,) = report.tensors
        assert report.passed
        assert x.max_rel_error < 1e-10
        assert x.own_precision is not None
        assert x.own_precision.dtype == "float16"
        assert 1e-6 < x.own_precision.max_rel_error < 1e-2

    def test_float64_models(self) -> None:
        graph = "g (double[N,3] x) => (double[N,3] y) { y = Tanh(x) }"
        report = check_gradients(parse(graph))
        assert report.passed
        assert report.tensors[0].own_precision is not None
        assert report.tensors[0].own_precision.dtype == "float64"

    def test_an_input_given_is_used(self) -> None:
        x = np.array([[0.25, 0.5, 1.0]], np.float32)
        report = check_gradients(parse(TANH), inputs={"x": x})
        assert report.inputs["x"] == "float32[1, 3]"

    def test_the_same_seed_gives_the_same_report(self) -> None:
        first, second = (check_gradients(parse(TANH), seed=3) for _ in range(2))
        assert first.tensors == second.tensors
        assert check_gradients(parse(TANH), seed=4).tensors != first.tensors


class TestWrongGradients:
    @pytest.mark.parametrize("factor", [1.001, 1.00001, -1.0, 0.0])
    def test_a_wrong_factor(self, rule: Rule, factor: float) -> None:
        rule("Tanh")(lambda op, node, dy: tanh(op, node, dy) * factor)
        report = check_gradients(parse(TANH))
        x, w = report.tensors
        assert not report.passed
        assert not x.passed
        assert w.passed
        assert x.worst is not None
        assert x.worst.gradient == pytest.approx(factor * x.worst.difference, rel=1e-5)

    def test_one_wrong_element_among_many(self, rule: Rule) -> None:
        def wrong(op: Any, node: Any, dy: Any) -> Any:
            dx = tanh(op, node, dy)
            mask = np.zeros((40, 40), np.float64)
            mask[17, 31] = 0.01
            return dx + op.Cast(mask, to=int(dx.dtype))

        rule("Tanh")(wrong)
        report = check_gradients(parse("g (float[40,40] x) => (float[40,40] y) { y = Tanh(x) }"))
        assert not report.passed

    def test_not_a_number(self, rule: Rule) -> None:
        rule("Tanh")(lambda op, node, dy: op.Sqrt(-op.Abs(dy)))
        report = check_gradients(parse(TANH))
        assert not report.passed
        assert report.tensors[0].failures

    def test_a_wrong_gradient_at_a_smooth_point_is_never_a_kink(self, rule: Rule) -> None:
        """A sharp bend, where the gradient is that of one side."""
        rule("Tanh")(lambda op, node, dy: op.Where(op.Less(node.inputs[0], 0.0), dy * 0.0, dy * 2.0))
        graph = "g (float[4] x) => (float[4] y) { s = Mul(x, k) y = Tanh(s) }".replace(
            "=> (float[4] y)", "=> (float[4] y) <float k = {1000}>"
        )
        x = np.array([1e-4, -1e-4, 2e-4, 0.0], np.float32)
        report = check_gradients(parse(graph), inputs={"x": x})
        assert not report.passed
        assert not report.kinks
        assert {probe.point for probe in report.tensors[0].failures} == {Point.SMOOTH}

    def test_a_gradient_that_is_wrong_only_in_its_own_type(self, rule: Rule) -> None:
        def wrong_in_float32(op: Any, node: Any, dy: Any) -> Any:
            dx = tanh(op, node, dy)
            return dx * 1.1 if node.inputs[0].dtype == onnx.TensorProto.FLOAT else dx

        rule("Tanh")(wrong_in_float32)
        report = check_gradients(parse(TANH), wrt="x")
        (x,) = report.tensors
        assert not report.passed
        assert not x.failures
        assert x.own_precision is not None
        assert not x.own_precision.passed

    def test_a_gradient_of_the_wrong_shape(self, rule: Rule) -> None:
        rule("Tanh")(lambda op, node, dy: op.ReduceSum(dy, [0], keepdims=1))
        model = parse("g (float[N,3] x) => (float[N,3] y) { y = Tanh(x) }")
        report = check_gradients(model)
        assert not report.passed
        assert "the gradient has the shape [1, 3], the tensor [2, 3]" in report.tensors[0].problem

    def test_a_gradient_graph_that_does_not_run(self, rule: Rule) -> None:
        """ONNX Runtime has no Det for float64, and Tanh it has."""
        rule("Tanh")(lambda op, node, dy: dy * op.Det(op.Reshape(dy, [2, 2])))
        report = check_gradients(parse("g (double[4] x) => (double[4] y) { y = Tanh(x) }"))
        assert not report.passed
        assert "runs the model, but not its gradient graph" in report.problem


class TestPointsWithoutDerivative:
    @pytest.fixture(autouse=True)
    def relu(self, rule: Rule) -> None:
        rule("Relu")(lambda op, node, dy: op.Where(op.Greater(node.inputs[0], 0.0), dy, dy * 0.0))

    def test_a_kink_is_reported_and_no_error(self) -> None:
        report = check_gradients(
            parse("g (float[3] x) => (float[3] y) { y = Relu(x) }"),
            inputs={"x": np.array([0.0, 1.0, -1.0], np.float32)},
        )
        assert report.passed
        ((name, kink),) = report.kinks
        assert (name, kink.where, kink.point) == ("x", "[0]", Point.KINK)
        assert sorted(map(abs, (kink.left, kink.right)))[0] == pytest.approx(0.0, abs=1e-9)

    def test_a_wrong_gradient_beside_a_kink_is_found(self, rule: Rule) -> None:
        rule("Relu")(lambda op, node, dy: dy)
        report = check_gradients(
            parse("g (float[3] x) => (float[3] y) { y = Relu(x) }"),
            inputs={"x": np.array([0.0, 1.0, -1.0], np.float32)},
        )
        assert [probe.where for probe in report.tensors[0].failures][-1] == "[2]"
        assert not report.passed

    def test_a_discontinuity(self, rule: Rule) -> None:
        rule("Floor")(lambda op, node, dy: dy * 0.0)
        graph = "g (float[2] x) => (float[2] y) { f = Floor(x) y = Add(f, x) }"
        report = check_gradients(parse(graph), inputs={"x": np.array([1.0, 1.5], np.float32)})
        assert report.passed
        assert {probe.point for _, probe in report.kinks} == {Point.JUMP}

    def test_the_edge_of_the_domain(self, rule: Rule) -> None:
        rule("Sqrt")(lambda op, node, dy: dy * 0.5 / node.outputs[0])
        graph = "g (float[2] x) => (float[2] y) { y = Sqrt(x) }"
        report = check_gradients(parse(graph), inputs={"x": np.array([0.0, 4.0], np.float32)})
        assert {probe.point for _, probe in report.kinks} == {Point.EDGE}

    def test_many_kinks_close_by(self) -> None:
        """A wide layer of rectifiers has a kink in every large step."""
        generator = np.random.default_rng(0)
        model = parse("g (float[1,8] x) => (float[1,2000] y) { p = Mul(x, x) h = MatMul(p, W) y = Relu(h) }")
        weight = generator.standard_normal((8, 2000)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
        report = check_gradients(model)
        assert report.passed
        assert not report.kinks


class TestEvaluators:
    CONV = "g (float[1,2,6] x, float[2,2,3] w) => (float[1,2,4] y) { c = Conv(x, w) y = Tanh(c) }"

    def test_the_reference_evaluator_where_kernels_are_missing(self) -> None:
        report = check_gradients(parse(self.CONV))
        assert report.passed
        assert evaluator_of(report, "model") == "reference-float64"
        assert evaluator_of(report, "gradient graph") == "reference-float64"
        assert all("no kernel for Conv" in note.reason for note in report.evaluators[:2])

    def test_float32_with_matched_steps(self) -> None:
        report = check_gradients(parse(self.CONV), evaluator="onnxruntime-float32")
        assert report.passed
        assert 1e-8 < report.tensors[0].max_rel_error < 1e-2

    def test_float32_finds_wrong_gradients_too(self, rule: Rule) -> None:
        rule("Tanh")(lambda op, node, dy: tanh(op, node, dy) * 1.1)
        assert not check_gradients(parse(self.CONV), evaluator="onnxruntime-float32").passed

    def test_a_time_limit(self) -> None:
        report = check_gradients(parse(self.CONV), time_limit=0.0)
        assert report.passed
        assert evaluator_of(report, "model") == "onnxruntime-float32"
        assert evaluator_of(report, "gradient graph") == "reference-float64"

    def test_few_steps_where_evaluation_takes_long(self, monkeypatch: pytest.MonkeyPatch, rule: Rule) -> None:
        monkeypatch.setattr(comparison, "BRIEF_FROM", 0.0)
        report = check_gradients(parse(self.CONV))
        note = next(note for note in report.evaluators if note.role == "model")
        assert report.passed
        assert "at few steps, as each evaluation takes" in note.caveat
        assert 3 <= len(report.tensors[0].curve) <= 12
        rule("Tanh")(lambda op, node, dy: tanh(op, node, dy) * 1.00001)
        assert not check_gradients(parse(self.CONV)).passed

    def test_batch_normalization_of_old_opsets_in_float64(self) -> None:
        """The reference evaluator would normalize with the statistics of the batch."""
        model = parse(
            "g (float[2,2,3] x, float[2] s, float[2] b) => (float[2,2,3] y) "
            "<float[2,2,1] k = {1, 2, 3, 4}, float[2] m = {1, 2}, float[2] v = {3, 4}> "
            "{ c = Conv(x, k) y = BatchNormalization(c, s, b, m, v) }",
            opset=9,
        )
        report = check_gradients(model)
        assert report.passed
        assert evaluator_of(report, "model") == "reference-float64"

    def test_tolerances_can_be_given(self, rule: Rule) -> None:
        rule("Tanh")(lambda op, node, dy: tanh(op, node, dy) * 1.001)
        assert not check_gradients(parse(TANH), wrt="x").passed
        assert check_gradients(parse(TANH), wrt="x", rtol=1e-2).passed
        assert check_gradients(parse(TANH), wrt="x", atol=1.0).passed

    def test_a_missing_provider(self) -> None:
        with pytest.raises(RuntimeUnavailableError, match="CUDAExecutionProvider"):
            check_gradients(parse(TANH), providers=["CUDAExecutionProvider"])

    def test_an_unknown_evaluator(self) -> None:
        with pytest.raises(InputError, match="there are: 'onnxruntime-float64', "):
            check_gradients(parse(TANH), evaluator="exact")  # type: ignore[arg-type]

    def test_progress_is_told(self) -> None:
        calls: list[tuple[int, int, str]] = []
        check_gradients(parse(TANH), progress=lambda *call: calls.append(call))
        assert calls[0] == (1, 11, "x")
        assert calls[-1] == (11, 11, "w")


class TestRefusals:
    def test_a_point_outside_the_domain(self, rule: Rule) -> None:
        rule("Log")(lambda op, node, dy: dy / node.inputs[0])
        model = parse("g (float[2] x) => (float[2] y) { y = Log(x) }")
        with pytest.raises(InputError, match=r"'y' is not finite at this point \(1 of 2 elements\)"):
            check_gradients(model, inputs={"x": np.array([-1.0, 1.0], np.float32)})

    def test_a_model_that_draws_random_numbers(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { r = RandomNormalLike(x) t = Tanh(x) y = Mul(r, t) }")
        with pytest.raises(ModelError, match="'y' differs between two evaluations"):
            check_gradients(model)

    def test_a_fixed_seed_makes_a_function_of_random_numbers(self) -> None:
        """ONNX Runtime draws anew all the same, so that the gradient as it ships is not compared."""
        model = parse(
            "g (float[9] x) => (float[9] y) <float r = {0.5}, bool training = {1}> "
            "{ d = Dropout<seed=3>(x, r, training) y = Tanh(d) }"
        )
        report = check_gradients(model)
        assert report.passed
        assert evaluator_of(report, "model") == "reference-float64"
        assert report.tensors[0].own_precision is None
        assert "draws other random numbers" in report.evaluators[-1].reason

    def test_unknown_names_and_integers(self) -> None:
        with pytest.raises(UnknownNameError, match="'z'"):
            check_gradients(parse(TANH), wrt="z")
        with pytest.raises(NotDifferentiableError, match="'i'"):
            check_gradients(parse("g (int64[2] i) => (float[2] y) { y = Cast<to=1>(i) }"), wrt="i")

    def test_an_unknown_rank_needs_an_input(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { y = Tanh(x) }")
        model.graph.input[0].type.tensor_type.ClearField("shape")
        with pytest.raises(InputError, match="give one with inputs="):
            check_gradients(model)
        assert check_gradients(model, inputs={"x": np.ones(2, np.float32)}).passed


class TestKindsOfModel:
    def test_a_file_with_external_weights(self, tmp_path: Path) -> None:
        model = parse("g (float[N,64] x) => (float[N,64] y) { h = Mul(x, W) y = Tanh(h) }")
        weight = np.linspace(-1, 1, 64, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
        path = tmp_path / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="W.bin", size_threshold=0)
        report = check_gradients(path, wrt=["x", "W"])
        assert report.passed
        assert report.model == "model.onnx"

    def test_an_ir_model_is_left_alone(self) -> None:
        model = ir.from_proto(parse(TANH))
        before = ir.to_proto(model).SerializeToString()
        assert check_gradients(model).passed
        assert ir.to_proto(model).SerializeToString() == before

    def test_an_opset_that_nothing_runs_is_lifted(self) -> None:
        graph = "g (float[2,3] a, float[2] b) => (float[2,3] y) { y = Add<axis=0, broadcast=1>(a, b) }"
        report = check_gradients(parse(graph, opset=6))
        assert report.passed
        assert any("lifted to opset 18" in note.reason for note in report.evaluators)

    def test_an_old_file_that_is_lifted_is_checked_in_float64(self) -> None:
        """Files of IR version 3 list their initializers among the inputs."""
        graph = "g (float[2,3] a, float[2] b) => (float[2,3] y) { y = Add<axis=0, broadcast=1>(a, b) }"
        model = parse(graph, opset=6, ir_version=3)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "b"))
        report = check_gradients(model, wrt=["a", "b"])
        assert report.passed
        assert [note.precision for note in report.evaluators[:2]] == ["float64", "float64"]

    def test_initializers_among_the_inputs(self) -> None:
        model = parse("g (float[2] x, float[2] w) => (float[2] y) { h = Mul(x, w) y = Tanh(h) }")
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
        report = check_gradients(model, wrt=["x", "w"])
        assert report.passed
        assert list(report.inputs) == ["x"]
        given = check_gradients(model, wrt=["x", "w"], inputs={"w": np.full(2, 0.5, np.float32)})
        assert given.passed
        assert given.tensors[0].worst != report.tensors[0].worst

    def test_local_functions(self) -> None:
        function = '<domain: "custom", opset_import: ["" : 18]> square (a) => (b) { b = Mul(a, a) }'
        model = parse("g (float[2] x) => (float[2] y) { y = custom.square(x) }", extra=function)
        assert check_gradients(model).passed

    def test_bfloat16(self) -> None:
        graph = "g (bfloat16[3] x) => (bfloat16[3] y) { f = Cast<to=1>(x) s = Tanh(f) y = Cast<to=16>(s) }"
        report = check_gradients(parse(graph))
        assert report.passed
        assert report.tensors[0].own_precision is not None
        assert report.tensors[0].own_precision.dtype == "bfloat16"

    def test_a_function_body_in_float32_shows_in_a_float64_model(self, rule: Rule) -> None:
        """The gradient is right, and in float64 it has only seven digits."""

        def in_float32(op: Any, node: Any, dy: Any) -> Any:
            y = op.Cast(op.Cast(node.outputs[0], to=1), to=int(dy.dtype))
            return dy * (1.0 - y * y)

        rule("Tanh")(in_float32)
        report = check_gradients(parse("g (double[5] x) => (double[5] y) { y = Tanh(x) }"))
        (x,) = report.tensors
        assert not x.failures
        assert x.own_precision is not None
        assert not x.own_precision.passed
