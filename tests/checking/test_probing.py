"""One tensor along its lines: what a line that cannot be resolved means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from onnx_grad.checking.directions import directions
from onnx_grad.checking.evaluators import EvaluatorName
from onnx_grad.checking.finite_differences import SWEEPS, Point
from onnx_grad.checking.probing import WeightedOutputs, check_tensor
from onnx_grad.checking.report import TensorReport
from onnx_grad.checking.tolerances import FINITE_DIFFERENCES

SLOPE = np.linspace(1.0, 2.0, 100)


class Rough:
    """y = slope · x, and noise along the third of the random directions, or along all lines."""

    name: EvaluatorName = "reference-float64"
    precision: Literal["float64", "float32"] = "float64"

    def __init__(self, point: np.ndarray, roughness: float, *, everywhere: bool = False) -> None:
        lines = list(directions(point, SLOPE, 64, 3, np.random.default_rng(0)))
        self.point, self.roughness = point, roughness
        self.smooth = [] if everywhere else [line.vector for line in lines[:3]]

    def converted(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        return dict(feeds)

    def __call__(self, feeds: Mapping[str, Any]) -> dict[str, np.ndarray]:
        moved = feeds["x"] - self.point
        length = float(np.linalg.norm(moved))
        if any(abs(abs(moved @ vector) - length) < 1e-6 * length for vector in self.smooth):
            jitter = 0.0
        else:
            jitter = self.roughness * np.sin(1e3 * np.log(length)) * length if length else 0.0
        return {"y": np.array([feeds["x"] @ SLOPE + jitter])}


def check(evaluator: Rough, gradient: np.ndarray) -> TensorReport:
    return check_tensor(
        WeightedOutputs(evaluator, {"x": evaluator.point}, "x", {"y": np.ones(1)}),
        gradient,
        directions(evaluator.point, SLOPE, 64, 3, np.random.default_rng(0)),
        FINITE_DIFFERENCES["float64"],
        dtype="float32",
        rtol=None,
        atol=None,
        advance=lambda name: None,
        sweeps=SWEEPS["float64"],
        repetitions=lambda: [gradient] * 3,
    )


POINT = np.random.default_rng(1).standard_normal(100)


def test_one_inconclusive_line_among_others_that_agree_is_reported() -> None:
    report = check(Rough(POINT, 1e-4), SLOPE)
    assert report.passed
    (probe,) = report.inconclusive
    assert (probe.where, probe.point) == ("random direction 3", Point.UNRESOLVED)
    assert report.max_rel_error < 1e-8


def test_it_fails_where_the_gradient_is_further_off_than_differences_resolve() -> None:
    wrong = SLOPE + 1e-3 * np.sign(np.random.default_rng(2).standard_normal(100))
    report = check(Rough(POINT, 1e-4), wrong)
    assert not report.passed
    assert not report.inconclusive


def test_it_fails_where_the_error_is_not_small() -> None:
    report = check(Rough(POINT, 10.0), SLOPE)
    assert [probe.where for probe in report.failures] == ["random direction 3"]


def test_it_fails_where_the_line_along_the_gradient_is_not_conclusive() -> None:
    report = check(Rough(POINT, 1e-2, everywhere=True), SLOPE)
    assert not report.passed
    assert not report.inconclusive
