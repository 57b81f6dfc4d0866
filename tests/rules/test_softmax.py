"""Softmax and its logarithm along every axis, masked rows included."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, gradients, single_node

X = np.random.default_rng(3).standard_normal((2, 3, 4))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3, None])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_axes(op_type: str, axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    check(single_node(op_type, {"x": X}, **attributes), {"x": X})


@pytest.mark.parametrize("shape", [(4,), (1, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_shapes(op_type: str, shape: tuple[int, ...]) -> None:
    inputs = {"x": np.resize(X, shape)}
    check(single_node(op_type, inputs), inputs, second_order=True)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_before_opset_13_the_trailing_axes_are_one_row(op_type: str, axis: int) -> None:
    check(single_node(op_type, {"x": X}, opset=11, axis=axis), {"x": X}, shapes=["static"])


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_masked_elements_get_a_zero_gradient(op_type: str, dtype: type) -> None:
    x = np.array([[0.5, -np.inf, 1.0, -np.inf], [-np.inf, -np.inf, 2.0, -np.inf]], dtype)
    dy = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], dtype)
    if op_type == "LogSoftmax":
        dy[np.isinf(x)] = 0
    actual = gradients(single_node(op_type, {"x": x}), {"x": x}, {"y0": dy}, ["x"])["x"]
    assert actual.dtype == dtype
    p = 1 / (1 + np.exp(-0.5))
    slope = {"Softmax": 2 * p * (1 - p), "LogSoftmax": 3 - 4 * p}[op_type]
    np.testing.assert_allclose(
        actual, [[-slope, 0, slope, 0], [0, 0, 0, 0]], atol=4e-3 if dtype == np.float16 else 1e-6
    )


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_large_numbers_do_not_overflow(op_type: str) -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    dy = np.array([[1, 0, 0]], np.float32)
    actual = gradients(single_node(op_type, {"x": x}), {"x": x}, {"y0": dy}, ["x"])["x"]
    p = 1 / (1 + np.exp(-1))
    expected = [[p * (1 - p), -p * (1 - p), 0]] if op_type == "Softmax" else [[1 - p, p - 1, 0]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
