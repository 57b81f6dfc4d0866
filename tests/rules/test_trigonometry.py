"""Circular and hyperbolic functions over their domains, up to the edges."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, single_node
from tests.rules.pointwise import TOLERANCES, slopes

ANYWHERE = np.array([[-2.3, -0.4, 0.0], [0.3, 1.2, 4.1]])
INSIDE = np.array([-0.99, -0.4, 0.0, 0.3, 0.9])

DOMAINS = {
    "Sin": ANYWHERE,
    "Cos": ANYWHERE,
    "Tan": ANYWHERE,
    "Atan": ANYWHERE,
    "Sinh": ANYWHERE,
    "Cosh": ANYWHERE,
    "Asinh": ANYWHERE,
    "Asin": INSIDE,
    "Acos": INSIDE,
    "Atanh": INSIDE,
    "Acosh": np.array([1.01, 1.5, 20.0]),
}

# d/dx at x = 0.5, or 1.5 for Acosh.
AT_A_HALF = {
    "Sin": np.cos(0.5),
    "Cos": -np.sin(0.5),
    "Tan": 1 / np.cos(0.5) ** 2,
    "Atan": 0.8,
    "Sinh": np.cosh(0.5),
    "Cosh": np.sinh(0.5),
    "Asinh": 1 / np.sqrt(1.25),
    "Asin": 1 / np.sqrt(0.75),
    "Acos": -1 / np.sqrt(0.75),
    "Atanh": 1 / 0.75,
    "Acosh": 1 / np.sqrt(1.25),
}


@pytest.mark.parametrize("op_type", DOMAINS)
def test_against_differences(op_type: str) -> None:
    inputs = {"x": DOMAINS[op_type]}
    check(single_node(op_type, inputs), inputs, second_order=True, step=1e-5, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("op_type", AT_A_HALF)
def test_dtype_is_kept(op_type: str, dtype: type) -> None:
    gradient = slopes(op_type, {"x": np.array([1.5 if op_type == "Acosh" else 0.5], dtype)})["x"]
    assert gradient.dtype == dtype
    np.testing.assert_allclose(gradient, AT_A_HALF[op_type], rtol=TOLERANCES[dtype])


def test_hyperbolic_derivatives_do_not_overflow_before_the_function() -> None:
    x = np.array([89.3, -89.3, 1e-4], np.float32)
    exact = x.astype(np.float64)
    np.testing.assert_allclose(slopes("Sinh", {"x": x})["x"], np.cosh(exact), rtol=2e-5)
    np.testing.assert_allclose(slopes("Cosh", {"x": x})["x"], np.sinh(exact), rtol=2e-5)


def test_inverse_functions_next_to_the_edge_of_their_domain() -> None:
    x = np.array([np.nextafter(np.float32(1), np.float32(0))])
    slope = 1 / np.sqrt((1 - x.astype(np.float64)) * (1 + x.astype(np.float64)))
    np.testing.assert_allclose(slopes("Asin", {"x": x})["x"], slope, rtol=1e-6)
    np.testing.assert_allclose(slopes("Acos", {"x": x})["x"], -slope, rtol=1e-6)
    np.testing.assert_allclose(slopes("Atanh", {"x": x})["x"], slope**2, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(
    ("op_type", "points", "expected"),
    [("Asin", [-1, 1], [np.inf, np.inf]), ("Acos", [-1, 1], [-np.inf, -np.inf]), ("Acosh", [1], [np.inf])],
)
def test_infinite_slopes_at_the_edge(op_type: str, points: list[float], expected: list[float]) -> None:
    np.testing.assert_array_equal(slopes(op_type, {"x": np.array(points, float)})["x"], expected)
