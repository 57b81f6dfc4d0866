"""The report of what would be differentiated."""

from __future__ import annotations

import json

import onnx_grad
from models import FOLDER
from tests.graphs import parse


def test_counts_only_what_is_on_the_way() -> None:
    model = parse(
        "g (float[N] x, float[N] w) => (float[N] y, float[N] z) { h = Relu(x) y = Mul(h, h) z = Relu(w) }"
    )
    report = onnx_grad.inspect(model, wrt="x")
    assert {o.operator: o.nodes for o in report.operators} == {"Relu": 1, "Mul": 1}
    assert report.nodes == 3
    assert report.differentiable


def test_shows_rules_and_conventions() -> None:
    report = onnx_grad.inspect(parse("g (float[N] x) => (float[N] y) { y = Relu(x) }"))
    (operator,) = report.operators
    assert operator.rule == "activations.relu"
    assert "0" in operator.convention
    assert "activations" in str(report)


def test_names_with_brackets_are_shown_as_they_are() -> None:
    report = onnx_grad.inspect(FOLDER / "broadcast_add.onnx")
    assert "a float[batch,3]" in str(report)


def test_names_every_blocker_and_what_has_no_path() -> None:
    model = parse("g (float[N] x, float[N] u) => (float[N] y) { [p] a = custom.P (x) [q] y = custom.Q (a) }")
    report = onnx_grad.inspect(model)
    assert [blocker.node for blocker in report.blockers] == ["p", "q"]
    assert report.without_path == ["u"]
    assert not report.differentiable
    assert json.loads(report.to_json())["differentiable"] is False


def test_expanded_functions_are_named() -> None:
    model = parse("g (float[4,4] x) => (float[2,2] y) <int64[2] s = {2, 2}> { y = CenterCropPad(x, s) }")
    report = onnx_grad.inspect(model)
    assert report.expanded == ["CenterCropPad"]
    assert report.nodes == 1
