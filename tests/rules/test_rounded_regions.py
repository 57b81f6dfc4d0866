"""MaxRoiPool, against ONNX Runtime's differences and against loops that know its bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, single_node, with_shapes
from tests.single_precision import check_in_single_precision

# Two images without equal pixels; regions with halves to round, beyond the image, turned round, outside.
X = 0.05 * np.random.default_rng(0).permutation(2 * 2 * 5 * 6).reshape(2, 2, 5, 6).astype(np.float32)
ROIS = np.array(
    [[1, 0.5, 0.2, 4.5, 3.1], [0, -3, 2, 9, 9], [1, 2, 2, 1, 1], [0, 7, 7, 9, 9], [0, -0.5, 2.5, 1.5, 3]],
    dtype=np.float32,
)
INPUTS = {"x": X, "rois": ROIS}
ATTRIBUTES: list[dict[str, Any]] = [
    {"pooled_shape": [1, 1]},
    {"pooled_shape": [2, 3]},
    {"pooled_shape": [7, 2]},
    {"pooled_shape": [2, 2], "spatial_scale": 0.5},
    {"pooled_shape": [3, 3], "spatial_scale": 0.3},
]


@pytest.mark.parametrize("opset", [7, 18])
@pytest.mark.parametrize("attributes", ATTRIBUTES, ids=str)
def test_max_roi_pool(attributes: dict[str, Any], opset: int) -> None:
    model = single_node("MaxRoiPool", INPUTS, opset=opset, **attributes)
    check_in_single_precision(model, INPUTS, wrt=["x"], step=0.01, tolerance=1e-3)


def _nearest(coordinate: float) -> int:
    """The nearest integer, halves away from zero."""
    return int(np.sign(coordinate) * np.floor(abs(coordinate) + 0.5))


def _by_hand(x: np.ndarray, rois: np.ndarray, dy: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The maxima over the bins, and dx, by loops over every bin."""
    y, dx = np.zeros_like(dy), np.zeros_like(x)
    for region, channel, i, j in np.ndindex(*dy.shape):
        image = int(rois[region, 0])
        spans = []
        for axis, number in ((0, i), (1, j)):
            start, end = (_nearest(rois[region, c] * np.float32(scale)) for c in (2 - axis, 4 - axis))
            size = np.float32(max(end - start + 1, 1)) / np.float32(dy.shape[2 + axis])
            borders = np.floor(number * size) + start, np.ceil((number + 1) * size) + start
            spans.append(slice(*(int(np.clip(b, 0, x.shape[2 + axis])) for b in borders)))
        pixels = x[image, channel, spans[0], spans[1]]
        if pixels.size:
            row, column = np.unravel_index(pixels.argmax(), pixels.shape)
            y[region, channel, i, j] = pixels[row, column]
            dx[image, channel, spans[0].start + row, spans[1].start + column] += dy[region, channel, i, j]
    return y, dx


@pytest.mark.parametrize("seed", range(4))
def test_any_regions_by_hand(seed: int) -> None:
    """Random regions, many of them with coordinates halfway, and small whole numbers with many ties."""
    generator = np.random.default_rng(seed)
    height, width, *pooled = (int(n) for n in generator.integers(1, 7, 4))
    x = generator.integers(-3, 3, (2, 2, height, width)).astype(np.float32)
    corners = generator.integers(-8, 30, (9, 4)) * 0.5
    inputs = {"x": x, "rois": np.c_[generator.integers(0, 2, 9), corners].astype(np.float32)}
    scale = float(generator.choice([1.0, 0.5, 0.3]))
    dy = generator.standard_normal((9, 2, *pooled)).astype(np.float32)
    model = single_node("MaxRoiPool", inputs, pooled_shape=pooled, spatial_scale=scale)
    y, dx = _by_hand(x, inputs["rois"], dy, scale)
    np.testing.assert_array_equal(evaluator(model)(inputs)["y0"], y)
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["x"])["x"]
        np.testing.assert_allclose(actual, dx, rtol=1e-5, atol=1e-5)


def test_second_order() -> None:
    model = single_node("MaxRoiPool", INPUTS, pooled_shape=[2, 2])
    transformed = onnx_grad.vjp(model, ["x"])
    dy = np.random.default_rng(1).standard_normal((5, 2, 2, 2)).astype(np.float32)
    check_in_single_precision(transformed, {**INPUTS, "y0_grad": dy}, wrt=["y0_grad"], of=["x_grad"])


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_no_regions(knowledge: str) -> None:
    inputs = {"x": X, "rois": np.zeros((0, 5), dtype=np.float32)}
    model = with_shapes(single_node("MaxRoiPool", inputs, pooled_shape=[2, 2]), knowledge)
    dx = gradients(model, inputs, {"y0": np.zeros((0, 2, 2, 2), dtype=np.float32)}, ["x"])["x"]
    assert dx.shape == X.shape
    assert not dx.any()
