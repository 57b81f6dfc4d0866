"""Sampling an image at given points, and the points of an affine map."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.oracle import check, gradients, graph_model, single_node, with_shapes
from tests.rules.forms import integers, normal

GRID = np.random.default_rng(3).uniform(-1.4, 1.4, (2, 2, 3, 2))


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(mode: str, padding: str, align_corners: int) -> None:
    inputs = {"x": normal(2, 2, 3, 4), "grid": GRID}
    settings = {"mode": mode, "padding_mode": padding, "align_corners": align_corners}
    model = single_node("GridSample", inputs, opset=20, **settings)
    check(model, inputs, step=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_grid_sample_to_second_order(mode: str) -> None:
    inputs = {"x": normal(1, 1, 2, 3), "grid": GRID[:1, :1]}
    model = single_node("GridSample", inputs, opset=20, mode=mode, padding_mode="reflection")
    check(model, inputs, shapes=["static", "unknown"], step=1e-5, rtol=1e-5, second_order=True)


def test_grid_sample_in_a_volume() -> None:
    grid = np.random.default_rng(3).uniform(-1.2, 1.2, (1, 1, 2, 2, 3))
    inputs = {"x": normal(1, 1, 2, 3, 2), "grid": grid}
    check(single_node("GridSample", inputs, opset=20), inputs, step=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("mode", "newer"), [("bilinear", "linear"), ("bicubic", "cubic"), ("nearest", "nearest")]
)
def test_older_names_of_the_modes(mode: str, newer: str) -> None:
    inputs = {"x": normal(2, 2, 3, 4).astype(np.float32), "grid": GRID.astype(np.float32)}
    dy = {"y0": normal(2, 2, 2, 3).astype(np.float32)}
    older, newest = (
        gradients(single_node("GridSample", inputs, opset=opset, mode=name), inputs, dy, ["x", "grid"])
        for opset, name in [(16, mode), (22, newer)]
    )
    for name in ("x", "grid"):
        assert older[name].dtype == np.float32
        np.testing.assert_array_equal(older[name], newest[name])


def on_kinks(lengths: tuple[int, ...], align_corners: int) -> np.ndarray:
    """Points on pixels, halfway between two, and on the borders, inside of an image and far outside."""
    generator = np.random.default_rng(5)
    components = []
    for length in reversed(lengths):
        places = generator.integers(-4 * length, 4 * length, 50) / 2
        whole = max(length - 1, 1)
        components.append(2 * places / whole - 1 if align_corners else (2 * places + 1) / length - 1)
    return np.stack(components, axis=-1)


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize(
    ("lengths", "mode"),
    # PyTorch has no cubic sampling in a volume.
    [
        *itertools.product([(3, 4), (1, 3), (4, 1)], ["linear", "cubic", "nearest"]),
        *itertools.product([(2, 1, 3)], ["linear", "nearest"]),
    ],
    ids=str,
)
def test_agrees_with_pytorch(lengths: tuple[int, ...], mode: str, padding: str, align_corners: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    points = np.random.default_rng(4).uniform(-3, 3, (30, len(lengths)))
    if (mode, padding) != ("nearest", "reflection"):  # where PyTorch rounds after it reflects
        points = np.concatenate([points, on_kinks(lengths, align_corners)])
    grid = np.stack([points, points[::-1]]).reshape(2, *[1] * (len(lengths) - 1), *points.shape)
    inputs = {"x": normal(2, 2, *lengths), "grid": grid}
    x, points = (torch.tensor(array, requires_grad=True) for array in inputs.values())
    torch_mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    y = torch.nn.functional.grid_sample(x, points, torch_mode, padding, bool(align_corners))
    dy = normal(*y.shape, seed=2)
    y.backward(torch.tensor(dy))
    settings = {"mode": mode, "padding_mode": padding, "align_corners": align_corners}
    model = single_node("GridSample", inputs, opset=20, **settings)
    for knowledge in ("static", "unknown"):
        actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["x", "grid"])
        np.testing.assert_allclose(actual["x"], x.grad, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(actual["grid"], points.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("align_corners", [0, 1])
def test_rounds_before_it_reflects(align_corners: int) -> None:
    points = on_kinks((3, 4), align_corners)[np.newaxis, np.newaxis]
    inputs = {"x": normal(1, 1, 3, 4), "grid": points}
    settings = {"mode": "nearest", "padding_mode": "reflection", "align_corners": align_corners}
    check(single_node("GridSample", inputs, opset=20, **settings), inputs, wrt=["x"])


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("mode", ["linear", "cubic", "nearest"])
def test_points_at_infinity(mode: str, padding: str) -> None:
    """Where a perspective division leads: as far outside as any other point there."""
    x = normal(1, 1, 3, 4)
    settings = {"mode": mode, "padding_mode": padding}
    found = []
    for far in (np.inf, 9.0):
        inputs = {"x": x, "grid": np.array([[far, 0.1], [0.2, -far]]).reshape(1, 1, 2, 2)}
        model = single_node("GridSample", inputs, opset=20, **settings)
        found.append(gradients(model, inputs, {"y0": np.ones((1, 1, 1, 2))}, ["x", "grid"]))
    for name in ("x", "grid"):
        np.testing.assert_allclose(found[0][name], found[1][name], atol=1e-12)


def test_a_point_that_is_no_number_spoils_only_its_own_gradient() -> None:
    inputs = {"x": normal(1, 1, 3, 4), "grid": np.array([[np.nan, 0.1], [0.2, 0.3]]).reshape(1, 1, 2, 2)}
    model = single_node("GridSample", inputs, opset=20, mode="cubic")
    dgrid = gradients(model, inputs, {"y0": np.ones((1, 1, 1, 2))}, ["grid"])["grid"]
    assert np.isnan(dgrid[0, 0]).any(axis=-1).tolist() == [True, False]


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
@pytest.mark.parametrize(
    ("image", "grid"),
    [((0, 2, 3, 4), (0, 2, 2, 2)), ((2, 0, 3, 4), (2, 2, 2, 2)), ((2, 2, 3, 4), (2, 0, 3, 2))],
    ids=["no image", "no channel", "no point"],
)
def test_nothing_to_sample(image: tuple[int, ...], grid: tuple[int, ...], knowledge: str) -> None:
    inputs = {"x": np.zeros(image), "grid": np.zeros(grid)}
    model = with_shapes(single_node("GridSample", inputs, opset=20), knowledge)
    dy = {"y0": np.zeros((*image[:2], *grid[1:-1]))}
    for name, gradient in gradients(model, inputs, dy, ["x", "grid"]).items():
        np.testing.assert_array_equal(gradient, np.zeros_like(inputs[name]))


def test_more_axes_than_expected_fail_when_run() -> None:
    inputs = {"x": np.ones((1, 1, 1, 1, 1, 2)), "grid": np.zeros((1, 1, 1, 1, 1, 4))}
    model = with_shapes(single_node("GridSample", inputs, opset=20), "unknown")
    dy = {"y0": np.ones((1, 1, 1, 1, 1, 1))}
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="Expand"):
        gradients(model, inputs, dy, ["x"])


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize(
    ("theta", "size"), [((2, 2, 3), (2, 1, 3, 2)), ((1, 3, 4), (1, 1, 2, 3, 2))], ids=str
)
def test_affine_grid(theta: tuple[int, ...], size: tuple[int, ...], align_corners: int) -> None:
    inputs = {"theta": normal(*theta), "size": integers(*size)}
    check(single_node("AffineGrid", inputs, opset=20, align_corners=align_corners), inputs, second_order=True)


def test_a_spatial_transformer() -> None:
    nodes = [
        onnx.helper.make_node("AffineGrid", ["theta", "size"], ["grid"]),
        onnx.helper.make_node("GridSample", ["x", "grid"], ["y"], padding_mode="border"),
    ]
    inputs = {"x": normal(1, 1, 4, 3), "theta": np.array([[[0.7, 0.23, 0.11], [-0.13, 0.57, 0.07]]])}
    model = graph_model(nodes, inputs, ["y"], initializers={"size": integers(1, 1, 2, 3)}, opset=20)
    check(model, inputs, step=1e-5, rtol=1e-5)
