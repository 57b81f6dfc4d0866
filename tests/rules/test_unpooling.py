"""MaxUnpool, with and without `output_shape`, of which evaluators make different things."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, gradients, single_node, with_shapes
from tests.rules.forms import check_forms, integers, normal
from tests.single_precision import check_in_single_precision

INDICES = np.array([[[[5, 7], [8, 15]]]])
GEOMETRY = {"kernel_shape": [2, 2], "strides": [2, 2]}


@pytest.mark.parametrize("opset", [9, 18, 22])
def test_max_unpool(opset: int) -> None:
    check_forms("MaxUnpool", {"x": normal(1, 1, 2, 2), "indices": INDICES}, opset=opset, **GEOMETRY)


def test_in_one_dimension() -> None:
    inputs = {"x": normal(1, 2, 3).astype(np.float32), "indices": np.array([[[0, 3, 4], [6, 9, 11]]])}
    check_in_single_precision(single_node("MaxUnpool", inputs, kernel_shape=[2], strides=[2]), inputs)


@pytest.mark.parametrize("output_shape", [(1, 1, 5, 5), (1, 1, 4, 4), (1, 1, 6, 4)], ids=str)
def test_output_shape_in_onnx_runtime(output_shape: tuple[int, ...]) -> None:
    """It counts positions through the output."""
    inputs = {
        "x": normal(1, 1, 2, 2).astype(np.float32),
        "indices": INDICES,
        "output_shape": integers(*output_shape),
    }
    model = single_node("MaxUnpool", inputs, **GEOMETRY)
    check_in_single_precision(model, inputs, second_order=True)
    dy = {"y0": np.arange(np.prod(output_shape), dtype=np.float32).reshape(output_shape)}
    for knowledge in SHAPE_KNOWLEDGE:
        dx = gradients(with_shapes(model, knowledge), inputs, dy, ["x"])["x"]
        assert dx.tolist() == [[[[5, 7], [8, 15]]]]


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_output_shape_in_the_reference_evaluator(knowledge: str) -> None:
    """It counts positions through the shape that the attributes imply, here 4×4, a corner of the output."""
    inputs = {"x": normal(1, 1, 2, 2), "indices": INDICES, "output_shape": integers(1, 1, 5, 5)}
    model = with_shapes(single_node("MaxUnpool", inputs, **GEOMETRY), knowledge)
    dy = np.arange(25.0).reshape(1, 1, 5, 5)
    (dx,) = ReferenceEvaluator(onnx_grad.vjp(model, ["x"])).run(["x_grad"], {**inputs, "y0_grad": dy})
    assert dx.tolist() == [[[[6, 8], [10, 18]]]]


def test_float16() -> None:
    """More elements than float16 can number."""
    x = np.zeros((1, 1, 5000), dtype=np.float16)
    inputs = {"x": x, "indices": np.arange(5000).reshape(1, 1, -1) * 2, "output_shape": integers(1, 1, 10000)}
    model = single_node("MaxUnpool", inputs, kernel_shape=[2], strides=[2])
    dy = (np.arange(10000) % 9).astype(np.float16).reshape(1, 1, -1)
    (dx,) = ReferenceEvaluator(onnx_grad.vjp(model, ["x"])).run(["x_grad"], {**inputs, "y0_grad": dy})
    assert dx.dtype == np.float16
    np.testing.assert_array_equal(dx, dy[:, :, ::2])
