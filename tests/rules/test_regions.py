"""Pooling over regions of interest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import check, single_node

# Two images; regions that reach beyond them, that are empty, that lie outside.
INPUTS = {
    "x": np.random.default_rng(0).standard_normal((2, 2, 4, 5)),
    "rois": np.array(
        [[0.3, 0.2, 3.1, 2.7], [-2.0, 1.0, 6.5, 5.2], [1.0, 1.0, 1.0, 1.0], [9, 9, 12, 12]], float
    ),
    "batch": np.array([1, 0, 1, 0]),
}


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
def test_roi_align(attributes: dict[str, Any], mode: str) -> None:
    model = single_node("RoiAlign", INPUTS, coordinate_transformation_mode=mode, **attributes)
    check(model, INPUTS, wrt=["x"], second_order=False)


def test_second_order() -> None:
    model = single_node("RoiAlign", INPUTS, output_height=2, output_width=2)
    transformed = onnx_grad.vjp(model, ["x"])
    dy = np.random.default_rng(1).standard_normal((4, 2, 2, 2))
    check(transformed, {**INPUTS, "y0_grad": dy}, wrt=["y0_grad"], of=["x_grad"])


def test_refusals() -> None:
    with pytest.raises(onnx_grad.UnsupportedOpError, match="mode='avg'"):
        onnx_grad.vjp(single_node("RoiAlign", INPUTS, mode="max"), ["x"])
    inputs = {"x": INPUTS["x"], "rois": np.zeros((1, 5))}
    with pytest.raises(onnx_grad.UnsupportedOpError, match="use RoiAlign"):
        onnx_grad.vjp(single_node("MaxRoiPool", inputs, pooled_shape=[2, 2]), ["x"])
