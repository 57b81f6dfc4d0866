"""Transforms of transforms: to any order, with readable names, and dual to each other at every order."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx

import onnx_grad
from onnx_grad import GradientFunction
from tests.graphs import input_names, output_names, parse, run
from tests.oracle import (
    SHAPE_KNOWLEDGE,
    assert_dual,
    evaluator,
    noted_names,
    quiet_jvp,
    quiet_vjp,
    with_shapes,
)
from tests.test_random_graphs import graphs, has_ties

CUBE = "g (float[n] x) => (float s) { q = Mul(x, x)  c = Mul(q, x)  s = ReduceSum<keepdims=0>(c) }"
X = np.float32([0.5, -2, 3])
V = np.float32([1, 0.25, -1])


def test_grad_of_grad() -> None:
    once = onnx_grad.grad(parse(CUBE))
    total = parse("h (float[n] x_grad) => (float t) { t = ReduceSum<keepdims=0>(x_grad) }", ir_version=10)
    summed = onnx.compose.merge_models(once, total, io_map=[("x_grad", "x_grad")], outputs=["s", "t"])
    twice = onnx_grad.grad(summed, of="t")
    np.testing.assert_allclose(run(twice, {"x": X})["x_grad_1"], 6 * X, rtol=1e-6)


def test_hvp_is_the_tangent_of_the_gradient() -> None:
    product = onnx_grad.hvp(parse(CUBE))
    assert input_names(product) == ["x", "x_tangent"]
    assert output_names(product) == ["s", "x_hvp"]
    by_hand = onnx_grad.jvp(onnx_grad.grad(parse(CUBE)), of="x_grad")
    assert output_names(by_hand) == ["s", "x_grad", "x_grad_tangent"]
    for model, name in ((product, "x_hvp"), (by_hand, "x_grad_tangent")):
        np.testing.assert_allclose(run(model, {"x": X, "x_tangent": V})[name], 6 * X * V, rtol=1e-6)


def test_third_order() -> None:
    """The gradient of the product of the Hessian with a vector."""
    product = onnx_grad.hvp(parse(CUBE))
    third = onnx_grad.vjp(product, wrt="x", of="x_hvp")
    values = run(third, {"x": X, "x_tangent": V, "x_hvp_grad": V})
    np.testing.assert_allclose(values[noted_names(third, "gradients")["x"]], 6 * V * V, rtol=1e-6)


def test_jvp_of_vjp_and_vjp_of_jvp() -> None:
    model = parse("g (float[n] x) => (float[n] y) { y = Sin(x) }")
    pushed = onnx_grad.jvp(onnx_grad.vjp(model), wrt="x", of="x_grad")
    assert input_names(pushed) == ["x", "y_grad", "x_tangent"]
    pulled = onnx_grad.vjp(onnx_grad.jvp(model), wrt="x", of="y_tangent")
    assert input_names(pulled) == ["x", "x_tangent", "y_tangent_grad"]
    forward = run(pushed, {"x": X, "y_grad": V, "x_tangent": V})["x_grad_tangent"]
    backward = run(pulled, {"x": X, "x_tangent": V, "y_tangent_grad": V})["x_grad"]
    np.testing.assert_allclose(forward, -np.sin(X) * V * V, rtol=1e-5)
    np.testing.assert_allclose(backward, forward, rtol=1e-5)


def test_hessian_of_vmap() -> None:
    """The Hessian of each example by itself, in blocks: an example's sum does not vary with another."""
    batch = np.stack([X, V])
    function = GradientFunction(onnx_grad.vmap(parse(CUBE)), transform="hessian")
    blocks = function(x=batch).hessians["s"]["x"]["x"]
    expected = np.einsum("ab,ac,bk,kl->abkcl", np.eye(2), np.eye(2), 6 * batch, np.eye(3))
    np.testing.assert_allclose(blocks, expected, rtol=1e-5, atol=1e-6)


def test_vmap_of_hvp() -> None:
    each = onnx_grad.vmap(onnx_grad.hvp(parse(CUBE)), {"x": None, "x_tangent": 0})
    basis = np.eye(3, dtype=np.float32)
    hessian = run(each, {"x": X, "x_tangent": basis})["x_hvp"]
    np.testing.assert_allclose(hessian, np.diag(6 * X), rtol=1e-6)


def test_names_stay_unique() -> None:
    model = onnx_grad.jvp(onnx_grad.jvp(onnx_grad.jvp(parse(CUBE), of="s"), wrt="x", of="s"), wrt="x", of="s")
    names = [*input_names(model), *output_names(model)]
    assert len(set(names)) == len(names)
    assert noted_names(model, "tangents") == {"x": "x_tangent_2"}
    onnx.checker.check_model(model, full_check=True)


@hypothesis.given(case=graphs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE))
@hypothesis.settings(max_examples=15, deadline=None)
def test_dual_to_the_third_order(case: tuple[onnx.ModelProto, dict[str, np.ndarray]], knowledge: str) -> None:
    """⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩ for a model, for its gradient, and for the tangent of that."""
    model, inputs = case
    hypothesis.assume(not has_ties(model))
    model = with_shapes(model, knowledge)
    assert_dual(model, inputs, rtol=1e-8)
    gradient = quiet_vjp(model, list(inputs))
    values = evaluator(model)(inputs)
    cotangents = {dy: np.asarray(np.cos(values[y])) for y, dy in noted_names(gradient, "cotangents").items()}
    assert_dual(gradient, {**inputs, **cotangents}, rtol=1e-8)
    product = quiet_jvp(gradient, list(inputs), list(noted_names(gradient, "gradients").values()))
    tangents = {dx: np.asarray(np.sin(inputs[x])) for x, dx in noted_names(product, "tangents").items()}
    assert_dual(product, {**inputs, **cotangents, **tangents}, rtol=1e-7)
