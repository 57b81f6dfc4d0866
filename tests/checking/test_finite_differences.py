"""Derivatives along a line from values alone, and what is a kink."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from onnx_grad.checking.finite_differences import (
    BRIEF_SWEEPS,
    SWEEPS,
    Derivative,
    Point,
    differentiate,
    differentiate_by,
)

Function = Callable[[float], float]


def along(function: Function, precision: str = "float64", *, full: bool = False) -> Derivative:
    """The derivative of `function` at 0, to the tolerance of the precision."""
    relative, floor = {"float64": (1e-6, 1e-10), "float32": (1e-2, 1e-4)}[precision]

    def line(t: float) -> np.ndarray:
        return np.array([function(t)], dtype=float)

    at_zero = line(0.0)
    size = float(abs(at_zero[0]))
    return differentiate(
        line, at_zero, SWEEPS[precision][0], lambda value: relative * abs(value) + floor * size, full=full
    )


SMOOTH: dict[str, tuple[Function, float]] = {
    "constant": (lambda t: 3.0, 0.0),
    "zero": (lambda t: 0.0, 0.0),
    "linear": (lambda t: 1.0 - 2.0 * t, -2.0),
    "exponential": (lambda t: math.exp(1.0 + t), math.e),
    "fast oscillation": (lambda t: 1.0 + math.sin(1e3 * t), 1e3),
    "steep sigmoid": (lambda t: 1.0 / (1.0 + math.exp(-1e3 * t)), 250.0),
    "small slope on a large value": (lambda t: 1e4 + 1e-2 * math.sin(t), 1e-2),
    "second derivative that jumps": (lambda t: 1.0 + t + t * abs(t), 1.0),
    "kink close by": (lambda t: 1.0 + t + max(t - 1e-5, 0.0), 1.0),
    "kinks on both sides": (lambda t: 1.0 + max(t - 1e-4, 0.0) - max(-t - 1e-3, 0.0) + t, 1.0),
    "step far away": (lambda t: 1.0 + t + math.floor(t + 0.5), 1.0),
    "edge of the domain close by": (lambda t: math.log(1e-3 + t) if t > -1e-3 else math.nan, 1e3),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_points(name: str) -> None:
    function, expected = SMOOTH[name]
    found = along(function)
    assert found.point is Point.SMOOTH
    assert found.best.value == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert abs(found.best.value - expected) <= 10 * found.best.error + 1e-15


def test_the_error_estimate_is_honest() -> None:
    for rate in np.geomspace(0.1, 100, 30):
        found = along(lambda t, rate=rate: math.exp(rate * t))
        assert abs(found.best.value - rate) <= 10 * found.best.error


KINKS: dict[str, tuple[Function, float, float]] = {
    "absolute value": (lambda t: 1.0 + abs(t), -1.0, 1.0),
    "rectifier": (lambda t: 1.0 + max(t, 0.0), 0.0, 1.0),
    "curved on both sides": (lambda t: math.exp(t) if t > 0 else math.exp(-2.0 * t), -2.0, 1.0),
    "weak": (lambda t: math.exp(t) + 1e-3 * abs(t), 0.999, 1.001),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks(name: str) -> None:
    function, left, right = KINKS[name]
    found = along(function)
    assert found.point is Point.KINK
    assert found.left.value == pytest.approx(left, rel=1e-6, abs=1e-9)
    assert found.right.value == pytest.approx(right, rel=1e-6, abs=1e-9)


def test_no_smooth_function_passes_for_a_kink() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        a, b, c = generator.standard_normal(3)
        rate = 10 ** generator.uniform(-2, 3)
        found = along(lambda t, a=a, b=b, c=c, rate=rate: a * math.sin(rate * t + b) + c * t * t)
        assert found.point is Point.SMOOTH


def test_discontinuities() -> None:
    assert along(lambda t: math.floor(1.0 + t)).point is Point.JUMP
    assert along(lambda t: t + math.ceil(3.0 - t)).point is Point.JUMP


def test_the_edge_of_the_domain() -> None:
    found = along(lambda t: 1.0 + t**1.5 if t >= 0 else math.nan)
    assert found.point is Point.EDGE
    assert math.isnan(found.left.value)


def test_an_infinite_slope_is_not_resolved() -> None:
    assert along(np.cbrt).point is Point.UNRESOLVED


def test_float32_rounding_is_not_taken_for_a_derivative() -> None:
    """A function that claims 16 digits and has 7 is not resolved, rather than wrong."""
    found = along(lambda t: float(np.float32(np.exp(np.float32(1.0 + t)))))
    assert found.point is Point.UNRESOLVED


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda t: np.exp(np.float32(1.0 + t)), math.e),
        (lambda t: np.float32(1000.0) + np.sin(np.float32(10.0 * t)), 10.0),
    ],
)
def test_float32(function: Function, expected: float) -> None:
    found = along(function, "float32")
    assert found.point is Point.SMOOTH
    assert found.best.value == pytest.approx(expected, rel=2e-2)


def test_a_smooth_function_takes_few_evaluations() -> None:
    calls: list[float] = []
    along(lambda t: calls.append(t) or math.sin(1.0 + t))  # type: ignore[func-returns-value]
    assert len(calls) <= 12


def test_the_whole_sweep_makes_a_v() -> None:
    curve = along(lambda t: math.exp(1.0 + t), full=True).curve
    errors = [abs(value - math.e) for _, value in curve]
    lowest = errors.index(min(errors))
    assert 0 < lowest < len(errors) - 1
    assert errors[0] > 1e-3 > 1e-9 > errors[lowest]
    assert errors[-1] > 10 * errors[lowest]


def test_brief_sweeps_take_the_steps_that_a_function_needs() -> None:
    """Dense kinks need tiny steps; a small slope on a large value, larger ones."""
    functions: list[tuple[Function, float]] = [
        (
            lambda t: 1.0 + t + sum(max(t - 1e-6 * k, 0.0) - max(-t - 1e-6 * k, 0.0) for k in range(1, 30)),
            1.0,
        ),
        (lambda t: 1e2 + 1e-2 * math.sin(t), 1e-2),
    ]
    for function, expected in functions:
        at_zero = np.array([function(0.0)])
        calls: list[float] = []

        def line(t: float, function: Function = function, calls: list[float] = calls) -> np.ndarray:
            calls.append(t)
            return np.array([function(t)])

        found = differentiate_by(BRIEF_SWEEPS, line, at_zero, lambda value: 1e-6 * abs(value))
        assert found.point is Point.SMOOTH
        assert found.best.value == pytest.approx(expected, rel=1e-6)
        assert len(calls) <= 24
        steps = [step for step, _ in found.curve]
        assert steps == sorted(steps, reverse=True)


def test_of_sweeps_that_all_fail_the_closest_counts() -> None:
    """A grid of 1e-9 in the value: the smallest steps see nothing but that."""

    def line(t: float) -> np.ndarray:
        return np.array([round(1.0 + math.sin(t), 9)])

    found = differentiate_by(SWEEPS["float64"], line, line(0.0), lambda value: 1e-12)
    assert found.point is Point.UNRESOLVED
    assert found.best.value == pytest.approx(1.0, rel=1e-5)
