"""Pooling over regions of interest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, single_node, with_shapes

# Two images; regions that reach beyond them, that are empty, that lie outside.
INPUTS = {
    "x": np.random.default_rng(0).standard_normal((2, 2, 4, 5)),
    "rois": np.array(
        [[0.3, 0.2, 3.1, 2.7], [-2.0, 1.0, 6.5, 5.2], [1.0, 1.0, 1.0, 1.0], [9, 9, 12, 12]], float
    ),
    "batch": np.array([1, 0, 1, 0]),
}


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("mode", ["half_pixel", "output_half_pixel"])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"output_height": 2, "output_width": 3},
        {"output_height": 2, "output_width": 1, "sampling_ratio": 2},
        {"output_height": 1, "output_width": 2, "spatial_scale": 0.5},
    ],
    ids=str,
)
def test_roi_align(attributes: dict[str, Any], mode: str, pooling: str) -> None:
    model = single_node("RoiAlign", INPUTS, coordinate_transformation_mode=mode, mode=pooling, **attributes)
    check(model, INPUTS, wrt=["x"], second_order=False)


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("opset", [10, 16, 22])
def test_default_coordinates_of_each_opset(opset: int, pooling: str) -> None:
    """Opset 16 moved them by half a pixel; ONNX Runtime has no kernel of opset 22."""
    model = single_node("RoiAlign", INPUTS, opset=opset, mode=pooling, output_height=2, output_width=2)
    # The reference evaluator's GatherElements takes at most 64 rows, and the tangents need more.
    check(model, INPUTS, wrt=["x"], tangents=opset != 22)


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_second_order(pooling: str) -> None:
    model = single_node("RoiAlign", INPUTS, output_height=2, output_width=2, mode=pooling)
    transformed = onnx_grad.vjp(model, ["x"])
    dy = np.random.default_rng(1).standard_normal((4, 2, 2, 2))
    check(transformed, {**INPUTS, "y0_grad": dy}, wrt=["y0_grad"], of=["x_grad"])


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_of_equal_maxima_takes_all(dtype: type, knowledge: str) -> None:
    """Four samples, each in the middle of four ones with a weight of 1/4; nothing goes to zeros."""
    x = np.ones((1, 2, 3, 3), dtype=dtype)
    x[0, 1] = 0.0
    x[0, 1, 2, 2] = -1.0
    inputs = {"x": x, "rois": np.array([[0.5, 0.5, 2.5, 2.5]], dtype=dtype), "batch": np.array([0])}
    model = with_shapes(single_node("RoiAlign", inputs, mode="max"), knowledge)
    dx = gradients(model, inputs, {"y0": np.full((1, 2, 1, 1), 2.0, dtype=dtype)}, ["x"])["x"]
    assert dx.dtype == dtype
    assert dx[0, 0].tolist() == [[0.5, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert dx[0, 1].tolist() == [[0.5, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("pooling", ["avg", "max"])
@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_no_regions(knowledge: str, pooling: str) -> None:
    inputs = {**INPUTS, "rois": np.zeros((0, 4)), "batch": np.zeros(0, dtype=np.int64)}
    model = with_shapes(single_node("RoiAlign", inputs, mode=pooling, output_height=2), knowledge)
    dx = gradients(model, inputs, {"y0": np.zeros((0, 2, 2, 1))}, ["x"])["x"]
    assert dx.shape == (2, 2, 4, 5)
    assert not dx.any()
