"""Operators whose derivative is zero: nothing flows through them, and they block nothing."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import check, graph_model

X = np.array([-1.6, 0.3, 2.2])


@pytest.mark.parametrize("op_type", ["Ceil", "Floor", "Round", "Sign", "Hardmax"])
def test_steps_are_constant_factors(op_type: str) -> None:
    nodes = [
        onnx.helper.make_node(op_type, ["x"], ["step"]),
        onnx.helper.make_node("Mul", ["x", "step"], ["y"]),
    ]
    check(graph_model(nodes, {"x": X}, ["y"]), {"x": X}, second_order=True)


@pytest.mark.parametrize("op_type", ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"])
def test_comparisons_are_constant_masks(op_type: str) -> None:
    nodes = [
        onnx.helper.make_node(op_type, ["x", "b"], ["c"]),
        onnx.helper.make_node("Cast", ["c"], ["mask"], to=onnx.TensorProto.DOUBLE),
        onnx.helper.make_node("Mul", ["b", "mask"], ["y"]),
    ]
    inputs = {"x": X, "b": np.array([1.0, -0.5, 2.0])}
    check(graph_model(nodes, inputs, ["y"]), inputs)


@pytest.mark.parametrize("op_type", ["IsNaN", "IsInf"])
def test_classification_is_a_constant_condition(op_type: str) -> None:
    nodes = [
        onnx.helper.make_node(op_type, ["x"], ["c"]),
        onnx.helper.make_node("Where", ["c", "b", "x"], ["y"]),
    ]
    inputs = {"x": X, "b": np.array([1.0, -0.5, 2.0])}
    check(graph_model(nodes, inputs, ["y"], opset=20), inputs)


@pytest.mark.parametrize(
    "op_type",
    ["And", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Not", "Or", "Xor"],
)
def test_operators_on_truth_values_and_bits_are_declared(op_type: str) -> None:
    entry = registry.lookup("", op_type)
    assert entry.state is State.ZERO
    assert entry.reason
