"""Pooling whose output onnx counts otherwise than ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_grad.prepare.window_counts import settle_window_counts
from tests.oracle import evaluator, single_node

Shape = tuple[int, ...]

# Shape of x, attributes: before opset 22, onnx counts a window too many along some axis.
MISCOUNTED: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 1, 7), {"kernel_shape": [2], "strides": [3], "pads": [1, 1]}),
    ((1, 1, 5), {"kernel_shape": [2], "strides": [5]}),
    ((2, 2, 3, 5), {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 1, 0]}),
    ((1, 2, 3, 6), {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
]
# Windows along one axis have gaps that others would fall in; those along the other stick out of the image.
BESIDE_GAPS: tuple[Shape, dict[str, Any]] = (
    (1, 1, 3, 4),
    {"kernel_shape": [1, 3], "strides": [3, 3], "auto_pad": "VALID"},
)


def _settled(
    op_type: str, shape: Shape, attributes: dict[str, Any]
) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The model, and the same settled, with inferred shapes."""
    model = single_node(op_type, {"x": np.zeros(shape, np.float32)}, ceil_mode=1, **attributes)
    settled = onnx.ModelProto()
    settled.CopyFrom(model)
    assert settle_window_counts(settled)
    settled.graph.output[0].type.tensor_type.ClearField("shape")
    return model, onnx.shape_inference.infer_shapes(settled, strict_mode=True)


def _dims(value: onnx.ValueInfoProto) -> Shape:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


@pytest.mark.parametrize(
    ("op_type", "more"),
    [("MaxPool", {}), ("LpPool", {"p": 3}), ("AveragePool", {}), ("AveragePool", {"count_include_pad": 1})],
    ids=str,
)
@pytest.mark.parametrize(("shape", "attributes"), MISCOUNTED, ids=str)
def test_the_same_values_and_the_right_shape(
    op_type: str, more: dict[str, Any], shape: Shape, attributes: dict[str, Any]
) -> None:
    model, settled = _settled(op_type, shape, {**attributes, **more})
    inputs = {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    expected, actual = evaluator(model)(inputs)["y0"], evaluator(settled)(inputs)["y0"]
    np.testing.assert_array_equal(actual, expected)
    assert _dims(settled.graph.output[0]) == expected.shape != _dims(model.graph.output[0])


@pytest.mark.parametrize("op_type", ["MaxPool", "LpPool", "AveragePool"])
def test_padding_that_takes_the_place_of_ceil_mode(op_type: str) -> None:
    model, settled = _settled(op_type, *BESIDE_GAPS)
    inputs = {"x": np.random.default_rng(0).standard_normal(BESIDE_GAPS[0]).astype(np.float32)}
    expected, actual = evaluator(model)(inputs)["y0"], evaluator(settled)(inputs)["y0"]
    np.testing.assert_array_equal(actual, expected)
    assert _dims(settled.graph.output[0]) == expected.shape == (1, 1, 1, 2)


@pytest.mark.parametrize(
    ("opset", "shape", "attributes"),
    [
        (18, (1, 1, 6), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
        (18, (1, 1, 7), {"kernel_shape": [2], "strides": [3], "pads": [1, 1]}),
        (22, (1, 1, 7), {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1}),
        (18, (1, 1, 9), {"kernel_shape": [2], "strides": [3], "auto_pad": "SAME_UPPER", "ceil_mode": 1}),
        # Padding counts, and no other attributes would divide by the same numbers.
        (18, BESIDE_GAPS[0], {**BESIDE_GAPS[1], "ceil_mode": 1, "count_include_pad": 1}),
    ],
    ids=str,
)
def test_what_is_left_as_it_is(opset: int, shape: Shape, attributes: dict[str, Any]) -> None:
    model = single_node("AveragePool", {"x": np.zeros(shape, np.float32)}, opset=opset, **attributes)
    before = model.SerializeToString()
    assert not settle_window_counts(model)
    assert model.SerializeToString() == before


def test_unknown_sizes_are_left_as_they_are() -> None:
    model = single_node("MaxPool", {"x": np.zeros((1, 1, 7), np.float32)}, ceil_mode=1, **MISCOUNTED[0][1])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "W"
    assert not settle_window_counts(model)
