"""CausalConvWithState, expanded by its function body. It has no double precision: NumPy differentiates."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import Arrays, gradients, graph_model, numerical_gradient, single_node, with_shapes


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


def _convolve(at: Arrays, activation: str) -> dict[str, np.ndarray]:
    """The specification: an output sees its own input and those before it, the first of them in the state."""
    x, weight = at["input"], at["weight"][:, 0]
    taps = weight.shape[1]
    state = at.get("past_state", np.zeros((*x.shape[:2], taps - 1)))
    padded = np.concatenate([state, x], axis=2)
    y = sum(weight[:, i, None] * padded[..., i : i + x.shape[2]] for i in range(taps))
    y = y + at["bias"][:, None] if "bias" in at else y
    return {
        "y0": y / (1 + np.exp(-y)) if activation == "silu" else y,
        "y1": padded[..., padded.shape[2] - taps + 1 :],
    }


def _single(arrays: Arrays) -> dict[str, np.ndarray]:
    return {name: a.astype(np.float32) for name, a in arrays.items()}


def test_it_is_expanded() -> None:
    assert registry.lookup("", "CausalConvWithState", 27).state is State.EXPANDED


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("optional", [(), ("bias",), ("past_state",), ("bias", "past_state")], ids=str)
@pytest.mark.parametrize("taps", [1, 3])
def test_against_differences(activation: str, optional: tuple[str, ...], taps: int) -> None:
    inputs: dict[str, np.ndarray | None] = {
        "input": _random(2, 3, 4),
        "weight": _random(3, 1, taps),
        "bias": _random(3) if "bias" in optional else None,
        "past_state": _random(2, 3, taps - 1) if "past_state" in optional else None,
    }
    present = {name: a for name, a in inputs.items() if a is not None}
    single = {name: None if a is None else a.astype(np.float32) for name, a in inputs.items()}
    model = single_node("CausalConvWithState", single, opset=27, outputs=2, activation=activation)
    dy = {"y0": _random(2, 3, 4), "y1": _random(2, 3, taps - 1)}
    actual = gradients(model, _single(present), _single(dy), list(present))
    for name in present:
        assert actual[name].dtype == np.float32
        expected = numerical_gradient(partial(_convolve, activation=activation), present, name, dy)
        np.testing.assert_allclose(actual[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_symbolic_input() -> None:
    inputs = _single({"input": _random(2, 3, 4)})
    weights = _single({"weight": _random(3, 1, 2), "bias": _random(3)})
    node = onnx.helper.make_node("CausalConvWithState", ["input", *weights], ["y0", "y1"])
    model = with_shapes(graph_model([node], inputs, ["y0", "y1"], initializers=weights, opset=27), "symbolic")
    dy = {"y0": _random(2, 3, 4)}
    actual = gradients(model, inputs, _single(dy), ["input"])["input"]
    at = {name: a.astype(np.float64) for name, a in (inputs | weights).items()}
    expected = numerical_gradient(partial(_convolve, activation="none"), at, "input", dy)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_an_unknown_number_of_channels_is_refused() -> None:
    """The body needs it, and ONNX Runtime, which has no kernel either, cannot run such a node."""
    inputs = _single({"input": _random(2, 3, 4), "weight": _random(3, 1, 2)})
    model = with_shapes(single_node("CausalConvWithState", inputs, opset=27, outputs=2), "unknown")
    with pytest.raises(onnx_grad.ModelError, match="not known"):
        onnx_grad.vjp(model)
