"""Operators that choose among elements: where, clip, maximum, minimum."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.oracle import check, gradients, graph_model, single_node
from tests.rules.pointwise import slopes

X = np.array([[-2.3, -0.4, 0.3], [1.7, 0.9, 4.1]])


@pytest.mark.parametrize(
    ("condition", "a", "b"),
    [
        ((2, 3), (2, 3), (2, 3)),
        ((3,), (2, 3), ()),
        ((2, 1), (3,), (2, 3)),
        ((), (2, 3), (2, 1)),
        ((2, 3), (), ()),
        ((0, 3), (1, 3), ()),
    ],
    ids=str,
)
def test_where(condition: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> None:
    inputs = {
        "c": np.resize([True, False, True], condition),
        "a": np.resize(X, a),
        "b": np.resize(X[::-1], b),
    }
    check(single_node("Where", inputs), inputs, second_order=True)


def test_where_takes_nothing_from_an_infinite_cotangent_of_the_other_branch() -> None:
    inputs = {"c": np.array([True, False]), "a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    cotangent = {"y0": np.array([np.inf, np.nan])}
    actual = gradients(single_node("Where", inputs), inputs, cotangent, ["a", "b"])
    np.testing.assert_array_equal(actual["a"], [np.inf, 0])
    np.testing.assert_array_equal(actual["b"], [0, np.nan])


BOUNDS = {
    "both": (np.array(-1.0), np.array(2.0)),
    "low": (np.array(-1.0),),
    "high": (None, np.array(2.0)),
    "neither": (),
    "low, and none written out": (np.array(-1.0), None),
    "wrong order": (np.array(2.0), np.array(-1.0)),
}


@pytest.mark.parametrize("bounds", BOUNDS.values(), ids=list(BOUNDS))
def test_clip(bounds: tuple[np.ndarray | None, ...]) -> None:
    inputs = {"x": X, **dict(zip(("low", "high"), bounds, strict=False))}
    present = {name: a for name, a in inputs.items() if a is not None}
    check(single_node("Clip", inputs), present, second_order=True)


def test_clip_between_constants() -> None:
    clip = onnx.helper.make_node("Clip", ["x", "low", "high"], ["y"])
    bounds = {"low": np.array(-1.0), "high": np.array(2.0)}
    check(graph_model([clip], {"x": X}, ["y"], initializers=bounds), {"x": X}, second_order=True)


def test_clip_before_opset_11_has_its_bounds_as_attributes() -> None:
    inputs = {"x": X.astype(np.float32)}
    model = single_node("Clip", inputs, opset=6, min=-1.0, max=2.0)
    actual = gradients(model, inputs, {"y0": np.ones_like(inputs["x"])}, ["x"])
    np.testing.assert_array_equal(actual["x"], (X > -1) & (X < 2))


def test_clip_passes_the_gradient_at_its_bounds() -> None:
    inputs = {"x": np.array([-1.0, 2.0, -1.5, 2.5]), "low": np.array(-1.0), "high": np.array(2.0)}
    actual = slopes("Clip", inputs)
    np.testing.assert_array_equal(actual["x"], [1, 1, 0, 0])
    np.testing.assert_array_equal(actual["low"], 1)
    np.testing.assert_array_equal(actual["high"], 1)


def test_clip_agrees_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    for low, high in [(-1.0, 1.0), (0.0, 0.0), (1.0, -1.0)]:
        points = np.array([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0])
        tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (points, low, high)]
        torch.clamp(*tensors).sum().backward()
        actual = slopes("Clip", {"x": points, "low": np.array(low), "high": np.array(high)})
        for gradient, tensor in zip(actual.values(), tensors, strict=True):
            np.testing.assert_array_equal(gradient, tensor.grad)


@pytest.mark.parametrize("op_type", ["Max", "Min"])
@pytest.mark.parametrize(
    "shapes", [((2, 3),), ((2, 3), (3,)), ((2, 1), (1, 3)), ((2, 3), (), (2, 1)), ((0, 3), ())], ids=str
)
def test_extrema(op_type: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    generator = np.random.default_rng(2)
    inputs = {n: np.asarray(generator.standard_normal(s)) for n, s in zip("abc", shapes, strict=False)}
    check(single_node(op_type, inputs), inputs, second_order=True)


@pytest.mark.parametrize("op_type", ["Max", "Min"])
def test_ties_are_split_evenly(op_type: str) -> None:
    one = np.array([1.0, 1.0, np.inf, -np.inf])
    two = slopes(op_type, {"a": one, "b": one})
    np.testing.assert_array_equal(two["a"], 0.5)
    np.testing.assert_array_equal(two["b"], 0.5)
    three = slopes(op_type, {"a": np.array([1.0, 1.0]), "b": np.array(1.0), "c": np.array([1.0, 5.0])})
    c = 1 if op_type == "Max" else 0
    np.testing.assert_allclose(three["a"], [1 / 3, (1 - c) / 2])
    np.testing.assert_allclose(three["b"], 1 / 3 + (1 - c) / 2)
    np.testing.assert_allclose(three["c"], [1 / 3, c])


def test_extrema_agree_with_pytorch() -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    operands = np.array([0.0, 1.0, -1.0, np.inf]), np.array([0.0, 0.0, 2.0, np.inf])
    for op_type, function in [("Max", torch.maximum), ("Min", torch.minimum)]:
        tensors = [torch.tensor(a, requires_grad=True) for a in operands]
        function(*tensors).sum().backward()
        actual = slopes(op_type, dict(zip("ab", operands, strict=True)))
        for gradient, tensor in zip(actual.values(), tensors, strict=True):
            np.testing.assert_array_equal(gradient, tensor.grad)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_dtype_is_kept(dtype: type) -> None:
    x, one, minus_one = np.array([-2.0, 0.5, 3.0], dtype), np.array(1, dtype), np.array(-1, dtype)
    for gradient in slopes("Clip", {"x": x, "low": minus_one, "high": one}).values():
        assert gradient.dtype == dtype
    for op_type in ("Max", "Min"):
        assert slopes(op_type, {"x": x, "one": one})["x"].dtype == dtype
    assert slopes("Where", {"c": x > 0, "x": x, "one": one})["x"].dtype == dtype
