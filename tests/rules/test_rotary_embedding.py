"""RotaryEmbedding in all its layouts. It has no double precision, so NumPy computes the differences."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, numerical_gradient, single_node, with_shapes

BATCH, HEADS, SEQUENCE, SIZE = 2, 2, 3, 6
Arrays = Mapping[str, np.ndarray]


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def _inputs(packed: bool, rotated: int, positions: bool) -> dict[str, np.ndarray]:
    x = _random(BATCH, SEQUENCE, HEADS * SIZE) if packed else _random(BATCH, HEADS, SEQUENCE, SIZE)
    if not positions:
        angles = (BATCH, SEQUENCE, rotated // 2)
        return {"X": x, "cos": _random(*angles), "sin": _random(*angles)}
    # Position 1 occurs three times, position 3 never.
    ids = np.array([[0, 1, 2], [1, 4, 1]])
    return {"X": x, "cos": _random(5, rotated // 2), "sin": _random(5, rotated // 2), "ids": ids}


def _rotate(at: Arrays, interleaved: int, rotated: int) -> dict[str, np.ndarray]:
    """The specification, in complex numbers."""
    x, angles = at["X"], at["cos"] + 1j * at["sin"]
    angles = (angles[at["ids"]] if "ids" in at else angles)[:, :, None]
    packed = x.ndim == 3
    x = x.reshape(BATCH, SEQUENCE, HEADS, SIZE) if packed else x.transpose(0, 2, 1, 3)
    first = np.s_[..., 0:rotated:2] if interleaved else np.s_[..., : rotated // 2]
    second = np.s_[..., 1:rotated:2] if interleaved else np.s_[..., rotated // 2 : rotated]
    turned = (x[first] + 1j * x[second]) * angles
    y = x.copy()
    y[first], y[second] = turned.real, turned.imag
    return {"y0": y.reshape(BATCH, SEQUENCE, -1) if packed else y.transpose(0, 2, 1, 3)}


def _single(inputs: Arrays, dtype: type[np.floating] = np.float32) -> dict[str, np.ndarray]:
    return {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in inputs.items()}


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rotated", [SIZE, 4])
def test_every_layout(interleaved: int, positions: bool, packed: bool, rotated: int) -> None:
    attributes = {"interleaved": interleaved}
    if packed:
        attributes["num_heads"] = HEADS
    if rotated != SIZE:
        attributes["rotary_embedding_dim"] = rotated
    inputs = _inputs(packed, rotated, positions)
    model = single_node("RotaryEmbedding", _single(inputs), opset=23, **attributes)
    dy = {"y0": _random(*inputs["X"].shape)}
    forward = partial(_rotate, interleaved=interleaved, rotated=rotated)
    names = ["X", "cos", "sin"]
    for shapes in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, shapes), _single(inputs), _single(dy), names)
        for name in names:
            assert actual[name].dtype == np.float32
            expected = numerical_gradient(forward, inputs, name, dy)
            np.testing.assert_allclose(
                actual[name], expected, rtol=1e-5, atol=1e-5, err_msg=f"{name} {shapes}"
            )


@pytest.mark.parametrize("positions", [False, True])
def test_second_order(positions: bool) -> None:
    """Gradients are linear in each argument, so that differences are exact for any step, also a large one."""
    inputs = _inputs(False, SIZE, positions)
    inputs["y0_grad"] = _random(*inputs["X"].shape)
    model = single_node(
        "RotaryEmbedding", _single({k: v for k, v in inputs.items() if k != "y0_grad"}), opset=23
    )
    first = onnx_grad.vjp(model, ["X", "cos", "sin"])
    run = evaluator(first)
    wrt = ["X", "cos", "sin", "y0_grad"]
    cotangents = {f"{name}_grad": _random(*inputs[name].shape) for name in ("X", "cos", "sin")}
    actual = gradients(first, _single(inputs), _single(cotangents), wrt)
    for name in wrt:
        expected = numerical_gradient(lambda at: run(_single(at)), inputs, name, cotangents, step=1.0)
        np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_the_input_is_rotated_back_by_one_node() -> None:
    inputs = _single(_inputs(True, SIZE, True))
    model = single_node("RotaryEmbedding", inputs, opset=23, num_heads=HEADS)
    nodes = onnx_grad.vjp(model, ["X"]).graph.node
    assert [node.op_type for node in nodes] == ["RotaryEmbedding", "Neg", "RotaryEmbedding"]


def test_half_precision() -> None:
    inputs = _single(_inputs(False, SIZE, True), np.float16)
    dy = {"y0": _random(*inputs["X"].shape)}
    model = single_node("RotaryEmbedding", inputs, opset=23)
    actual = gradients(model, inputs, _single(dy, np.float16), ["X", "cos", "sin"])
    exact = {name: a.astype(np.float64) if a.dtype == np.float16 else a for name, a in inputs.items()}
    for name, value in actual.items():
        assert value.dtype == np.float16
        expected = numerical_gradient(partial(_rotate, interleaved=0, rotated=SIZE), exact, name, dy)
        np.testing.assert_allclose(value, expected, rtol=2e-2, atol=1e-2, err_msg=name)
