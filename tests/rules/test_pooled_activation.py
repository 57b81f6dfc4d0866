"""Relu and MaxPool share one mask, of the smaller tensor, only where nothing else can see the difference."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_grad
from tests.graphs import parse, run
from tests.oracle import SHAPE_KNOWLEDGE, check_tangents, with_shapes

TILED = "kernel_shape = [2, 2], strides = [2, 2]"
OVERLAPPING = "kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]"
# What nobody sees of r, and what somebody does.
ALONE = ""
READ_TWICE = "s = ReduceMax(r)"
IN_A_BODY = (
    "t = If (c) <then_branch = t () => (float u) { u = ReduceMax(r) }, "
    "else_branch = e () => (float v) { v = ReduceMin(r) }>"
)


def text(pool: str, more: str = ALONE) -> str:
    return (
        "g (float[n, 2, 4, 4] x, bool c) => (float[n, 2, 2, 2] y) "
        f"{{ r = Relu(x)  y = MaxPool <{pool}> (r)  {more} }}"
    )


def point() -> np.ndarray:
    """With ties of positive numbers, of zeros, and windows of negative numbers."""
    generator = np.random.default_rng(0)
    x = generator.integers(-3, 4, (3, 2, 4, 4)).astype(np.float32)
    x[0] = -1
    return x


@pytest.mark.parametrize("pool", [TILED, OVERLAPPING], ids=["tiled", "overlapping"])
def test_the_gradient_is_that_of_autograd(pool: str) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    kernel, padding = (2, 0) if pool is TILED else (3, 1)
    x, dy = point(), np.random.default_rng(1).standard_normal((3, 2, 2, 2)).astype(np.float32)
    leaf = torch.tensor(x, requires_grad=True)
    torch.nn.functional.max_pool2d(leaf.relu(), kernel, 2, padding).backward(torch.tensor(dy))
    for knowledge in SHAPE_KNOWLEDGE:
        model = with_shapes(parse(text(pool)), knowledge)
        for wrt in ("x", ["x", "r"]):
            values = run(onnx_grad.vjp(model, wrt=wrt, of="y"), {"x": x, "c": np.array(True), "y_grad": dy})
            np.testing.assert_array_equal(values["x_grad"], leaf.grad.numpy())


def test_what_is_between_them_keeps_its_gradient() -> None:
    """Of a window without positive numbers, the first element has it, though Relu passes nothing on."""
    model = onnx_grad.vjp(parse(text(TILED)), wrt=["x", "r"])
    x = np.full((1, 2, 4, 4), -1, np.float32)
    values = run(model, {"x": x, "c": np.array(True), "y_grad": np.ones((1, 2, 2, 2), np.float32)})
    assert values["r_grad"].sum() == 8
    assert values["x_grad"].sum() == 0


@pytest.mark.parametrize(
    ("more", "wrt", "shared"),
    [(ALONE, "x", True), (ALONE, ["x", "r"], False), (READ_TWICE, "x", False), (IN_A_BODY, "x", False)],
    ids=["alone", "asked for", "read twice", "read in a body"],
)
def test_where_the_mask_is_shared(more: str, wrt: str | list[str], shared: bool) -> None:
    model = onnx_grad.vjp(parse(text(OVERLAPPING, more)), wrt=wrt, of="y")
    (cast, *_) = [node for node in model.graph.node if node.op_type == "Cast"]
    assert (cast.input[0] == "y") == shared


def test_a_pool_in_a_body() -> None:
    """What is behind the border of a body masks nothing for what is before it."""
    body = (
        "y = If (c) <then_branch = t () => (float[n, 2, 2, 2] u) { u = MaxPool <" + TILED + "> (r) }, "
        "else_branch = e () => (float[n, 2, 2, 2] v) { v = AveragePool <" + TILED + "> (r) }>"
    )
    inside = parse(f"g (float[n, 2, 4, 4] x, bool c) => (float[n, 2, 2, 2] y) {{ r = Relu(x)  {body} }}")
    x, dy = point(), np.random.default_rng(1).standard_normal((3, 2, 2, 2)).astype(np.float32)
    feeds = {"x": x, "c": np.array(True), "y_grad": dy}
    expected = run(onnx_grad.vjp(parse(text(TILED)), wrt="x"), feeds)["x_grad"]
    np.testing.assert_array_equal(run(onnx_grad.vjp(inside, wrt="x"), feeds)["x_grad"], expected)


def test_tangents_are_dual() -> None:
    model, x = parse(text(TILED)), point()
    dy = np.random.default_rng(1).standard_normal((3, 2, 2, 2)).astype(np.float32)
    inputs = {"x": x, "c": np.array(True)}
    dx = run(onnx_grad.vjp(model, wrt="x"), {**inputs, "y_grad": dy})["x_grad"]
    check_tangents(model, inputs, {"y": dy}, {"x": dx}, 1e-5, 1e-5)
