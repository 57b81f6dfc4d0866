"""Tangents of MaxPool with windows that tile the image: picked from where the first maxima are."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import onnx_grad
from onnx_grad.rules.tiled_maxima import _boxes_before
from tests.graphs import operators, run
from tests.oracle import SHAPE_KNOWLEDGE, single_node, with_shapes

KERNELS = [(2,), (4,), (1, 2), (2, 1), (2, 2), (1, 3), (2, 1, 2)]


def pooling(kernel: tuple[int, ...], x: np.ndarray, opset: int = 18) -> onnx.ModelProto:
    return single_node("MaxPool", {"x": x}, opset=opset, kernel_shape=kernel, strides=kernel)


def image(kernel: tuple[int, ...], dtype: type = np.float32, batch: int = 3) -> np.ndarray:
    """Of few different numbers, so that most windows have ties."""
    shape = (batch, 2, *(k * (2 + axis) for axis, k in enumerate(kernel)))
    return np.random.default_rng(len(kernel)).integers(-1, 2, shape).astype(dtype)


def first_of_each(kernel: tuple[int, ...], x: np.ndarray, tangent: np.ndarray) -> np.ndarray:
    """The tangent at the first maximum of each window, one window after the other."""
    counts = [length // k for length, k in zip(x.shape[2:], kernel, strict=True)]
    result = np.empty((*x.shape[:2], *counts), x.dtype)
    for place in np.ndindex(result.shape):
        window = tuple(slice(o * k, (o + 1) * k) for o, k in zip(place[2:], kernel, strict=True))
        result[place] = tangent[place[:2]][window].flat[x[place[:2]][window].argmax()]
    return result


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_the_tangent_of_the_first_maximum(kernel: tuple[int, ...]) -> None:
    x = image(kernel)
    tangent = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    for knowledge in SHAPE_KNOWLEDGE:
        model = onnx_grad.jvp(with_shapes(pooling(kernel, x), knowledge))
        values = run(model, {"x": x, "x_tangent": tangent})
        np.testing.assert_array_equal(values["y0_tangent"], first_of_each(kernel, x, tangent))


@pytest.mark.parametrize("opset", [12, 18, 22])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_every_float_type(dtype: type, opset: int) -> None:
    x = image((2, 2), dtype)
    tangent = np.random.default_rng(1).standard_normal(x.shape).astype(dtype)
    values = run(onnx_grad.jvp(pooling((2, 2), x, opset)), {"x": x, "x_tangent": tangent})
    np.testing.assert_array_equal(values["y0_tangent"], first_of_each((2, 2), x, tangent))


def test_an_empty_batch() -> None:
    x = image((2, 2), batch=0)
    values = run(onnx_grad.jvp(pooling((2, 2), x)), {"x": x, "x_tangent": x})
    assert values["y0_tangent"].shape == (0, 2, 2, 3)


@pytest.mark.parametrize("kernel", [(2, 2), (3, 3)], ids=str)
def test_tangents_and_cotangents_agree(kernel: tuple[int, ...]) -> None:
    """⟨u, Jv⟩ = ⟨Jᵀu, v⟩ with ties: both take the same maximum, be the windows small or not."""
    x = image(kernel)
    model, generator = pooling(kernel, x), np.random.default_rng(2)
    v = generator.standard_normal(x.shape).astype(np.float32)
    pushed = run(onnx_grad.jvp(model), {"x": x, "x_tangent": v})["y0_tangent"]
    u = generator.standard_normal(pushed.shape).astype(np.float32)
    pulled = run(onnx_grad.vjp(model), {"x": x, "y0_grad": u})["x_grad"]
    assert np.vdot(u, pushed) == pytest.approx(np.vdot(pulled, v), rel=1e-5)


def test_the_gradient_of_tangents() -> None:
    """Cotangents go back to where the tangents were picked, and none to x."""
    x = image((2, 2))
    pushed = onnx_grad.jvp(pooling((2, 2), x))
    model = onnx_grad.vjp(pushed, wrt="x_tangent", of="y0_tangent")
    u = np.random.default_rng(2).standard_normal((3, 2, 2, 3)).astype(np.float32)
    values = run(model, {"x": x, "x_tangent": x, "y0_tangent_grad": u})
    expected = run(onnx_grad.vjp(pooling((2, 2), x)), {"x": x, "y0_grad": u})["x_grad"]
    np.testing.assert_array_equal(values["x_tangent_grad"], expected)


def test_no_mask_of_the_image_is_made() -> None:
    emitted = operators(onnx_grad.jvp(pooling((2, 2), image((2, 2)))))
    assert "GatherElements" in emitted
    assert not {"Equal", "Resize", "ScatterElements"} & set(emitted)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_boxes_cover_what_is_before_a_tap(kernel: list[int]) -> None:
    taps = list(itertools.product(*map(range, kernel)))
    for number, tap in enumerate(taps[1:], 1):
        boxes = _boxes_before(tap, tuple(kernel))
        covered = {inner for box in boxes for inner in itertools.product(*map(range, box))}
        assert covered == set(taps[:number])
