"""Calling gradient models."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnx_grad
from onnx_grad.errors import InputError, ModelError, RuntimeUnavailableError, UnknownNameError
from onnx_grad.runtime import GradientFunction, is_gradient_model
from tests.graphs import parse

PRODUCT = "g (float[N,3] a, float[3] b) => (float[N,3] y) { y = Mul(a, b) }"
SCALAR = "g (float[N] x, float[N] w) => (float s) { p = Mul(x, w) s = ReduceSum<keepdims=0>(p) }"

A = np.arange(6, dtype=np.float32).reshape(2, 3)
B = np.array([1, 2, 3], np.float32)
DY = np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def product() -> GradientFunction:
    return GradientFunction(parse(PRODUCT))


class TestCalling:
    def test_values_and_gradients_by_name(self, product: GradientFunction) -> None:
        result = product(a=A, b=B, cotangents={"y": DY})
        np.testing.assert_array_equal(result.values["y"], A * B)
        np.testing.assert_array_equal(result.gradients["a"], np.broadcast_to(B, (2, 3)))
        np.testing.assert_array_equal(result.gradients["b"], A.sum(axis=0))

    def test_inputs_as_a_mapping_by_keyword_or_both(self, product: GradientFunction) -> None:
        by_keyword = product(a=A, b=B, cotangents={"y": DY})
        for result in (
            product({"a": A, "b": B}, cotangents={"y": DY}),
            product({"a": A}, b=B, cotangents={"y": DY}),
            product({"a": A, "b": B, "y_grad": DY}),
        ):
            np.testing.assert_array_equal(result.gradients["b"], by_keyword.gradients["b"])

    def test_compiled_once_for_every_batch_size(self, product: GradientFunction) -> None:
        for batch in (1, 2, 7, 0):
            a = np.ones((batch, 3), np.float32)
            result = product(a=a, b=B, cotangents={"y": a})
            np.testing.assert_array_equal(result.gradients["b"], np.full(3, batch, np.float32))

    def test_lists_and_numbers_take_the_expected_type(self) -> None:
        function = GradientFunction(parse("g (float[2] x, float c) => (float[2] y) { y = Mul(x, c) }"))
        result = function(x=[1, 2], c=3.0, cotangents={"y": [1, 1]})
        assert result.gradients["c"] == np.float32(3)

    def test_the_result_cannot_be_changed(self, product: GradientFunction) -> None:
        result = product(a=A, b=B, cotangents={"y": DY})
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.values = {}  # type: ignore[misc]

    def test_names_are_properties(self, product: GradientFunction) -> None:
        assert product.input_names == ("a", "b")
        assert product.output_names == ("y",)
        assert product.cotangent_names == ("y",)
        assert product.gradient_names == ("a", "b")
        assert product.providers == ("CPUExecutionProvider",)
        assert "gradients: 'a', 'b'" in repr(product)

    def test_an_input_with_a_default_may_be_left_out(self) -> None:
        model = parse("g (float[3] x, float[3] w) => (float[3] y) { y = Mul(x, w) }")
        model.graph.initializer.append(onnx.numpy_helper.from_array(B, "w"))
        function = GradientFunction(model, wrt="x")
        default = function(x=B, cotangents={"y": B})
        np.testing.assert_array_equal(default.gradients["x"], B * B)
        overridden = function(x=B, w=2 * B, cotangents={"y": B})
        np.testing.assert_array_equal(overridden.gradients["x"], 2 * B * B)


class TestScalars:
    def test_a_missing_cotangent_is_one(self) -> None:
        result = GradientFunction(parse(SCALAR))(x=B, w=2 * B)
        np.testing.assert_array_equal(result.gradients["x"], 2 * B)

    def test_one_element_of_any_rank(self) -> None:
        function = GradientFunction(parse("g (float[1,1] x) => (float[1,1] y) { y = Mul(x, x) }"))
        assert function(x=[[3.0]]).gradients["x"] == np.float32(6)

    def test_a_symbol_that_turns_out_to_be_one(self) -> None:
        function = GradientFunction(parse("g (float[N] x) => (float[N] y) { y = Mul(x, x) }"))
        assert function(x=[3.0]).gradients["x"] == np.float32(6)
        with pytest.raises(InputError, match=r"'y' has the shape \[2\] here.*cotangents: 'y'"):
            function(x=[3.0, 4.0])

    def test_an_unknown_shape_is_not_guessed(self) -> None:
        model = parse("g (float[N] x) => (float y) { y = Mul(x, x) }")
        model.graph.input[0].type.tensor_type.ClearField("shape")
        model.graph.output[0].type.tensor_type.ClearField("shape")
        function = GradientFunction(model)
        with pytest.raises(InputError, match=r"'y' is declared as .* not known before running"):
            function(x=[3.0])
        assert function(x=[3.0], cotangents={"y": [1.0]}).gradients["x"] == np.float32(6)


class TestBadInput:
    @pytest.mark.parametrize(
        ("inputs", "message"),
        [
            ({"a": A}, r"missing inputs: 'b' \(float32\[3\]\)"),
            ({"a": A, "b": B}, "cotangent of 'y' is missing"),
            ({"a": A, "b": B, "c": B}, "there is no input 'c'"),
            ({"a": A.astype(np.float64), "b": B}, r"float64\[2, 3\] was given; convert"),
            ({"a": A[0], "b": B}, "of rank 2"),
            ({"a": A, "b": np.ones(4, np.float32)}, "dimension 0 must be 3"),
            ({"a": A, "b": B, "y_grad": DY[:1]}, "dimension 0 is 'N', which is 2 in input 'a'"),
            ({"a": "text", "b": B}, "input 'a' expects"),
        ],
    )
    def test_is_refused_before_it_runs(
        self, product: GradientFunction, inputs: dict[str, object], message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            product(inputs)

    def test_an_unknown_cotangent(self, product: GradientFunction) -> None:
        with pytest.raises(InputError, match="there is no cotangent 'z'; there are: 'y'"):
            product(a=A, b=B, cotangents={"z": DY})

    def test_a_cotangent_given_twice(self, product: GradientFunction) -> None:
        with pytest.raises(InputError, match="given twice"):
            product({"a": A, "b": B, "y_grad": DY}, cotangents={"y": DY})

    def test_what_only_the_runtime_can_see(self) -> None:
        function = GradientFunction(parse("g (float[N] x, float[M] w) => (float[K] y) { y = Mul(x, w) }"))
        with pytest.raises(InputError, match=r"cannot evaluate .*\(given: x: float32\[2\], w: float32\[3\]"):
            function(x=[1.0, 2.0], w=[1.0, 2.0, 3.0], cotangents={"y": [1.0, 2.0]})


class TestOrtValues:
    def test_stay_ort_values(self, product: GradientFunction) -> None:
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy
        result = product(a=on_device(A), b=on_device(B), cotangents={"y": on_device(DY)})
        gradient = result.gradients["b"]
        assert isinstance(gradient, onnxruntime.OrtValue)
        assert gradient.device_name() == "cpu"
        np.testing.assert_array_equal(gradient.numpy(), A.sum(axis=0))
        np.testing.assert_array_equal(result.values["y"].numpy(), A * B)

    def test_mix_with_arrays(self, product: GradientFunction) -> None:
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy
        result = product(a=on_device(A), b=B, cotangents={"y": DY})
        np.testing.assert_array_equal(result.gradients["b"].numpy(), A.sum(axis=0))

    def test_are_checked(self, product: GradientFunction) -> None:
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy
        with pytest.raises(InputError, match=r"float64\[2, 3\] was given"):
            product(a=on_device(A.astype(np.float64)), b=B, cotangents={"y": DY})

    def test_feed_the_next_call(self, product: GradientFunction) -> None:
        on_device = onnxruntime.OrtValue.ortvalue_from_numpy
        first = product(a=on_device(A), b=on_device(B), cotangents={"y": on_device(DY)})
        second = product(a=first.values["y"], b=first.gradients["b"], cotangents={"y": DY})
        np.testing.assert_array_equal(second.gradients["b"].numpy(), (A * B).sum(axis=0))


class TestKindsOfModel:
    def test_the_model_is_of_the_kind_given(self, tmp_path: Path) -> None:
        onnx.save(parse(PRODUCT), tmp_path / "m.onnx")
        assert isinstance(GradientFunction(tmp_path / "m.onnx").model, onnx.ModelProto)
        assert isinstance(GradientFunction(parse(PRODUCT)).model, onnx.ModelProto)
        assert isinstance(GradientFunction(ir.from_proto(parse(PRODUCT))).model, ir.Model)

    def test_a_saved_gradient_model_runs_as_it_is(self, tmp_path: Path) -> None:
        path = tmp_path / "gradient.onnx"
        onnx_grad.vjp(parse(PRODUCT), wrt="b", save_as=path)
        function = GradientFunction.from_gradient_model(path)
        assert function.gradient_names == ("b",)
        result = function(a=A, b=B, cotangents={"y": DY})
        np.testing.assert_array_equal(result.gradients["b"], A.sum(axis=0))

    def test_a_gradient_of_a_scalar_takes_no_cotangent(self) -> None:
        function = GradientFunction.from_gradient_model(onnx_grad.grad(parse(SCALAR)))
        assert function.cotangent_names == ()
        np.testing.assert_array_equal(function(x=B, w=2 * B).gradients["w"], B)

    def test_gradient_models_are_told_from_others(self) -> None:
        assert is_gradient_model(onnx_grad.vjp(parse(PRODUCT)))
        assert not is_gradient_model(parse(PRODUCT))
        with pytest.raises(ModelError, match="was not made by"):
            GradientFunction.from_gradient_model(parse(PRODUCT))

    def test_external_weights(self, tmp_path: Path) -> None:
        model = parse("g (float[4096] x) => (float[4096] y) { y = Mul(x, W) }")
        weight = np.arange(4096, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "W"))
        path = tmp_path / "m.onnx"
        onnx.save(model, path, save_as_external_data=True, location="W.bin", size_threshold=0)
        function = GradientFunction(path, wrt=["x", "W"])
        ones = np.ones(4096, np.float32)
        result = function(x=2 * ones, cotangents={"y": ones})
        np.testing.assert_array_equal(result.gradients["x"], weight)
        np.testing.assert_array_equal(result.gradients["W"], 2 * ones)

    def test_an_intermediate_tensor_takes_a_cotangent(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { h = Mul(x, x) y = Mul(h, h) }")
        function = GradientFunction(model, of="h")
        result = function(x=[1.0, 2.0], cotangents={"h": [1.0, 1.0]})
        np.testing.assert_array_equal(result.gradients["x"], np.array([2, 4], np.float32))

    def test_bfloat16_goes_through_arrays(self) -> None:
        model = parse(
            "g (bfloat16[2] x) => (bfloat16[2] y) { f = Cast<to=1>(x) s = Mul(f, f) y = Cast<to=16>(s) }"
        )
        function = GradientFunction(model)
        x = np.array([1.5, -2.0], ml_dtypes.bfloat16)
        result = function(x=x, cotangents={"y": np.ones(2, ml_dtypes.bfloat16)})
        assert result.gradients["x"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(result.gradients["x"], 2 * x)


class TestRequests:
    def test_an_unknown_name(self) -> None:
        with pytest.raises(UnknownNameError, match="no tensor named 'z'"):
            GradientFunction(parse(PRODUCT), wrt="z")

    def test_stop_reaches_the_transform(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { h = Mul(x, x) y = Mul(h, x) }")
        result = GradientFunction(model, stop="h")(x=[2.0, 3.0], cotangents={"y": [1.0, 1.0]})
        np.testing.assert_array_equal(result.gradients["x"], np.array([4, 9], np.float32))

    def test_a_missing_provider(self) -> None:
        with pytest.raises(RuntimeUnavailableError, match=r"onnx-grad\[gpu\]"):
            GradientFunction(parse(PRODUCT), providers=["CUDAExecutionProvider", "CPUExecutionProvider"])

    def test_session_options_pass_through(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 3
        function = GradientFunction(parse(PRODUCT), session_options=options)
        assert function.session.get_session_options().intra_op_num_threads == 3


class TestOtherTransforms:
    """What is given besides gradients; `tests.test_torch_func` looks at the numbers."""

    def test_tangents(self) -> None:
        function = GradientFunction(parse(PRODUCT), transform="jvp")
        assert function.input_names == ("a", "b")
        assert function.output_names == ("y",)
        assert function.tangent_names == ("a", "b")
        assert "tangents: 'a', 'b'" in repr(function)
        result = function(a=A, b=B, tangents={"a": DY, "b": 0 * B})
        np.testing.assert_array_equal(result.tangents["y"], DY * B)
        assert dict(result.gradients) == {}
        assert set(result.outputs) == {"y", "y_tangent"}

    def test_a_tangent_that_is_missing(self) -> None:
        function = GradientFunction(parse(PRODUCT), transform="jvp")
        with pytest.raises(InputError, match=r"the tangent of 'b' is missing.*give tangents=\{'b': …\}"):
            function(a=A, b=B, tangents={"a": DY})
        with pytest.raises(InputError, match="there is no tangent 'c'"):
            function(a=A, b=B, tangents={"c": DY})

    def test_jacobians_by_output_and_input(self) -> None:
        result = GradientFunction(parse(PRODUCT), "b", transform="jacobian")(a=A, b=B)
        np.testing.assert_array_equal(result.jacobians["y"]["b"], np.einsum("ij,jk->ijk", A, np.eye(3)))

    def test_hessians_by_output_and_inputs(self) -> None:
        with pytest.warns(onnx_grad.NoPathWarning):
            function = GradientFunction(parse(SCALAR), transform="hessian")
        result = function(x=B, w=B)
        np.testing.assert_array_equal(result.hessians["s"]["x"]["w"], np.eye(3))
        np.testing.assert_array_equal(result.hessians["s"]["x"]["x"], np.zeros((3, 3)))

    def test_a_batch_of_gradients(self) -> None:
        each = onnx_grad.vmap(onnx_grad.vjp(parse(SCALAR)), {"x": 0, "s_grad": 0})
        function = GradientFunction.from_gradient_model(each)
        result = function(x=A, w=B, cotangents={"s": np.ones(2, np.float32)})
        np.testing.assert_array_equal(result.gradients["w"], A)

    def test_a_transform_that_is_not_there(self) -> None:
        with pytest.raises(InputError, match="there is no transform 'curl'; there is: 'vjp'"):
            GradientFunction(parse(PRODUCT), transform="curl")  # type: ignore[arg-type]

    def test_gradient_models_are_known(self) -> None:
        assert is_gradient_model(onnx_grad.jvp(parse(PRODUCT)))
        assert not is_gradient_model(parse(PRODUCT))
