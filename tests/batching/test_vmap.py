"""The transform `vmap`: where the new axis is, names, sizes, errors, compositions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad import GradientFunction
from tests.batching.examples import batch_of, check, one_by_one, scans
from tests.graphs import input_names, operators, output_names, parse, run
from tests.oracle import given_names

LAYER = parse("""
    g (float[n,3] x, float[2] t) => (float[n,2] y, float[2] u)
    <float[3,2] w = {0.5, -1.0, 0.25, 2.0, -0.75, 1.5}, float[2] b = {0.1, -0.2}> {
        p = MatMul(x, w)
        q = Add(p, b)
        y = Tanh(q)
        u = Exp(t)
    }
""")
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
T = np.array([0.5, -0.5], dtype=np.float32)


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
def test_where_the_new_axis_is_in_an_input(axis: int) -> None:
    batched = check(LAYER, {"x": batch_of(X, axis % 3), "t": T}, {"x": axis})
    assert input_names(batched) == ["x", "t"]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_where_the_new_axis_is_in_the_outputs(axis: int) -> None:
    inputs = {"x": batch_of(X), "t": batch_of(T)}
    outputs = run(onnx_grad.vmap(LAYER, out_axes=axis), inputs)
    expected = one_by_one(LAYER, inputs, {"x": 0, "t": 0})
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], np.moveaxis(array, 0, axis), rtol=1e-5)


def test_without_a_known_rank_axes_are_moved_at_run_time() -> None:
    model = parse("g (float x, float y) => (float z) { z = Sub(x, y) }")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    x, y = batch_of(X, 2), batch_of(X, 1)
    for axis in (0, 1, 2, -1, -2, -3):
        outputs = run(onnx_grad.vmap(model, {"x": 2, "y": -2}, axis), {"x": x, "y": y})
        expected = np.moveaxis(x, 2, 0) - np.moveaxis(y, 1, 0)
        np.testing.assert_allclose(outputs["z"], np.moveaxis(expected, 0, axis))


def test_each_output_has_an_axis_of_its_own() -> None:
    outputs = run(onnx_grad.vmap(LAYER, {"x": 0}, {"y": 2}), {"x": batch_of(X), "t": T})
    assert outputs["y"].shape == (4, 2, 3)
    assert outputs["u"].shape == (3, 2)


def test_an_output_that_depends_on_nothing_mapped_is_repeated() -> None:
    outputs = run(onnx_grad.vmap(LAYER, {"x": 0}), {"x": batch_of(X), "t": T})
    np.testing.assert_allclose(outputs["u"], np.broadcast_to(np.exp(T), (3, 2)), rtol=1e-6)


def test_or_given_out_once() -> None:
    outputs = run(onnx_grad.vmap(LAYER, {"x": 0}, {"u": None}), {"x": batch_of(X), "t": T})
    np.testing.assert_allclose(outputs["u"], np.exp(T), rtol=1e-6)
    with pytest.raises(onnx_grad.InputError, match="'y' depends on what is mapped"):
        onnx_grad.vmap(LAYER, {"x": 0}, {"y": None})


def test_the_new_dimension_has_a_symbol_of_its_own() -> None:
    once = onnx_grad.vmap(LAYER, {"x": 0})
    twice = onnx_grad.vmap(once, {"x": 1})
    assert _dims(once.graph.input[0]) == ["vmap", "n", 3]
    assert _dims(twice.graph.input[0]) == ["vmap", "vmap_1", "n", 3]
    assert _dims(twice.graph.output[0]) == ["vmap_1", "vmap", "n", 2]


def _dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_an_initializer_is_mapped_over_its_own_axis() -> None:
    model = parse("""
        g (float[3] x) => (float[2] y)
        <float[4,3,2] w = {0,1,2,3,4,5, 6,7,8,9,10,11, 12,13,14,15,16,17, 18,19,20,21,22,23}> {
            p = MatMul(x, w)
            y = Identity(p)
        }
    """)
    weights = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    batched = onnx_grad.vmap(model, {"w": 0})
    assert [tensor.name for tensor in batched.graph.initializer][:1] == ["w"]
    np.testing.assert_allclose(run(batched, {"x": X[0]})["y"], X[0] @ weights, rtol=1e-6)
    both = onnx_grad.vmap(model, {"w": -3, "x": 0})
    assert _dims(both.graph.input[0]) == [4, 3]
    expected = np.einsum("bi,bij->bj", X, weights)
    np.testing.assert_allclose(run(both, {"x": X})["y"], expected, rtol=1e-6)


def test_an_input_with_a_default_that_is_mapped_keeps_it() -> None:
    model = parse("""
        g (float[3,2] w, float[2] s) => (float[a,2] y) <float[3,2] w = {1, 2, 3, 4, 5, 6}> { y = Mul(s, w) }
    """)
    batched = onnx_grad.vmap(model, {"w": 0})
    assert input_names(batched) == ["w", "s"]
    weights = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    np.testing.assert_allclose(run(batched, {"s": T})["y"], weights * T)
    np.testing.assert_allclose(run(batched, {"s": T, "w": weights + 1})["y"], (weights + 1) * T)


def test_different_numbers_of_examples_fail_when_the_model_runs() -> None:
    model = parse("g (float[2] x, float[2] y) => (float[2] z) { z = Add(x, y) }")
    batched = onnx_grad.vmap(model)
    with pytest.raises(Exception, match="Reshape"):
        run(batched, {"x": np.ones((3, 2), np.float32), "y": np.ones((1, 2), np.float32)})


def test_no_example_gives_no_result() -> None:
    outputs = run(onnx_grad.vmap(LAYER), {"x": X[None][:0], "t": T[None][:0]})
    assert outputs["y"].shape == (0, 4, 2)


def test_a_fixed_number_of_examples() -> None:
    batched = onnx_grad.vmap(LAYER, axis_size=3)
    assert _dims(batched.graph.input[0]) == [3, "n", 3]
    assert _dims(batched.graph.output[0]) == [3, "n", 2]


def test_names_and_the_given_model_stay() -> None:
    before = LAYER.SerializeToString()
    batched = onnx_grad.vmap(LAYER)
    assert LAYER.SerializeToString() == before
    assert input_names(batched) == input_names(LAYER)
    assert output_names(batched) == output_names(LAYER)
    assert operators(batched)[-4:] == ["MatMul", "Add", "Tanh", "Exp"]
    assert {"p", "q"} < {name for node in batched.graph.node for name in node.output}
    onnx.checker.check_model(batched, full_check=True)


def test_an_ir_model_gives_an_ir_model() -> None:
    model = ir.from_proto(LAYER)
    batched = onnx_grad.vmap(model, {"x": 0})
    assert isinstance(batched, ir.Model)
    assert all(value.shape is not None for node in batched.graph for value in node.outputs)
    assert len(model.graph.inputs[0].shape or ()) == 2


def test_saved_weights_stay_external(tmp_path: Path) -> None:
    path = tmp_path / "layer.onnx"
    model = onnx.ModelProto.FromString(LAYER.SerializeToString())
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    onnx_grad.vmap(path, save_as=tmp_path / "batched.onnx")
    saved = onnx.load(tmp_path / "batched.onnx", load_external_data=False)
    assert {t.external_data[0].value for t in saved.graph.initializer if t.name == "w"} == {"w.data"}


@pytest.mark.parametrize(
    ("in_axes", "out_axes", "error", "message"),
    [
        ({"xx": 0}, 0, onnx_grad.UnknownNameError, "did you mean|Did you mean"),
        ({"x": 0}, {"z": 0}, onnx_grad.UnknownNameError, "out_axes"),
        ({}, 0, onnx_grad.InputError, "nothing is mapped"),
        ({"x": None}, 0, onnx_grad.InputError, "nothing is mapped"),
        ({"x": 3}, 0, onnx_grad.InputError, "'x' has 3 axes, and 3 is not one"),
        ({"x": -4}, 0, onnx_grad.InputError, "'x' has 3 axes"),
        ({"w": 2}, 0, onnx_grad.InputError, "'w' has 2 axes"),
        ({"x": 0}, 3, onnx_grad.InputError, "'y' has 3 axes"),
        ({"b": 0, "w": 0}, 0, onnx_grad.InputError, "2 by 'b', 3 by 'w'"),
    ],
)
def test_requests_that_make_no_sense(
    in_axes: dict[str, int | None], out_axes: int, error: type[Exception], message: str
) -> None:
    model = parse("""
        g (float[n,3] x) => (float[n,3] y)
        <float[3,3] w = {1,2,3,4,5,6,7,8,9}, float[2,3] b = {1,2,3,4,5,6}> {
            p = Mul(x, w)
            q = ReduceSum(b)
            y = Add(p, q)
        }
    """)
    with pytest.raises(error, match=message):
        onnx_grad.vmap(model, in_axes, out_axes)


def test_all_nodes_that_cannot_be_batched_are_named() -> None:
    model = parse("""
        g (float[4] x, int64[1] n) => (int64[1,k] i, float[m] r, float[m] u) {
            i = NonZero(x)
            r = Tile(x, n)
            u = Unique(x)
        }
    """)
    with pytest.raises(onnx_grad.UnsupportedOpError) as refused:
        onnx_grad.vmap(model)
    for operator in ("NonZero", "Tile", "Unique"):
        assert f"({operator})" in str(refused.value)


def test_an_operator_of_another_domain_runs_example_by_example() -> None:
    model = parse("g (float[2,4] x) => (float[2,4] y) { y = com.microsoft.QuickGelu(x) }")
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    model.graph.node[0].domain, model.graph.node[0].op_type = "com.microsoft", "QuickGelu"
    batched = check(model, {"x": batch_of(X.reshape(3, 4)[:2])}, {"x": 0})
    assert scans(batched) == ["com.microsoft.QuickGelu"]


def test_functions_are_expanded_where_they_are_batched() -> None:
    function = """
        <domain: "custom", opset_import: ["" : 18]> square (a) => (b) { b = Mul(a, a) }
    """
    model = parse(
        "g (float[2] x, float[2] t) => (float[2] y, float[2] z) "
        "{ y = custom.square(x) z = custom.square(t) }",
        extra=function,
    )
    batched = check(model, {"x": batch_of(T), "t": T}, {"x": 0})
    assert "Mul" in operators(batched)
    assert "Scan" not in operators(batched)


def test_random_numbers_of_no_input_are_the_same_for_all_examples() -> None:
    model = parse("g (float[4] x) => (float[4] y) { r = RandomNormal <shape = [4]> () y = Add(x, r) }")
    y = run(onnx_grad.vmap(model), {"x": np.zeros((3, 4), np.float32)})["y"]
    assert (y == y[0]).all()
    model = parse("g (float[4] x) => (float[4] y) { y = RandomNormalLike(x) }")
    y = run(onnx_grad.vmap(model), {"x": np.zeros((3, 4), np.float32)})["y"]
    assert (y[0] != y[1]).any()


def test_dropout_by_the_ratio_of_each_example() -> None:
    model = parse("""
        g (float[4000] x, float p, bool t) => (float[4000] y, bool[4000] m) {
            y, m = Dropout <seed = 3> (x, p, t)
        }
    """)
    inputs = {"x": np.ones(4000, np.float32), "p": np.array([0.0, 0.25, 0.75], np.float32)}
    outputs = run(onnx_grad.vmap(model, {"p": 0}), inputs | {"t": np.array(True)})
    np.testing.assert_allclose(outputs["m"].mean(axis=1), [1.0, 0.75, 0.25], atol=0.04)
    np.testing.assert_allclose(outputs["y"], outputs["m"] / (1 - inputs["p"][:, None]), rtol=1e-6)
    outputs = run(onnx_grad.vmap(model, {"p": 0, "t": 0}), inputs | {"t": np.array([True, False, True])})
    assert (outputs["y"][1] == 1).all()
    assert outputs["m"][1].all()


def test_sequences_over_tensors() -> None:
    model = parse("""
        g (float[4,3] x) => (float[4,3] y) {
            s = SplitToSequence <axis = 0> (x)
            i = Constant <value = int64 {2}> ()
            r = SequenceAt(s, i)
            y = Add(x, r)
        }
    """)
    batched = check(model, {"x": batch_of(X)}, {"x": 0})
    assert "SequenceAt" not in operators(batched)


def test_vmap_of_vmap() -> None:
    inputs = {"x": np.stack([batch_of(X), batch_of(X) * 2]), "t": T}
    outputs = run(onnx_grad.vmap(onnx_grad.vmap(LAYER, {"x": 0}), {"x": 0}), inputs)
    expected = [one_by_one(LAYER, {"x": x, "t": T}, {"x": 0})["y"] for x in inputs["x"]]
    np.testing.assert_allclose(outputs["y"], np.stack(expected), rtol=1e-5)


def test_gradient_of_vmap_is_the_sum_over_the_examples() -> None:
    f = GradientFunction(onnx_grad.vmap(LAYER, {"x": 0}), ["x", "w"], "y")
    one = GradientFunction(LAYER, ["x", "w"], "y")
    x = batch_of(X)
    dy = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    actual = f(x=x, t=T, cotangents={"y": dy}).gradients
    parts = [one(x=a, t=T, cotangents={"y": d}).gradients for a, d in zip(x, dy, strict=True)]
    np.testing.assert_allclose(actual["x"], np.stack([p["x"] for p in parts]), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(actual["w"], sum(p["w"] for p in parts), rtol=1e-4, atol=1e-6)


def test_vmap_of_gradients_gives_those_of_each_example() -> None:
    gradient = onnx_grad.vjp(LAYER, "parameters", "y")
    cotangents, _ = given_names(gradient)
    batched = onnx_grad.vmap(gradient, {"x": 0, cotangents["y"]: 0})
    f = GradientFunction.from_gradient_model(batched)
    one = GradientFunction(LAYER, "parameters", "y")
    x = batch_of(X)
    dy = np.random.default_rng(0).standard_normal((3, 4, 2)).astype(np.float32)
    actual = f(x=x, t=T, cotangents={"y": dy}).gradients
    for i in range(3):
        expected = one(x=x[i], t=T, cotangents={"y": dy[i]}).gradients
        for name, array in expected.items():
            np.testing.assert_allclose(actual[name][i], array, rtol=1e-4, atol=1e-6)


def test_second_derivatives_of_a_batch() -> None:
    model = parse("g (float[3] x) => (float y) { s = Sin(x) p = Mul(s, x) y = ReduceSum <keepdims = 0> (p) }")
    hessian_diagonal = onnx_grad.grad(model)
    gradient = onnx_grad.vmap(hessian_diagonal, {"x": 0})
    f = GradientFunction(gradient, "x", "x_grad")
    x = X
    expected = 2 * np.cos(x) - x * np.sin(x)
    actual = f(x=x, cotangents={"x_grad": np.ones_like(x)}).gradients["x"]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
