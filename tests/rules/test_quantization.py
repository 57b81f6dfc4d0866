"""Dequantization by its scale, of every granularity; what rounds is declared."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, graph_model, single_node, with_shapes

GENERATOR = np.random.default_rng(5)
LEVELS = GENERATOR.integers(-100, 100, (3, 4, 5)).astype(np.int8)

# Opset, shape of the scale, attributes.
CASES: list[tuple[int, tuple[int, ...], dict[str, Any]]] = [
    (18, (), {}),
    (18, (4,), {}),
    (18, (3,), {"axis": 0}),
    (18, (5,), {"axis": -1}),
    (21, (4,), {"axis": 1}),
    (21, (3, 2, 5), {"axis": 1, "block_size": 2}),
    (21, (3, 4, 2), {"axis": 2, "block_size": 3}),
    (25, (3, 4, 5), {"axis": 0, "block_size": 1}),
]


@pytest.mark.parametrize("with_zero_point", [True, False])
@pytest.mark.parametrize(("opset", "shape", "attributes"), CASES, ids=str)
def test_scale(opset: int, shape: tuple[int, ...], attributes: dict[str, Any], with_zero_point: bool) -> None:
    inputs = {"x": LEVELS, "scale": np.asarray(GENERATOR.uniform(0.1, 1, shape).astype(np.float32))}
    if with_zero_point:
        inputs["zero"] = np.asarray(GENERATOR.integers(-5, 5, shape).astype(np.int8))
    _check_scale(single_node("DequantizeLinear", inputs, opset=opset, **attributes), inputs)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_types_of_levels(dtype: type) -> None:
    inputs = {"x": np.abs(LEVELS).astype(dtype), "scale": np.full(4, 0.5, np.float32)}
    _check_scale(single_node("DequantizeLinear", inputs, opset=21), inputs)


@pytest.mark.parametrize("dtype", [onnx.TensorProto.INT4, onnx.TensorProto.FLOAT8E4M3FN])
def test_types_of_levels_that_numpy_lacks(dtype: int) -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["x"], ["narrow"], to=dtype),
        onnx.helper.make_node("DequantizeLinear", ["narrow", "scale"], ["y0"]),
    ]
    inputs = {"x": (LEVELS % 8).astype(np.float32), "scale": np.full(4, 0.5, np.float32)}
    _check_scale(graph_model(nodes, inputs, ["y0"], opset=21), inputs)


def test_half_precision() -> None:
    inputs = {"x": LEVELS % 8, "scale": np.full(4, 0.5, np.float16)}
    _check_scale(single_node("DequantizeLinear", inputs, opset=21), inputs)
    inputs = {"x": LEVELS % 8, "scale": np.array(0.5, np.float16)}
    _check_scale(single_node("DequantizeLinear", inputs, opset=21), inputs)


def _check_scale(model: Any, inputs: dict[str, np.ndarray]) -> None:
    """The result is linear in the scale: its derivative by one element is the result for that alone."""
    run, scale = evaluator(model), inputs["scale"]
    dy = GENERATOR.integers(-3, 4, LEVELS.shape).astype(scale.dtype)
    expected = np.zeros(scale.shape)
    for index in np.ndindex(scale.shape):
        unit = np.zeros_like(scale)
        unit[index] = 1
        expected[index] = (run({**inputs, "scale": unit})["y0"].astype(float) * dy).sum()
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["scale"])["scale"]
        assert actual.dtype == scale.dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize(
    "op_type",
    [
        "ConvInteger",
        "DynamicQuantizeLinear",
        "MatMulInteger",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
    ],
)
def test_computing_with_rounded_numbers_is_refused(op_type: str) -> None:
    entry = registry.lookup("", op_type)
    assert entry.state is State.REFUSED
    assert entry.rounds
    assert "straight-through" in entry.reason
