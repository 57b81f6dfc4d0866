"""Operators that make tensors from shapes, numbers or chance."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.oracle import check, gradients, graph_model, single_node
from tests.rules.forms import integers, normal


@pytest.mark.parametrize(
    ("start", "limit", "delta"), [(1.0, 3.2, 0.5), (3.0, 0.9, -1.0), (2.0, 1.0, 1.0)], ids=str
)
def test_range(start: float, limit: float, delta: float) -> None:
    inputs = {"start": np.array(start), "limit": np.array(limit), "delta": np.array(delta)}
    check(single_node("Range", inputs), inputs, wrt=["start", "delta"], second_order=True)


def test_range_of_one_in_single_precision() -> None:
    inputs = {name: np.array(value, np.float32) for name, value in [("a", 0.0), ("b", 4.0), ("step", 1.0)]}
    dy = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
    actual = gradients(single_node("Range", inputs), inputs, {"y0": dy}, ["a", "b", "step"])
    assert {name: float(value) for name, value in actual.items()} == {"a": 10.0, "b": 0.0, "step": 20.0}
    assert actual["step"].dtype == np.float32


def test_constants_take_part_without_a_derivative() -> None:
    x = {"x": normal(2, 3)}
    two = onnx.numpy_helper.from_array(np.array([2.0]))
    nodes = [
        onnx.helper.make_node("Shape", ["x"], ["shape"]),
        onnx.helper.make_node("ConstantOfShape", ["shape"], ["twos"], value=two),
        onnx.helper.make_node("EyeLike", ["x"], ["eye"], k=1),
        onnx.helper.make_node("Constant", [], ["three"], value=onnx.numpy_helper.from_array(np.array(3.0))),
        onnx.helper.make_node("Mul", ["x", "twos"], ["doubled"]),
        onnx.helper.make_node("Mul", ["doubled", "eye"], ["diagonal"]),
        onnx.helper.make_node("Mul", ["diagonal", "three"], ["y"]),
    ]
    check(graph_model(nodes, x, ["y"]), x)


@pytest.mark.parametrize("op_type", ["RandomNormalLike", "RandomUniformLike", "Bernoulli"])
def test_nothing_flows_through_chance(op_type: str) -> None:
    x = {"x": np.array([0.2, 0.5, 0.9])}
    nodes = [
        onnx.helper.make_node(op_type, ["x"], ["noise"], seed=1.0),
        onnx.helper.make_node("Add", ["x", "noise"], ["y"]),
    ]
    actual = gradients(graph_model(nodes, x, ["y"]), x, {"y": np.array([1.0, 2.0, 3.0])}, ["x"])
    np.testing.assert_array_equal(actual["x"], [1, 2, 3])


def test_a_shape_from_outside_has_no_derivative() -> None:
    inputs = {"x": normal(2), "shape": integers(2)}
    nodes = [
        onnx.helper.make_node(
            "ConstantOfShape", ["shape"], ["ones"], value=onnx.numpy_helper.from_array(np.array([1.0]))
        ),
        onnx.helper.make_node("Mul", ["x", "ones"], ["y"]),
    ]
    check(graph_model(nodes, inputs, ["y"]), inputs)
