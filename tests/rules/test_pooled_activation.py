"""Relu and MaxPool share one mask, of the smaller tensor, only where nothing else can see the difference."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.builder import Builder
from tests.graphs import parse, run
from tests.oracle import SHAPE_KNOWLEDGE, with_shapes

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


@pytest.mark.parametrize("operator", ["Relu", "MaxPool"])
def test_a_rule_of_a_users_own_shares_nothing(operator: str) -> None:
    """It is told what arrives, unmasked, and what it gives is masked."""
    original = registry.lookup("", operator)

    @registry.gradient(operator)
    def all_ones(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
        x = node.inputs[0]
        assert x is not None
        return dy if operator == "Relu" else op.Expand(op.scalar_like(1.0, x), op.Shape(x))

    try:
        model = onnx_grad.vjp(parse(text(TILED)), wrt="x")
    finally:
        registry._table["", operator] = original
    x = np.full((1, 2, 4, 4), -1, np.float32)
    dy = np.ones((1, 2, 2, 2), np.float32)
    actual = run(model, {"x": x, "c": np.array(True), "y_grad": dy})["x_grad"]
    # Relu's is the identity: each window's first element. MaxPool's reaches all, and Relu stops it.
    assert actual.sum() == (8 if operator == "Relu" else 0)


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


@pytest.mark.parametrize(
    ("wrt", "of", "shared"),
    [("x", "y", True), (["x", "r"], "y", False), ("x", ["y", "r"], False)],
    ids=["alone", "given", "asked for"],
)
def test_tangents(wrt: str | list[str], of: str | list[str], shared: bool) -> None:
    """Those of y are the same, whether what is between moves on its own or its tangent is asked for."""
    generator, model = np.random.default_rng(1), parse(text(TILED))
    dx, dy = generator.standard_normal((3, 2, 4, 4)), generator.standard_normal((3, 2, 2, 2))
    inputs = {"x": point(), "c": np.array(True)}
    pushed = onnx_grad.jvp(model, wrt=wrt, of=of)
    (cast, *_) = [node for node in pushed.graph.node if node.op_type == "Cast"]
    assert (cast.input[0] == "r") != shared
    tangents = {"x_tangent": dx.astype(np.float32), "r_tangent": np.zeros_like(point())}
    given = {name: tangents[name] for name in (i.name for i in pushed.graph.input) if name in tangents}
    tangent = run(pushed, {**inputs, **given})["y_tangent"]
    gradient = run(onnx_grad.vjp(model, wrt="x"), {**inputs, "y_grad": dy.astype(np.float32)})["x_grad"]
    assert np.vdot(tangent, dy) == pytest.approx(np.vdot(dx, gradient), rel=1e-5)


def test_what_is_between_moves_its_maximum_on_its_own() -> None:
    model = onnx_grad.jvp(parse(text(TILED)), wrt=["x", "r"])
    x, ones = np.full((1, 2, 4, 4), -1, np.float32), np.ones((1, 2, 4, 4), np.float32)
    values = run(model, {"x": x, "c": np.array(True), "x_tangent": ones, "r_tangent": 3 * ones})
    np.testing.assert_array_equal(values["y_tangent"], np.full((1, 2, 2, 2), 3))
