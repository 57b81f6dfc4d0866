"""Jacobians and Hessians: names, shapes, modes, structure, several tensors, unknown sizes."""

from __future__ import annotations

import warnings
from pathlib import Path

import hypothesis
import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad import GradientFunction
from tests.graphs import input_names, operators, output_names, parse, run
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, noted_names, with_shapes
from tests.test_random_programs import programs

MODES = ("reverse", "forward", "auto")
TWO = """
    two (float[3] x, float[2,3] w) => (float[2] y, float[2,3] z) {
        s = Sin (x)
        y = MatMul (w, s)
        z = Mul (w, s)
    }
"""
X = np.float32([0.3, -0.7, 1.1])
W = np.float32([[1, 2, 3], [-1, 0.5, 2]])


def expected_of_two() -> dict[tuple[str, str], np.ndarray]:
    dz_dw = np.einsum("ia,jb,j->ijab", np.eye(2), np.eye(3), np.sin(X))
    return {
        ("y", "x"): W * np.cos(X),
        ("y", "w"): np.einsum("ia,b->iab", np.eye(2), np.sin(X)),
        ("z", "x"): np.einsum("ij,jb->ijb", W * np.cos(X), np.eye(3)),
        ("z", "w"): dz_dw,
    }


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_several_inputs_and_outputs(mode: str, knowledge: str) -> None:
    model = onnx_grad.jacobian(with_shapes(parse(TWO), knowledge), mode=mode)
    assert input_names(model) == ["x", "w"]
    names = [f"{y}_jacobian_{x}" for y, x in expected_of_two()]
    assert output_names(model) == ["y", "z", *names]
    values = run(model, {"x": X, "w": W})
    for (y, x), expected in expected_of_two().items():
        np.testing.assert_allclose(values[f"{y}_jacobian_{x}"], expected, rtol=1e-5, atol=1e-6)


def test_declared_shape_is_that_of_y_then_of_x() -> None:
    model = onnx_grad.jacobian(
        parse("g (float[n, 3] x) => (float[n, 2] y) <float[3, 2] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }")
    )
    onnx.checker.check_model(model, full_check=True)
    (_, declared) = model.graph.output
    dims = [d.dim_param or d.dim_value for d in declared.type.tensor_type.shape.dim]
    assert dims == ["n", 2, "n", 3]
    jacobian = run(model, {"x": np.zeros((2, 3), np.float32)})[declared.name]
    weights = np.float32([[1, 3, 5], [2, 4, 6]])
    np.testing.assert_array_equal(jacobian, np.einsum("nm,ij->nimj", np.eye(2), weights))


@pytest.mark.parametrize("size", [0, 1, 3])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_one_model_for_every_size(mode: str, size: int) -> None:
    graph = "g (float[n] x) => (float[n] y) <int64 zero = {0}> { s = CumSum(x, zero)  y = Mul(s, s) }"
    model = onnx_grad.jacobian(parse(graph), mode=mode)
    x = np.arange(1, size + 1, dtype=np.float32)
    jacobian = run(model, {"x": x})["y_jacobian_x"]
    expected = 2 * np.cumsum(x)[:, None] * np.tri(size)
    np.testing.assert_allclose(jacobian, expected.reshape(size, size), rtol=1e-6)


def test_an_elementwise_chain_has_a_diagonal_jacobian() -> None:
    """From one gradient: no batch of them."""
    chain = (
        "g (float[n, 2] x, float[n, 2] k) => (float[n, 2] y) { t = Tanh(x)  s = Mul(t, k)  y = Add(s, x) }"
    )
    model = onnx_grad.jacobian(parse(chain), wrt="x")
    products = [node for node in model.graph.node if node.op_type in ("Mul", "Tanh")]
    declared = {v.name: v.type.tensor_type.shape.dim for v in (*model.graph.value_info, *model.graph.output)}
    assert max(len(declared[node.output[0]]) for node in products) == 2
    x, k = (np.random.default_rng(0).standard_normal((2, 2, 2))).astype(np.float32)
    expected = np.diag((1 + k * (1 - np.tanh(x) ** 2)).ravel()).reshape(2, 2, 2, 2)
    jacobian = run(model, {"x": x, "k": k})["y_jacobian_x"]
    np.testing.assert_allclose(jacobian, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "body",
    ["y = Softmax(x)", "y = Mul(x, r)  r = Transpose(x)", "y = Add(x, s)  s = ReduceSum<keepdims=1>(x)"],
)
def test_what_mixes_elements_has_none(body: str) -> None:
    *last, first = body.split("  ")
    nodes = "  ".join([first, *last])
    x = np.random.default_rng(1).standard_normal((2, 2)).astype(np.float32)
    model = parse(f"g (float[2, 2] x) => (float[2, 2] y) {{ {nodes} }}")
    jacobians = [run(onnx_grad.jacobian(model, mode=m), {"x": x})["y_jacobian_x"] for m in MODES]
    assert np.count_nonzero(jacobians[0].reshape(4, 4)) > 4
    np.testing.assert_allclose(jacobians[0], jacobians[1], rtol=1e-5, atol=1e-7)


def test_a_scalar_needs_one_gradient() -> None:
    model = onnx_grad.jacobian(
        parse("g (float[4] x) => (float s) { q = Mul(x, x)  s = ReduceSum<keepdims=0>(q) }")
    )
    assert "Equal" not in operators(model)
    np.testing.assert_array_equal(run(model, {"x": [1, 2, 3, 4]})["s_jacobian_x"], [2, 4, 6, 8])


def test_auto_takes_what_is_smaller() -> None:
    wide = "g (float[2] x, float[2, 50] w) => (float[50] y) { t = Tanh(x)  y = MatMul(t, w) }"
    forward = onnx_grad.jacobian(parse(wide), wrt="x")
    assert operators(forward) == operators(onnx_grad.jacobian(parse(wide), wrt="x", mode="forward"))
    backward = onnx_grad.jacobian(parse(wide), wrt=["x", "w"])
    assert operators(backward) == operators(onnx_grad.jacobian(parse(wide), wrt=["x", "w"], mode="reverse"))


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_without_a_path_it_is_zeros(mode: str) -> None:
    model = parse("g (float[2] x, float[3] z) => (float[2] y) { y = Mul(x, x) }")
    with pytest.warns(onnx_grad.NoPathWarning, match="from 'z' to 'y'"):
        transformed = onnx_grad.jacobian(model, mode=mode)
    values = run(transformed, {"x": [1, 2], "z": [0, 0, 0]})
    np.testing.assert_array_equal(values["y_jacobian_z"], np.zeros((2, 3)))
    np.testing.assert_array_equal(values["y_jacobian_x"], [[2, 0], [0, 4]])


def test_a_mode_that_is_not_there() -> None:
    with pytest.raises(
        onnx_grad.InputError, match="no mode 'sideways'; there is: 'auto', 'reverse', 'forward'"
    ):
        onnx_grad.jacobian(parse(TWO), mode="sideways")  # type: ignore[call-overload]


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_through_control_flow(mode: str) -> None:
    model = parse(
        """
        powers (int64 n, float[2] h, float[2,2] w) => (float[2] last, float[T,2] ys) {
            going = Constant <value = bool {1}> ()
            last, ys = Loop <body = step (int64 i, bool goes, float[2] before)
                             => (bool goes_on, float[2] after, float[2] y) {
                goes_on = Identity (goes)
                moved = MatMul (before, w)
                after = Sin (moved)
                y = Mul (after, before)
            }> (n, going, h)
        }"""
    )
    inputs = {"n": np.array(3), "h": np.float32([0.5, -0.3]), "w": np.float32([[0.7, 0.2], [-0.4, 0.9]])}
    jacobian = onnx_grad.jacobian(model, mode=mode)
    values = run(jacobian, inputs)
    for x, rank in (("h", 1), ("w", 2)):
        direction = np.cos(np.arange(inputs[x].size)).reshape(inputs[x].shape).astype(np.float32)
        pushed = GradientFunction(model, x, transform="jvp")(inputs, tangents={x: direction})
        for y, tangent in pushed.tangents.items():
            block = values[f"{y}_jacobian_{x}"]
            assert block.shape == (*values[y].shape, *inputs[x].shape)
            np.testing.assert_allclose(np.tensordot(block, direction, rank), tangent, rtol=1e-4, atol=1e-6)


@hypothesis.given(case=programs())
@hypothesis.settings(max_examples=8, deadline=None)
def test_rows_are_columns_through_random_control_flow(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]],
) -> None:
    model, inputs = case
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", onnx_grad.NoPathWarning)
        rows, columns = (onnx_grad.jacobian(model, mode=mode) for mode in ("reverse", "forward"))
    expected, actual = (evaluator(transformed)(inputs) for transformed in (rows, columns))
    assert list(actual) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, rtol=1e-9, atol=1e-12, err_msg=name)


def test_parameters(tmp_path: Path) -> None:
    graph = (
        "g (float[n, 2] x) => (float[n, 1] y) <float[2, 1] w = {2, -1}, float[1] b = {1}>"
        "{ p = MatMul(x, w)  y = Add(p, b) }"
    )
    onnx_grad.jacobian(parse(graph), wrt="parameters", save_as=tmp_path / "j.onnx")
    saved = onnx.load(tmp_path / "j.onnx")
    assert noted_names(saved, "jacobians") == {"y": {"w": "y_jacobian_w", "b": "y_jacobian_b"}}
    x = np.float32([[1, 2], [3, 4], [5, 6]])
    values = run(saved, {"x": x})
    np.testing.assert_array_equal(values["y_jacobian_w"], x.reshape(3, 1, 2, 1))
    np.testing.assert_array_equal(values["y_jacobian_b"], np.ones((3, 1, 1)))


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_hessian_of_several_outputs(knowledge: str) -> None:
    model = with_shapes(parse(TWO), knowledge)
    with pytest.warns(onnx_grad.NoPathWarning):  # linear in w
        transformed = onnx_grad.hessian(model)
    assert input_names(transformed) == ["x", "w"]
    assert len(transformed.graph.output) == 2 + 8
    values = run(transformed, {"x": X, "w": W})
    np.testing.assert_allclose(
        values["y_hessian_x_x"], np.einsum("ij,jk->ijk", -W * np.sin(X), np.eye(3)), rtol=1e-5, atol=1e-6
    )
    mixed = np.einsum("ia,jb->ijab", np.eye(2), np.diag(np.cos(X)))
    np.testing.assert_allclose(values["y_hessian_x_w"], mixed, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values["y_hessian_w_x"], mixed.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(values["z_hessian_w_w"], np.zeros((2, 3, 2, 3, 2, 3)))
