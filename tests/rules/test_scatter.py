"""Operators that write updates into a tensor at given indices."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, gradients, single_node
from tests.rules.forms import check_forms, integers, normal

REDUCTIONS = ["none", "add", "mul", "min", "max"]


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_scatter_elements(reduction: str, axis: int) -> None:
    # Written twice, an element would be undefined; it may be added to, multiplied or compared twice.
    indices = np.array([[0, 2, 1], [1, -3, 2]] if reduction == "none" else [[0, 2, 2], [0, 2, -1]])
    inputs = {"data": normal(3, 3), "indices": indices, "updates": normal(2, 3, seed=1)}
    check_forms("ScatterElements", inputs, axis=axis, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    ("distinct", "repeated", "slice_shape"),
    [
        ([[0], [-1]], [[0], [2], [-1]], (4, 2)),
        ([[0, 1], [2, -1]], [[0, 1], [2, -1], [2, 3]], (2,)),
        ([[[0, 1, 0]], [[2, -1, 1]]], [[[0, 1, 0]], [[0, 1, 0]]], ()),
    ],
    ids=["slices", "vectors", "elements"],
)
def test_scatter_nd(
    reduction: str, distinct: list[object], repeated: list[object], slice_shape: tuple[int, ...]
) -> None:
    indices = np.array(distinct if reduction == "none" else repeated)
    updates = normal(*indices.shape[:-1], *slice_shape, seed=1)
    inputs = {"data": normal(3, 4, 2), "indices": indices, "updates": updates}
    check_forms("ScatterND", inputs, reduction=reduction)


@pytest.mark.parametrize("op_type", ["ScatterElements", "ScatterND"])
def test_scatter_of_nothing(op_type: str) -> None:
    indices = np.zeros((0, 2) if op_type == "ScatterElements" else (0, 1), np.int64)
    check_forms(op_type, {"data": normal(3, 2), "indices": indices, "updates": normal(0, 2)})


@pytest.mark.parametrize("data", [[1.5, -2.0], [0.0, 0.0]], ids=str)
def test_products_with_one_and_with_two_zeros(data: list[float]) -> None:
    inputs = {
        "data": np.array(data),
        "indices": np.array([0, 0, 0, 1, 1]),
        "updates": np.array([0.0, 3.0, 0.0, 0.0, 2.0]),
    }
    check(single_node("ScatterElements", inputs, reduction="mul"), inputs, second_order=True)


@pytest.mark.parametrize("reduction", ["max", "min"])
def test_equal_extrema_share_evenly(reduction: str) -> None:
    sign = 1.0 if reduction == "max" else -1.0
    inputs = {
        "data": sign * np.array([2.0, 5.0, 1.0]),
        "indices": np.array([0, 0, 0, 1, 2]),
        "updates": sign * np.array([2.0, 2.0, 1.0, 4.0, 3.0]),
    }
    model = single_node("ScatterElements", inputs, reduction=reduction)
    actual = gradients(model, inputs, {"y0": np.array([6.0, 7.0, 8.0])}, ["data", "updates"])
    np.testing.assert_array_equal(actual["data"], [2, 7, 0])
    np.testing.assert_array_equal(actual["updates"], [2, 2, 0, 0, 8])


@pytest.mark.parametrize(("reduction", "in_pytorch"), [("max", "amax"), ("min", "amin"), ("mul", "prod")])
def test_scatter_elements_agrees_with_pytorch(reduction: str, in_pytorch: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    inputs = {
        "data": np.array([2.0, 0.0, 1.0]),
        "indices": np.array([0, 0, 1, 1, 2]),
        "updates": np.array([2.0, 0.0, 3.0, 3.0, 1.0]),
    }
    data, updates = (torch.tensor(inputs[name], requires_grad=True) for name in ("data", "updates"))
    torch.scatter_reduce(data, 0, torch.tensor(inputs["indices"]), updates, in_pytorch).sum().backward()
    model = single_node("ScatterElements", inputs, reduction=reduction)
    actual = gradients(model, inputs, {"y0": np.ones(3)}, ["data", "updates"])
    np.testing.assert_allclose(actual["data"], data.grad, rtol=1e-12)
    np.testing.assert_allclose(actual["updates"], updates.grad, rtol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("op_type", ["ScatterElements", "ScatterND"])
def test_single_precision(op_type: str, reduction: str) -> None:
    indices = np.array([0, 2, 2]) if op_type == "ScatterElements" else np.array([[0], [2], [2]])
    if reduction == "none":
        indices = indices[:2]
    data, updates = normal(3), normal(len(indices), seed=1)
    wide = {"data": data, "indices": indices, "updates": updates}
    narrow = {**wide, "data": data.astype(np.float32), "updates": updates.astype(np.float32)}
    dy = normal(3, seed=2)
    expected, actual = (
        gradients(
            single_node(op_type, inputs, reduction=reduction),
            inputs,
            {"y0": dy.astype(inputs["data"].dtype)},
            ["data", "updates"],
        )
        for inputs in (wide, narrow)
    )
    for name in ("data", "updates"):
        assert actual[name].dtype == np.float32
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5)


@pytest.mark.parametrize("op_type", ["ScatterElements", "ScatterND"])
def test_writing_in_half_precision(op_type: str) -> None:
    indices = np.array([0, 2]) if op_type == "ScatterElements" else np.array([[0], [2]])
    inputs = {
        "data": np.arange(3, dtype=np.float16),
        "indices": indices,
        "updates": np.ones(2, np.float16),
    }
    dy = np.array([1.0, 2.0, 3.0], np.float16)
    actual = gradients(single_node(op_type, inputs), inputs, {"y0": dy}, ["data", "updates"])
    assert actual["data"].dtype == actual["updates"].dtype == np.float16
    np.testing.assert_array_equal(actual["data"], [0, 2, 0])
    np.testing.assert_array_equal(actual["updates"], [1, 3])


@pytest.mark.parametrize(
    ("cache", "update", "axis", "starts", "mode"),
    [
        ((2, 4, 3), (2, 2, 3), -2, (1, 2), "linear"),
        ((2, 4, 3), (2, 2, 3), -2, (3, 2), "circular"),
        ((2, 4, 3), (2, 2, 3), 1, None, "linear"),
        ((2, 3, 4), (2, 3, 2), -1, (1, 2), "linear"),
        ((2, 1, 3, 2), (2, 1, 2, 2), 2, (1, 0), "linear"),
    ],
    ids=str,
)
def test_tensor_scatter(
    cache: tuple[int, ...], update: tuple[int, ...], axis: int, starts: tuple[int, ...] | None, mode: str
) -> None:
    inputs = {"cache": normal(*cache), "update": normal(*update, seed=1)}
    if starts is not None:
        inputs["starts"] = integers(*starts)
    check_forms("TensorScatter", inputs, axis=axis, mode=mode, opset=24)
