"""Pooling: every attribute, known and unknown sizes, ties.

ONNX Runtime has no float64 kernels for AveragePool and LpPool, and onnx's reference evaluator computes some
of their forms differently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, single_node, with_shapes
from tests.single_precision import check_in_single_precision

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]

# Shape of x, attributes: valid for every kind of pooling.
GEOMETRIES: list[tuple[Shape, dict[str, Any]]] = [
    ((2, 2, 4), {"kernel_shape": [2]}),
    ((1, 1, 5), {"kernel_shape": [2], "strides": [2]}),
    ((1, 1, 5), {"kernel_shape": [3], "pads": [2, 1]}),
    ((1, 2, 6), {"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    ((1, 1, 6), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ((1, 1, 6), {"kernel_shape": [3], "strides": [2], "pads": [1, 1], "ceil_mode": 1}),
    ((1, 1, 7), {"kernel_shape": [4], "strides": [3], "pads": [0, 2], "ceil_mode": 1}),
    ((1, 1, 5), {"kernel_shape": [3], "auto_pad": "VALID"}),
    ((1, 1, 6), {"kernel_shape": [3], "strides": [2], "auto_pad": "VALID", "ceil_mode": 1}),
    ((1, 1, 4), {"kernel_shape": [4], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 4), {"kernel_shape": [4], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 6), {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 6), {"kernel_shape": [3], "strides": [2], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 6), {"kernel_shape": [4], "strides": [3], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 6), {"kernel_shape": [2], "strides": [4]}),
    ((1, 1, 3, 4), {"kernel_shape": [2, 3], "strides": [1, 2], "pads": [0, 1, 1, 0]}),
    ((1, 2, 3, 3), {"kernel_shape": [3, 3]}),
    ((1, 1, 3, 3), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    ((1, 1, 4), {"kernel_shape": [2], "strides": [2]}),
    ((1, 2, 2, 3), {"kernel_shape": [2, 3], "strides": [2, 3]}),
    ((1, 1, 2, 2, 2), {"kernel_shape": [2, 1, 2], "strides": [2, 1, 2]}),
    ((1, 1, 2, 3, 3), {"kernel_shape": [1, 2, 2], "strides": [1, 1, 2], "pads": [0, 0, 1, 0, 1, 0]}),
]
DILATED: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 1, 6), {"kernel_shape": [2], "dilations": [3], "pads": [1, 1]}),
    ((1, 1, 6), {"kernel_shape": [3], "dilations": [2], "strides": [2], "pads": [1, 1], "ceil_mode": 1}),
]


def _image(shape: Shape) -> Arrays:
    """No two elements closer than 0.25, none closer to zero than 0.1."""
    count = int(np.prod(shape))
    values = 0.25 * (np.random.default_rng(2).permutation(count) - count // 2) + 0.1
    return {"x": values.reshape(shape).astype(np.float32)}


@pytest.mark.parametrize("opset", [18, 22])
@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize(("shape", "attributes"), GEOMETRIES, ids=str)
def test_average_pool(shape: Shape, attributes: dict[str, Any], count_include_pad: int, opset: int) -> None:
    inputs = _image(shape)
    model = single_node("AveragePool", inputs, opset=opset, count_include_pad=count_include_pad, **attributes)
    check_in_single_precision(model, inputs)


@pytest.mark.parametrize("count_include_pad", [0, 1])
@pytest.mark.parametrize(("shape", "attributes"), DILATED, ids=str)
def test_dilated_average_pool(shape: Shape, attributes: dict[str, Any], count_include_pad: int) -> None:
    inputs = _image(shape)
    model = single_node("AveragePool", inputs, opset=19, count_include_pad=count_include_pad, **attributes)
    check_in_single_precision(model, inputs)


@pytest.mark.parametrize("p", [1, 2, 3])
@pytest.mark.parametrize(("shape", "attributes"), GEOMETRIES + DILATED, ids=str)
def test_lp_pool(shape: Shape, attributes: dict[str, Any], p: int) -> None:
    inputs = _image(shape)
    model = single_node("LpPool", inputs, p=p, **attributes)
    check_in_single_precision(model, inputs, step=0.02, tolerance=1e-3)


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize(("shape", "attributes"), GEOMETRIES + DILATED, ids=str)
def test_max_pool(shape: Shape, attributes: dict[str, Any], outputs: int) -> None:
    inputs = _image(shape)
    model = single_node("MaxPool", inputs, outputs=outputs, **attributes)
    check_in_single_precision(model, inputs, step=0.02)


LARGE: list[tuple[str, Shape, dict[str, Any]]] = [
    ("AveragePool", (1, 1, 600), {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}),
    ("AveragePool", (1, 1, 600), {"kernel_shape": [3], "strides": [2], "ceil_mode": 1}),
    ("AveragePool", (1, 1, 500), {"kernel_shape": [4], "strides": [3], "auto_pad": "SAME_LOWER"}),
    ("AveragePool", (1, 1, 300, 2), {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0], "count_include_pad": 1}),
    ("LpPool", (1, 1, 300), {"kernel_shape": [2], "strides": [3], "pads": [0, 1]}),
]


@pytest.mark.parametrize(("op_type", "shape", "attributes"), LARGE, ids=str)
def test_long_axes(op_type: str, shape: Shape, attributes: dict[str, Any]) -> None:
    """Too long for a matrix: the gradient is a `ConvTranspose`, and equals that for a short axis."""
    generator = np.random.default_rng(0)
    inputs = {"x": generator.standard_normal(shape).astype(np.float32)}
    model = single_node(op_type, inputs, **attributes)
    dy = {"y0": generator.standard_normal(evaluator(model)(inputs)["y0"].shape).astype(np.float32)}
    direction = generator.standard_normal(shape).astype(np.float32)
    moved = [evaluator(model)({"x": inputs["x"] + h * direction})["y0"] for h in (0.01, -0.01)]
    expected = float(((moved[0] - moved[1]).astype(np.float64) * dy["y0"]).sum() / 0.02)
    for shapes in SHAPE_KNOWLEDGE:
        dx = gradients(with_shapes(model, shapes), inputs, dy, ["x"])["x"]
        assert float((dx * direction).sum(dtype=np.float64)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool", "MaxPool"])
@pytest.mark.parametrize(
    ("shape", "attributes"), [GEOMETRIES[i] for i in (1, 5, 12, 15, 19)] + [DILATED[1]], ids=str
)
def test_second_order(op_type: str, shape: Shape, attributes: dict[str, Any]) -> None:
    inputs = _image(shape)
    model = single_node(op_type, inputs, opset=19, **attributes)
    check_in_single_precision(model, inputs, step=0.02, tolerance=2e-3, second_order=True)


TIED = np.array([[[[1.0, 3.0, 3.0, 0.0], [3.0, 2.0, 0.0, 3.0], [5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0]]]])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_the_first_of_equal_maxima_takes_all(dtype: type, knowledge: str) -> None:
    inputs = {"x": TIED.astype(dtype)}
    model = with_shapes(single_node("MaxPool", inputs, kernel_shape=[2, 2], strides=[2, 2]), knowledge)
    dy = {"y0": np.array([[[[1.0, 2.0], [3.0, 4.0]]]], dtype=dtype)}
    dx = gradients(model, inputs, dy, ["x"])["x"]
    assert dx.dtype == dtype
    assert dx.tolist() == [[[[0, 1, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]]]]


@pytest.mark.parametrize("attributes", [{"stride": 2}, {"stride": 1, "padding": 1}, {"stride": 3}], ids=str)
def test_ties_as_pytorch(attributes: dict[str, int]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    stride, padding = attributes["stride"], attributes.get("padding", 0)
    inputs = {"x": np.tile(TIED, (1, 2, 1, 1)).astype(np.float32)}
    x = torch.tensor(inputs["x"], requires_grad=True)
    y = torch.nn.functional.max_pool2d(x, 2, stride, padding)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    (expected,) = torch.autograd.grad(y, x, torch.tensor(dy))
    model = single_node("MaxPool", inputs, kernel_shape=[2, 2], strides=[stride] * 2, pads=[padding] * 4)
    np.testing.assert_allclose(gradients(model, inputs, {"y0": dy}, ["x"])["x"], expected.numpy())


# Operator, PyTorch's function, shape of x, its arguments.
AS_PYTORCH: list[tuple[str, str, Shape, dict[str, Any]]] = [
    ("MaxPool", "max_pool1d", (2, 3, 11), {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2}),
    ("MaxPool", "max_pool1d", (1, 2, 7), {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True}),
    ("MaxPool", "max_pool2d", (2, 2, 7, 6), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("MaxPool", "max_pool2d", (1, 2, 5, 8), {"kernel_size": 2, "stride": 3, "padding": 1, "ceil_mode": True}),
    ("MaxPool", "max_pool3d", (1, 2, 4, 5, 3), {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    (
        "AveragePool",
        "avg_pool1d",
        (2, 2, 9),
        {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True},
    ),
    ("AveragePool", "avg_pool2d", (2, 2, 7, 5), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("AveragePool", "avg_pool2d", (1, 2, 7, 6), {"kernel_size": 3, "stride": 2, "padding": 1}),
    (
        "AveragePool",
        "avg_pool2d",
        (1, 1, 5, 3),
        {"kernel_size": 2, "stride": 2, "padding": 1, "ceil_mode": True},
    ),
    ("AveragePool", "avg_pool3d", (1, 1, 4, 5, 3), {"kernel_size": 2, "stride": 2, "ceil_mode": True}),
    ("LpPool", "lp_pool1d", (2, 2, 9), {"kernel_size": 3, "stride": 2, "norm_type": 3}),
    ("LpPool", "lp_pool2d", (1, 2, 7, 6), {"kernel_size": 3, "stride": 2, "norm_type": 2}),
    ("LpPool", "lp_pool2d", (1, 2, 4, 5), {"kernel_size": 2, "stride": 1, "norm_type": 1}),
]


AS_PYTORCH += [
    (op_type, function, shape, {**arguments, "count_include_pad": False})
    for op_type, function, shape, arguments in AS_PYTORCH
    if op_type == "AveragePool"
]


@pytest.mark.parametrize(("op_type", "function", "shape", "arguments"), AS_PYTORCH, ids=str)
def test_as_pytorch(op_type: str, function: str, shape: Shape, arguments: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    inputs = {"x": np.abs(_image(shape)["x"])} if op_type == "LpPool" else _image(shape)
    x = torch.tensor(inputs["x"], requires_grad=True)
    y = getattr(torch.nn.functional, function)(x, **arguments)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    (expected,) = torch.autograd.grad(y, x, torch.tensor(dy))
    model = single_node(op_type, inputs, opset=19, **_attributes(op_type, len(shape) - 2, arguments))
    for knowledge in SHAPE_KNOWLEDGE:
        dx = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["x"])["x"]
        np.testing.assert_allclose(dx, expected.numpy(), rtol=1e-4, atol=1e-5)


def _attributes(op_type: str, rank: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """The attributes of a node for the arguments of a function of PyTorch, with its defaults."""
    kernel = arguments["kernel_size"]
    attributes = {
        "kernel_shape": [kernel] * rank,
        "strides": [arguments.get("stride", kernel)] * rank,
        "pads": [arguments.get("padding", 0)] * 2 * rank,
        "ceil_mode": int(arguments.get("ceil_mode", False)),
        "dilations": [arguments.get("dilation", 1)] * rank,
    }
    match op_type:
        case "AveragePool":
            attributes["count_include_pad"] = int(arguments.get("count_include_pad", True))
        case "LpPool":
            attributes["p"] = arguments["norm_type"]
    return attributes


def test_positions_in_column_major_order() -> None:
    inputs = _image((1, 2, 3, 3))
    model = single_node("MaxPool", inputs, outputs=2, kernel_shape=[2, 2], storage_order=1)
    check_in_single_precision(model, inputs, step=0.02)


@pytest.mark.parametrize("strides", [[2], [1]])
def test_windows_of_nothing_but_infinities(strides: list[int]) -> None:
    """At most one position of a window gets the cotangent, whatever ONNX Runtime says the maximum is."""
    inputs = {"x": np.array([[[-np.inf, -np.inf, 1.0, 2.0]]], dtype=np.float32)}
    model = single_node("MaxPool", inputs, kernel_shape=[2], strides=strides)
    count = evaluator(model)(inputs)["y0"].shape[2]
    dx = gradients(model, inputs, {"y0": np.ones((1, 1, count), dtype=np.float32)}, ["x"])["x"]
    assert dx[0, 0, :2].sum() <= 1


def test_windows_that_miss_the_image() -> None:
    """The maximum of nothing is a constant."""
    inputs = _image((1, 2, 2))
    model = single_node("MaxPool", inputs, kernel_shape=[2], dilations=[3], pads=[1, 1])
    dy = {"y0": np.ones((1, 2, 1), dtype=np.float32)}
    for shapes in SHAPE_KNOWLEDGE:
        assert not gradients(with_shapes(model, shapes), inputs, dy, ["x"])["x"].any()


@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool_of_zeros(p: int) -> None:
    inputs = {"x": np.array([[[0.0, 0.0, 0.0, 3.0, -4.0]]], dtype=np.float32)}
    model = single_node("LpPool", inputs, p=p, kernel_shape=[2], strides=[1])
    dx = gradients(model, inputs, {"y0": np.ones((1, 1, 4), dtype=np.float32)}, ["x"])["x"]
    last = {1: -1.0, 2: -0.8, 3: -16 / 91 ** (2 / 3)}[p]
    assert np.isfinite(dx).all()
    assert dx[0, 0, :2].tolist() == [0, 0]
    assert dx[0, 0, 4] == pytest.approx(last, rel=1e-6)


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool", "MaxPool"])
def test_an_empty_batch(op_type: str) -> None:
    inputs = {"x": np.zeros((0, 2, 5, 4), dtype=np.float32)}
    model = single_node(op_type, inputs, kernel_shape=[2, 2], strides=[2, 1], pads=[1, 0, 0, 0])
    dy = {"y0": evaluator(model)(inputs)["y0"]}
    for shapes in SHAPE_KNOWLEDGE:
        assert gradients(with_shapes(model, shapes), inputs, dy, ["x"])["x"].shape == (0, 2, 5, 4)
