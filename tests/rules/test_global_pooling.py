"""Pooling over all positions of a channel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import SHAPE_KNOWLEDGE, gradients, single_node, with_shapes
from tests.single_precision import check_in_single_precision

SHAPES = [(2, 3, 4), (1, 2, 2, 3), (2, 1, 1, 2, 2), (1, 2, 1)]
OPERATORS: list[tuple[str, dict[str, Any]]] = [
    ("GlobalAveragePool", {}),
    ("GlobalMaxPool", {}),
    ("GlobalLpPool", {"p": 1}),
    ("GlobalLpPool", {}),
    ("GlobalLpPool", {"p": 3}),
]


def _image(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """No two elements closer than 0.25, none closer to zero than 0.1."""
    count = int(np.prod(shape))
    values = 0.25 * (np.random.default_rng(2).permutation(count) - count // 2) + 0.1
    return {"x": values.reshape(shape).astype(np.float32)}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("op_type", "attributes"), OPERATORS, ids=str)
def test_global_pooling(op_type: str, attributes: dict[str, Any], shape: tuple[int, ...]) -> None:
    inputs = _image(shape)
    model = single_node(op_type, inputs, **attributes)
    check_in_single_precision(model, inputs, step=0.02, tolerance=2e-3, second_order=True)


@pytest.mark.parametrize(("op_type", "attributes"), OPERATORS, ids=str)
def test_in_half_precision(op_type: str, attributes: dict[str, Any]) -> None:
    inputs = _image((2, 3, 2, 2))
    dy = np.random.default_rng(0).standard_normal((2, 3, 1, 1)).astype(np.float32)
    single = single_node(op_type, inputs, **attributes)
    expected = gradients(single, inputs, {"y0": dy}, ["x"])["x"]
    half = {"x": inputs["x"].astype(np.float16)}
    model = single_node(op_type, half, **attributes)
    dx = gradients(model, half, {"y0": dy.astype(np.float16)}, ["x"])["x"]
    assert dx.dtype == np.float16
    np.testing.assert_allclose(dx, expected, rtol=5e-3, atol=1e-3)


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_the_first_of_equal_maxima_takes_all(knowledge: str) -> None:
    inputs = {"x": np.array([[[[1.0, 2.0], [2.0, 2.0]]], [[[3.0, 3.0], [3.0, 3.0]]]], dtype=np.float32)}
    model = with_shapes(single_node("GlobalMaxPool", inputs), knowledge)
    dx = gradients(model, inputs, {"y0": np.array([[[[5.0]]], [[[7.0]]]], dtype=np.float32)}, ["x"])["x"]
    assert dx.tolist() == [[[[0, 5], [0, 0]]], [[[7, 0], [0, 0]]]]


def test_ties_as_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    x = torch.tensor([[[[1.0, 2.0], [2.0, 2.0]]]], requires_grad=True)
    (expected,) = torch.autograd.grad(torch.nn.functional.adaptive_max_pool2d(x, 1).sum(), x)
    inputs = {"x": x.detach().numpy()}
    dx = gradients(
        single_node("GlobalMaxPool", inputs), inputs, {"y0": np.ones((1, 1, 1, 1), dtype=np.float32)}, ["x"]
    )["x"]
    np.testing.assert_array_equal(dx, expected.numpy())


def test_norm_of_zeros() -> None:
    inputs = {"x": np.zeros((1, 2, 3), dtype=np.float32)}
    for p in (1, 2, 3):
        model = single_node("GlobalLpPool", inputs, p=p)
        assert not gradients(model, inputs, {"y0": np.ones((1, 2, 1), dtype=np.float32)}, ["x"])["x"].any()


def test_an_empty_batch() -> None:
    inputs = {"x": np.zeros((0, 2, 3, 3), dtype=np.float32)}
    for op_type, attributes in OPERATORS:
        for knowledge in SHAPE_KNOWLEDGE:
            model = with_shapes(single_node(op_type, inputs, **attributes), knowledge)
            dx = gradients(model, inputs, {"y0": np.zeros((0, 2, 1, 1), dtype=np.float32)}, ["x"])["x"]
            assert dx.shape == (0, 2, 3, 3)
