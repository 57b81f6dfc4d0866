"""Powers, roots, exponentials and logarithms, with their singular points."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import check, gradients, graph_model, single_node
from tests.rules.pointwise import TOLERANCES, slopes

POSITIVE = np.array([[0.2, 1.0, 2.5], [7.0, 0.04, 1.3]])


@pytest.mark.parametrize("op_type", ["Sqrt", "Reciprocal", "Exp", "Log"])
def test_against_differences(op_type: str) -> None:
    inputs = {"x": POSITIVE}
    check(single_node(op_type, inputs), inputs, step=1e-5, second_order=True, rtol=1e-5)


@pytest.mark.parametrize("op_type", ["Reciprocal", "Exp"])
def test_negative_operands(op_type: str) -> None:
    inputs = {"x": -POSITIVE}
    check(single_node(op_type, inputs), inputs, step=1e-5)


def test_error_function() -> None:
    x = np.array([-2.0, -0.3, 0.0, 0.5, 3.0])
    expected = 2 / math.sqrt(math.pi) * np.exp(-(x**2))
    for dtype in TOLERANCES:
        gradient = slopes("Erf", {"x": x.astype(dtype)})["x"]
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, expected, rtol=max(TOLERANCES[dtype], 1e-7))


def test_derivative_of_the_error_function_is_differentiable() -> None:
    """onnx's reference computes `Erf` in float32, so the gradient graph is checked, which has no `Erf`."""
    inputs = {"x": np.array([-2.0, -0.3, 0.0, 0.5]), "dy": np.array([1.0, -0.5, 2.0, 0.3])}
    model = onnx_grad.vjp(single_node("Erf", {"x": inputs["x"]}), "x")
    check(model, {"x": inputs["x"], "y0_grad": inputs["dy"]}, of=["x_grad"])


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_infinite_slopes_at_zero() -> None:
    zero = {"x": np.zeros(1)}
    np.testing.assert_array_equal(slopes("Sqrt", zero)["x"], np.inf)
    np.testing.assert_array_equal(slopes("Log", zero)["x"], np.inf)
    np.testing.assert_array_equal(slopes("Reciprocal", zero)["x"], -np.inf)


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, -1.0, -2.5, 0.3])
def test_constant_exponent(exponent: float) -> None:
    _check_constant_exponent(POSITIVE, np.array(exponent))


@pytest.mark.parametrize("exponent", [0, 1, 2, 3, 4, -1, -2])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.int32])
def test_whole_exponents_of_negative_bases(exponent: int, dtype: type) -> None:
    _check_constant_exponent(-POSITIVE, np.array(exponent, dtype))


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 1, 1), (4, 1, 1)], ids=str)
def test_constant_exponents_broadcast(shape: tuple[int, ...]) -> None:
    exponents = np.resize([2.0, 0.0, -1.5, 0.7], shape)
    _check_constant_exponent(POSITIVE, exponents)


def _check_constant_exponent(base: np.ndarray, exponent: np.ndarray) -> None:
    power = onnx.helper.make_node("Pow", ["x", "e"], ["y"])
    model = graph_model([power], {"x": base}, ["y"], initializers={"e": exponent})
    check(model, {"x": base}, step=1e-5, second_order=True, rtol=1e-5)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3,)), ((2, 3), ()), ((3,), (2, 1)), ((), ()), ((0, 3), (3,))], ids=str
)
def test_exponent_given_at_run_time(shapes: tuple[tuple[int, ...], ...]) -> None:
    base, exponent = shapes
    inputs = {"x": np.resize(POSITIVE, base), "e": np.resize([2.0, 0.5, -1.3], exponent)}
    check(single_node("Pow", inputs), inputs, step=1e-5, second_order=True, rtol=1e-5)


def test_whole_exponents_given_at_run_time() -> None:
    inputs = {"x": -POSITIVE, "e": np.array([3, 0, -2])}
    check(single_node("Pow", inputs), inputs, step=1e-5, second_order=True, rtol=1e-5)


def test_exponent_of_another_float_type() -> None:
    inputs = {"x": np.array([2.0, 3.0]), "e": np.array([3.0, 2.0], np.float32)}
    gradient = slopes("Pow", inputs)
    assert gradient["x"].dtype == np.float64
    assert gradient["e"].dtype == np.float32
    np.testing.assert_allclose(gradient["x"], [12, 6])
    np.testing.assert_allclose(gradient["e"], [8 * np.log(2), 9 * np.log(3)], rtol=1e-6)


BASES = np.array([0, 0, 0, 0, 0, -2, -2, 0])
EXPONENTS = np.array([0, 1, 2, 0.5, 1.5, 2, 3, -1])


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_at_base_zero_and_below() -> None:
    by_base, by_exponent = slopes("Pow", {"x": BASES.astype(float), "e": EXPONENTS}).values()
    np.testing.assert_allclose(by_base, [0, 1, 0, np.inf, 0, -4, 12, -np.inf])
    np.testing.assert_allclose(by_exponent, [0, 0, 0, 0, 0, np.nan, np.nan, -np.inf])


def test_at_base_zero_with_constant_exponents() -> None:
    for base, exponent in zip(BASES, EXPONENTS, strict=True):
        power = onnx.helper.make_node("Pow", ["x", "e"], ["y"])
        x = np.array([base], float)
        model = graph_model([power], {"x": x}, ["y"], initializers={"e": np.array(exponent)})
        actual = gradients(model, {"x": x}, {"y": np.ones(1)}, ["x"])["x"]
        np.testing.assert_array_equal(actual, slopes("Pow", {"x": x, "e": np.array([exponent])})["x"])


@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_agrees_with_pytorch_at_base_zero_and_below() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    x, e = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (BASES, EXPONENTS))
    (x**e).sum().backward()
    ours = slopes("Pow", {"x": BASES.astype(float), "e": EXPONENTS})
    np.testing.assert_allclose(ours["x"], x.grad)
    np.testing.assert_allclose(ours["e"], e.grad)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_dtype_is_kept(dtype: type) -> None:
    x = np.array([0.5, 2.0], dtype)
    expected = {"Sqrt": 0.5 / np.sqrt(x), "Reciprocal": -(x**-2.0), "Exp": np.exp(x), "Log": 1 / x}
    for op_type, slope in expected.items():
        gradient = slopes(op_type, {"x": x})["x"]
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, slope, rtol=TOLERANCES[dtype])
    gradient = slopes("Pow", {"x": x, "e": np.array([3.0, -1.0], dtype)})
    np.testing.assert_allclose(gradient["x"], [0.75, -0.25], rtol=TOLERANCES[dtype])
