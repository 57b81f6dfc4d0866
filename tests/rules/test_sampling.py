"""Sampling an image at given points, and the points of an affine map."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.errors import UnsupportedOpError
from tests.oracle import check, gradients, graph_model, single_node, with_shapes
from tests.rules.forms import integers, normal

GRID = np.random.default_rng(3).uniform(-1.4, 1.4, (2, 2, 3, 2))
# The rank of an image must be known.
SHAPES = ("static", "symbolic")


@pytest.mark.parametrize("align_corners", [0, 1])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_grid_sample(mode: str, padding: str, align_corners: int) -> None:
    inputs = {"x": normal(2, 2, 3, 4), "grid": GRID}
    settings = {"mode": mode, "padding_mode": padding, "align_corners": align_corners}
    model = single_node("GridSample", inputs, opset=20, **settings)
    check(model, inputs, shapes=SHAPES, step=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_grid_sample_to_second_order(mode: str) -> None:
    inputs = {"x": normal(1, 1, 2, 3), "grid": GRID[:1, :1]}
    model = single_node("GridSample", inputs, opset=20, mode=mode, padding_mode="reflection")
    check(model, inputs, shapes=["static"], step=1e-5, rtol=1e-5, second_order=True)


def test_grid_sample_in_a_volume() -> None:
    grid = np.random.default_rng(3).uniform(-1.2, 1.2, (1, 1, 2, 2, 3))
    inputs = {"x": normal(1, 1, 2, 3, 2), "grid": grid}
    check(single_node("GridSample", inputs, opset=20), inputs, shapes=SHAPES, step=1e-5, rtol=1e-5)


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


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic", "nearest"])
def test_agrees_with_pytorch(mode: str, padding: str, align_corners: bool) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    grid = GRID
    if mode != "nearest":
        # On the borders themselves, where clamping stops the gradient; PyTorch rounds after it reflects.
        borders = np.array([-1.0, 1.0, 1.5, 0.3]).reshape(1, 2, 1, 2).repeat(2, 0)
        grid = np.concatenate([GRID, borders], axis=2)
    inputs = {"x": normal(2, 2, 3, 4), "grid": grid}
    x, points = (torch.tensor(array, requires_grad=True) for array in inputs.values())
    y = torch.nn.functional.grid_sample(x, points, mode, padding, align_corners)
    dy = normal(*y.shape, seed=2)
    y.backward(torch.tensor(dy))
    settings = {"mode": mode.removeprefix("bi"), "padding_mode": padding, "align_corners": int(align_corners)}
    actual = gradients(
        single_node("GridSample", inputs, opset=20, **settings), inputs, {"y0": dy}, ["x", "grid"]
    )
    np.testing.assert_allclose(actual["x"], x.grad, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(actual["grid"], points.grad, rtol=1e-9, atol=1e-12)


def test_an_unknown_rank_is_refused() -> None:
    model = with_shapes(
        single_node("GridSample", {"x": normal(2, 2, 3, 4), "grid": GRID}, opset=20), "unknown"
    )
    with pytest.raises(UnsupportedOpError, match="rank"):
        onnx_grad.vjp(model, ["x"])


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
    check(model, inputs, shapes=SHAPES, step=1e-5, rtol=1e-5)
