"""Activations: against differences, at their kinks, in every float type, and where exp would overflow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import check, single_node
from tests.rules.pointwise import TOLERANCES, slopes

X = np.array([[-4.3, -2.1, -0.4], [0.3, 1.7, 5.2]])

CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("Relu", 18, {}),
    ("LeakyRelu", 18, {}),
    ("LeakyRelu", 18, {"alpha": 0.0}),
    ("LeakyRelu", 18, {"alpha": 1.5}),
    ("LeakyRelu", 18, {"alpha": -0.5}),
    ("ThresholdedRelu", 18, {}),
    ("ThresholdedRelu", 18, {"alpha": -0.5}),
    ("HardSigmoid", 18, {}),
    ("HardSigmoid", 18, {"alpha": 0.3, "beta": 0.25}),
    ("HardSigmoid", 18, {"alpha": -0.3}),
    ("HardSwish", 18, {}),
    ("Elu", 18, {}),
    ("Elu", 18, {"alpha": 0.25}),
    ("Elu", 18, {"alpha": -2.0}),
    ("Selu", 18, {}),
    ("Selu", 18, {"alpha": 0.5, "gamma": 2.0}),
    ("Celu", 28, {}),
    ("Celu", 28, {"alpha": 2.0}),
    ("Sigmoid", 18, {}),
    ("Tanh", 18, {}),
    ("Softplus", 18, {}),
    ("Softsign", 18, {}),
    ("Swish", 24, {}),
    ("Swish", 24, {"alpha": 1.7}),
    ("Swish", 24, {"alpha": -0.5}),
    ("Mish", 18, {}),
    ("Gelu", 20, {"approximate": "tanh"}),
]


@pytest.mark.parametrize(("op_type", "opset", "attributes"), CASES, ids=str)
def test_against_differences(op_type: str, opset: int, attributes: dict[str, Any]) -> None:
    model = single_node(op_type, {"x": X}, opset=opset, **attributes)
    check(model, {"x": X}, second_order=True)


def test_gelu() -> None:
    """Onnx's reference computes `Gelu` in float32: its float32 noise is divided by a step to match."""
    model = single_node("Gelu", {"x": X}, opset=20)
    check(model, {"x": X}, step=3e-2, rtol=2e-5, atol=2e-5, second_order=True)


def test_shrink() -> None:
    """ONNX Runtime adds the bias in float32 also in float64, so that the step is large."""
    for attributes in ({}, {"lambd": 1.0, "bias": 0.6}, {"lambd": -1.0, "bias": 0.25}):
        check(single_node("Shrink", {"x": X}, **attributes), {"x": X}, step=0.02, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("attributes", [{}, {"alpha": 1.7}, {"alpha": -0.5}], ids=str)
def test_swiglu(attributes: dict[str, Any]) -> None:
    inputs = {"a": X, "b": X[::-1] * 0.5}
    check(single_node("SwiGLU", inputs, opset=28, **attributes), inputs, second_order=True)


@pytest.mark.parametrize("slope", [(2, 3), (3,), (2, 1), (1,), ()], ids=str)
def test_prelu_stretches_its_slope(slope: tuple[int, ...]) -> None:
    inputs = {"x": X, "slope": np.resize([0.25, -0.5, 2.0], slope)}
    check(single_node("PRelu", inputs), inputs, second_order=True)


@pytest.mark.parametrize("shape", [(), (0, 3), (1, 1, 1)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    inputs = {"x": np.resize(X, shape)}
    for op_type in ("Relu", "Sigmoid", "Mish", "HardSwish"):
        check(single_node(op_type, inputs), inputs)


# Operator, attributes, points and the derivative there: where it does not exist, PyTorch's.
KINKS: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    ("Relu", {}, [0.0, -0.0], [0, 0]),
    ("LeakyRelu", {"alpha": 0.25}, [0.0], [0.25]),
    ("ThresholdedRelu", {"alpha": 2.0}, [2.0, 2.5], [0, 1]),
    ("Shrink", {"lambd": 0.5, "bias": 0.5}, [-0.5, 0.5, -0.75, 0.75], [0, 0, 1, 1]),
    ("Shrink", {"lambd": 0.5, "bias": 0.0}, [-0.5, 0.5, -0.75, 0.75], [0, 0, 1, 1]),
    ("HardSigmoid", {"alpha": 0.25, "beta": 0.5}, [-2.0, 2.0, 0.0], [0, 0, 0.25]),
    ("HardSwish", {}, [-3.0, 3.0, -3.5, 3.5, 0.0], [0, 1, 0, 1, 0.5]),
    ("Elu", {"alpha": 2.0}, [0.0], [2]),
    ("Selu", {"alpha": 2.0, "gamma": 1.5}, [0.0], [3]),
    ("Softsign", {}, [0.0], [1]),
]


@pytest.mark.parametrize(("op_type", "attributes", "points", "expected"), KINKS, ids=str)
def test_kinks(op_type: str, attributes: dict[str, Any], points: list[float], expected: list[float]) -> None:
    actual = slopes(op_type, {"x": np.array(points)}, **attributes)["x"]
    np.testing.assert_array_equal(actual, expected)


def test_prelu_takes_its_slope_at_zero() -> None:
    actual = slopes("PRelu", {"x": np.array([0.0, -2.0, 2.0]), "slope": np.array([0.25])})
    np.testing.assert_array_equal(actual["x"], [0.25, 0.25, 1])
    np.testing.assert_array_equal(actual["slope"], [-2])


@pytest.mark.parametrize(("op_type", "attributes", "points", "expected"), KINKS, ids=str)
def test_kinks_are_those_of_pytorch(
    op_type: str, attributes: dict[str, Any], points: list[float], expected: list[float]
) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    _in_pytorch(torch.nn.functional, op_type, attributes)(x).sum().backward()
    np.testing.assert_allclose(x.grad, expected)


def _in_pytorch(functional: Any, op_type: str, attributes: dict[str, Any]) -> Any:
    alpha = attributes.get("alpha", 1.0)
    shrink = functional.softshrink if attributes.get("bias") else functional.hardshrink
    return {
        "Relu": functional.relu,
        "LeakyRelu": lambda x: functional.leaky_relu(x, alpha),
        "ThresholdedRelu": lambda x: functional.threshold(x, alpha, 0.0),
        "Shrink": lambda x: shrink(x, attributes["lambd"]),
        # PyTorch's slope is 1/6, with the ends at ±3 instead of ±2.
        "HardSigmoid": lambda x: functional.hardsigmoid(x * 1.5),
        "HardSwish": functional.hardswish,
        "Elu": lambda x: functional.elu(x, alpha),
        "Selu": lambda x: attributes["gamma"] * functional.elu(x, alpha),
        "Softsign": functional.softsign,
    }[op_type]


SMOOTH = {
    "Elu": ("elu", 18, {}),
    "Selu": ("selu", 18, {}),
    "Celu": ("celu", 18, {}),
    "Gelu": ("gelu", 20, {}),
    "Gelu, tanh": ("gelu", 20, {"approximate": "tanh"}),
    "Mish": ("mish", 18, {}),
    "Swish": ("silu", 24, {}),
    "Softplus": ("softplus", 18, {}),
    "Sigmoid": ("sigmoid", 18, {}),
    "Tanh": ("tanh", 18, {}),
    "Softsign": ("softsign", 18, {}),
    "HardSwish": ("hardswish", 18, {}),
    "LeakyRelu": ("leaky_relu", 18, {}),
    "Relu": ("relu", 18, {}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", SMOOTH)
def test_agrees_with_pytorch_from_very_small_to_very_large(name: str, dtype: type) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    function, opset, attributes = SMOOTH[name]
    if name == "Celu" and dtype == np.float16:
        opset = 28
    points = np.array([-6e4, -300, -90, -20, -5, -1, -1e-3, 1e-3, 0.5, 2, 11, 30, 89, 400, 6e4], dtype)
    x = torch.tensor(points.astype(np.float64), requires_grad=True)
    getattr(torch.nn.functional, function)(x, **attributes).sum().backward()
    actual = slopes(name.partition(",")[0], {"x": points}, opset=opset, **attributes)["x"]
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, x.grad, rtol=2 * TOLERANCES[dtype], atol=2 * TOLERANCES[dtype])


def test_exponential_units_are_exact_far_below_zero() -> None:
    x = np.array([-30.0, -10.0], np.float32)
    for op_type, scale in [("Elu", 1.0), ("Celu", 1.0), ("Selu", 1.0507010221481323 * 1.6732631921768188)]:
        np.testing.assert_allclose(slopes(op_type, {"x": x})["x"], scale * np.exp(x), rtol=1e-6)


def test_defaults_are_float32_numbers_in_float64_models_too() -> None:
    x = np.array([-0.5])
    assert slopes("LeakyRelu", {"x": x})["x"] == np.float32(0.01)
    assert slopes("HardSigmoid", {"x": x})["x"] == np.float32(0.2)


def test_relu_reads_its_output_only() -> None:
    model = onnx_grad.vjp(single_node("Relu", {"x": X}))
    readers = [node.op_type for node in model.graph.node if "x" in node.input]
    assert readers == ["Relu"]
