"""A report in its three forms: text, JSON, picture."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from pathlib import Path

import pytest

from onnx_grad.checking.finite_differences import Point
from onnx_grad.checking.report import EvaluatorNote, GradientReport, OwnPrecision, Probe, TensorReport
from onnx_grad.errors import OutputError, RuntimeUnavailableError

PNG = b"\x89PNG\r\n\x1a\n"


def probe(where: str, gradient: float, difference: float, point: Point = Point.SMOOTH) -> Probe:
    return Probe(where, gradient, difference, 1e-12, 1e-6, point, left=0.0, right=1.0)


RIGHT = TensorReport(
    name="x",
    shape=(2, 3),
    dtype="float32",
    coordinates=6,
    directions=1,
    max_abs_error=1e-9,
    max_rel_error=1e-9,
    worst=probe("[1, 2]", 1.0, 1.0 + 1e-9),
    exceptions=(probe("[0, 0]", 0.0, 0.5, Point.KINK),),
    curve=((1e-1, 1e-3), (1e-2, 1e-5), (1e-3, 1e-7), (1e-8, 1e-6)),
    own_precision=OwnPrecision("float32", "[0]", 1.0, 1.0, 1e-8, 1e-8, 1e-3, passed=True),
)
WRONG = dataclasses.replace(
    RIGHT,
    name="w",
    worst=probe("[0]", 2.0, 1.0),
    failures=(probe("[0]", 2.0, 1.0), probe("[1]", math.nan, 1.0, Point.UNRESOLVED)),
    exceptions=(),
)


def report(*tensors: TensorReport, problem: str = "") -> GradientReport:
    return GradientReport(
        model="model.onnx",
        of=("y",),
        inputs={"x": "float32[2, 3]"},
        seed=0,
        tensors=tensors,
        evaluators=(EvaluatorNote("model", "reference-float64", "float64", "no kernel for Conv(11)"),),
        problem=problem,
        seconds=0.5,
    )


def test_the_verdict() -> None:
    assert report(RIGHT).passed
    assert not report(RIGHT, WRONG).passed
    assert not report(RIGHT, problem="the gradient graph does not run").passed
    assert report(RIGHT).kinks == (("x", RIGHT.exceptions[0]),)


def test_a_probe_passes_within_its_tolerance() -> None:
    assert probe("", 1.0, 1.0 + 1e-7).passed
    assert not probe("", 1.0, 1.1).passed
    assert not probe("", math.nan, 1.0).passed
    assert not probe("", 1.0, 1.0, Point.UNRESOLVED).passed
    for point in (Point.KINK, Point.JUMP, Point.EDGE):
        assert probe("", 1.0, 2.0, point).passed


def test_the_text_of_a_right_gradient() -> None:
    text = str(report(RIGHT))
    assert text.startswith("PASS  model.onnx: every gradient agrees")
    assert "kink: x [0, 0]: 0 from the left, 1 from the right; the gradient graph gives 0" in text
    assert "worst: x [1, 2]: gradient 1, finite difference 1" in text
    assert "because no kernel for Conv(11)" in text
    assert "\x1b" not in text


def test_the_text_of_a_wrong_gradient() -> None:
    text = str(report(RIGHT, WRONG))
    assert text.startswith("FAIL  model.onnx: 1 of 2 gradients do not agree")
    assert "fails: w [0]: gradient 2, finite difference 1 ± 1e-12 (tolerance 1e-06)" in text
    assert "fails (unresolved): w [1]: gradient nan" in text


def test_the_text_of_a_gradient_that_does_not_run() -> None:
    text = str(report(RIGHT, problem="ONNX Runtime runs the model, but not its gradient graph"))
    assert "FAIL  model.onnx: the gradient graph does not run" in text


def test_long_lists_are_cut() -> None:
    many = dataclasses.replace(WRONG, failures=tuple(probe(f"[{i}]", 2.0, 1.0) for i in range(9)))
    assert "… and 4 more" in str(report(many))


def test_json_and_back() -> None:
    original = report(RIGHT, dataclasses.replace(WRONG, failures=WRONG.failures[:1]))
    text = original.to_json()
    assert json.loads(text)["passed"] is False
    assert [tensor["passed"] for tensor in json.loads(text)["tensors"]] == [True, False]
    assert GradientReport.from_json(text) == original


def test_numbers_that_are_not_finite_survive_json() -> None:
    text = report(WRONG).to_json()
    again = GradientReport.from_json(text)
    assert math.isnan(again.tensors[0].failures[1].gradient)
    assert str(again) == str(report(WRONG))


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, tensors in {"some": (RIGHT, WRONG), "none": (dataclasses.replace(RIGHT, curve=()),)}.items():
        path = tmp_path / f"{name}.png"
        report(*tensors).plot(path)
        assert path.read_bytes().startswith(PNG)


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(OutputError, match="cannot write the plot"):
        report(RIGHT).plot(tmp_path / "missing" / "v.png")


def test_plotting_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RuntimeUnavailableError, match=r"onnx-grad\[plot\]"):
        report(RIGHT).plot(tmp_path / "v.png")
