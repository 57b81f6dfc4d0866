"""LRN and LpNormalization."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, numerical_gradient, single_node, with_shapes


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_lrn_windows(size: int) -> None:
    """onnx's reference, which runs this in double, is right only for as many instances as channels."""
    inputs = {"X": _random(4, 4, 1, 2)}
    model = single_node("LRN", inputs, size=size, alpha=0.5, beta=0.6, bias=1.5)
    check(model, inputs, second_order=size in (3, 4))


@pytest.mark.parametrize("shape", [(2, 5, 1, 2), (1, 1, 2, 2), (0, 3, 2, 2)], ids=str)
def test_lrn_in_single_precision(shape: tuple[int, ...]) -> None:
    exact = {"X": _random(*shape)}
    inputs = {"X": exact["X"].astype(np.float32)}

    def normalize(at: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        padded = np.pad(at["X"] ** 2, [(0, 0), (1, 1), (0, 0), (0, 0)])
        squares = padded[:, :-2] + padded[:, 1:-1] + padded[:, 2:]
        return {"y0": at["X"] / (1.0 + 0.2 / 3 * squares) ** 0.75}

    dy = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    model = single_node("LRN", inputs, size=3, alpha=0.2)
    expected = numerical_gradient(normalize, exact, "X", {"y0": dy.astype(np.float64)})
    for shapes in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, shapes), inputs, {"y0": dy}, ["X"])["X"]
        assert actual.dtype == np.float32
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6, err_msg=shapes)


@pytest.mark.parametrize("p", [None, 1, 2])
@pytest.mark.parametrize(("shape", "axis"), [((3,), 0), ((2, 3), None), ((2, 3, 2), 1), ((0, 2), -1)])
def test_lp_normalization(shape: tuple[int, ...], axis: int | None, p: int | None) -> None:
    inputs = {"input": _random(*shape)}
    attributes = {name: value for name, value in (("axis", axis), ("p", p)) if value is not None}
    check(single_node("LpNormalization", inputs, **attributes), inputs, second_order=shape == (2, 3))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_gradient_of_a_vector_of_zeros_is_zero(p: int, dtype: type[np.floating]) -> None:
    """At first and at second order, beside a vector that has one."""
    inputs = {"input": np.array([[0.0, 0.0], [3.0, -4.0]], dtype)}
    dy = np.array([[1.0, 2.0], [1.0, 0.0]], dtype)
    model = single_node("LpNormalization", inputs, p=p, axis=1)
    actual = gradients(model, inputs, {"y0": dy}, ["input"])["input"]
    assert actual.dtype == dtype
    expected = [16 / 125, 12 / 125] if p == 2 else [4 / 49, 3 / 49]
    np.testing.assert_allclose(actual, [[0.0, 0.0], expected], rtol=1e-6)
    second = onnx_grad.vjp(model)
    at = {**inputs, "y0_grad": dy}
    curvature = gradients(second, at, {"input_grad": np.ones_like(dy)}, ["input", "y0_grad"])
    assert np.isfinite(curvature["input"]).all()
    np.testing.assert_array_equal(curvature["input"][0], 0.0)
    np.testing.assert_array_equal(curvature["y0_grad"][0], 0.0)
