"""The gradient as it ships against the same in higher precision."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnx_grad.checking import check_gradients
from onnx_grad.checking.own_precision import compare
from tests.graphs import parse

REFERENCE = np.array([[1.0, -2.0], [0.5, 100.0]])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_rounding_passes(dtype: type) -> None:
    found = compare(REFERENCE.astype(dtype), REFERENCE, size=1.0)
    assert found.passed
    assert found.dtype == np.dtype(dtype).name


@pytest.mark.parametrize(
    ("dtype", "error"),
    [(np.float64, 1e-6), (np.float32, 0.01), (np.float16, 1.0), (ml_dtypes.bfloat16, 10.0)],
)
def test_more_than_rounding_does_not(dtype: type, error: float) -> None:
    wrong = REFERENCE.copy()
    wrong[0, 1] -= error
    found = compare(wrong.astype(dtype), REFERENCE, size=1.0)
    assert not found.passed
    assert found.where == "[0, 1]"
    assert found.reference == -2.0
    assert found.max_abs_error == pytest.approx(error, rel=0.1)


def test_what_is_not_a_number_fails() -> None:
    wrong = REFERENCE.astype(np.float32)
    wrong[1, 0] = np.nan
    found = compare(wrong, REFERENCE, size=1.0, rtol=10.0, atol=10.0)
    assert not found.passed
    assert found.where == "[1, 0]"


def test_another_shape_fails() -> None:
    found = compare(np.zeros((2,), np.float32), REFERENCE, size=1.0)
    assert not found.passed
    assert found.where == "shape [2] instead of [2, 2]"


def test_an_empty_gradient_passes() -> None:
    assert compare(np.zeros((0, 2), np.float32), np.zeros((0, 2)), size=1.0).passed


def test_tolerances_are_only_ever_loosened() -> None:
    wrong = (REFERENCE * 1.01).astype(np.float32)
    assert not compare(wrong, REFERENCE, size=1.0).passed
    assert compare(wrong, REFERENCE, size=1.0, rtol=0.02).passed
    assert compare(wrong, REFERENCE, size=1.0, atol=2.0).passed
    assert compare(REFERENCE.astype(np.float32), REFERENCE, size=1.0, rtol=0.0, atol=0.0).passed


def test_what_rounding_leaves_of_numbers_that_cancel_passes() -> None:
    noise = np.full((2, 2), 1e-7, np.float32)
    assert compare(noise, np.zeros((2, 2)), size=1.0).passed
    assert not compare(noise, np.zeros((2, 2)), size=1e-3).passed


def test_a_gradient_that_is_zero_by_symmetry() -> None:
    """Subtracting the mean takes out what is added to every element: float32 leaves rounding errors."""
    graph = (
        "g (float[4,33] x, float[1] b) => (float[4,33] y) "
        "{ s = Add(x, b) m = ReduceMean(s) d = Sub(s, m) y = Mul(d, d) }"
    )
    report = check_gradients(parse(graph), wrt=["b", "x"])
    assert report.passed
    b = report.tensors[0]
    assert b.own_precision is not None
    assert abs(b.own_precision.reference) < 1e-12
