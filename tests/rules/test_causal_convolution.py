"""CausalConvWithState, expanded by a body of our own. It has no double precision: NumPy differentiates."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import (
    SHAPE_KNOWLEDGE,
    Arrays,
    evaluator,
    gradients,
    graph_model,
    numerical_gradient,
    single_node,
    with_shapes,
)


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
@pytest.mark.parametrize(("length", "taps"), [(4, 1), (4, 3), (1, 3)])
def test_against_differences(length: int, taps: int, activation: str, optional: tuple[str, ...]) -> None:
    """Where no shape is known, ONNX Runtime cannot run the node itself, but its gradient graph."""
    inputs: dict[str, np.ndarray | None] = {
        "input": _random(2, 3, length),
        "weight": _random(3, 1, taps),
        "bias": _random(3) if "bias" in optional else None,
        "past_state": _random(2, 3, taps - 1) if "past_state" in optional else None,
    }
    present = {name: a for name, a in inputs.items() if a is not None}
    dy = {"y0": _random(2, 3, length), "y1": _random(2, 3, taps - 1)}
    expected = _expected(present, dy, activation)
    model = _model(inputs, activation=activation)
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), _single(present), _single(dy), list(present))
        for name in present:
            assert actual[name].dtype == np.float32
            np.testing.assert_allclose(
                actual[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=f"{name}, {knowledge} shapes"
            )


def _model(inputs: Mapping[str, np.ndarray | None], **attributes: str) -> onnx.ModelProto:
    single = {name: None if a is None else a.astype(np.float32) for name, a in inputs.items()}
    return single_node("CausalConvWithState", single, opset=27, outputs=2, **attributes)


def _expected(at: Arrays, dy: Arrays, activation: str = "none") -> dict[str, np.ndarray]:
    forward = partial(_convolve, activation=activation)
    return {name: numerical_gradient(forward, at, name, dy) for name in at}


@pytest.mark.parametrize("of", ["y0", "y1"])
@pytest.mark.parametrize("knowledge", ["static", "unknown"])
def test_one_output(of: str, knowledge: str) -> None:
    inputs = {"input": _random(2, 3, 4), "weight": _random(3, 1, 3), "bias": _random(3)}
    dy = {of: _random(2, 3, 4 if of == "y0" else 2)}
    model = with_shapes(_model(inputs), knowledge)
    actual = gradients(model, _single(inputs), _single(dy), list(inputs))
    for name, expected in _expected(inputs, dy).items():
        np.testing.assert_allclose(actual[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_at_second_order(knowledge: str) -> None:
    """Without activation a gradient is linear in each argument: differences are exact for a large step."""
    inputs = {"input": _random(1, 2, 3), "weight": _random(2, 1, 2), "past_state": _random(1, 2, 1)}
    operands = {name: inputs.get(name) for name in ("input", "weight", "bias", "past_state")}
    model = with_shapes(_model(operands), knowledge)
    first = onnx_grad.vjp(model, list(inputs), ["y0"])
    at = {**inputs, "y0_grad": _random(1, 2, 3)}
    dx = {f"{name}_grad": _random(*inputs[name].shape) for name in inputs}
    run = evaluator(first)
    actual = gradients(first, _single(at), _single(dx), list(at))
    for name in at:
        expected = numerical_gradient(lambda moved: run(_single(moved)), at, name, dx, step=1.0)
        np.testing.assert_allclose(actual[name], expected, rtol=1e-4, atol=1e-4, err_msg=name)


def test_swish_is_another_name_of_silu() -> None:
    inputs = {"input": _random(2, 3, 4), "weight": _random(3, 1, 2)}
    dy = _single({"y0": _random(2, 3, 4)})
    swish, silu = (
        gradients(_model(inputs, activation=name), _single(inputs), dy, list(inputs))
        for name in ("swish", "silu")
    )
    for name in inputs:
        np.testing.assert_array_equal(swish[name], silu[name])


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
def test_half_precision(knowledge: str) -> None:
    inputs = {"input": _random(2, 3, 4), "weight": _random(3, 1, 2), "bias": _random(3)}
    half = {name: a.astype(np.float16) for name, a in inputs.items()}
    dy = {"y0": _random(2, 3, 4)}
    model = single_node("CausalConvWithState", half, opset=27, outputs=2, activation="silu")
    actual = gradients(with_shapes(model, knowledge), half, {"y0": dy["y0"].astype(np.float16)}, list(half))
    for name, expected in _expected(inputs, dy, "silu").items():
        assert actual[name].dtype == np.float16
        np.testing.assert_allclose(actual[name], expected, rtol=2e-2, atol=2e-2, err_msg=name)


def test_known_weights_make_one_convolution() -> None:
    """Their shape tells the number of channels."""
    inputs = _single({"input": _random(2, 3, 4)})
    weights = _single({"weight": _random(3, 1, 2), "bias": _random(3)})
    node = onnx.helper.make_node("CausalConvWithState", ["input", *weights], ["y0", "y1"])
    model = with_shapes(graph_model([node], inputs, ["y0", "y1"], initializers=weights, opset=27), "symbolic")
    assert "Range" not in {n.op_type for n in onnx_grad.vjp(model, ["input"], ["y0"]).graph.node}
    dy = {"y0": _random(2, 3, 4)}
    actual = gradients(model, inputs, _single(dy), ["input"])["input"]
    at = {name: a.astype(np.float64) for name, a in (inputs | weights).items()}
    np.testing.assert_allclose(actual, _expected(at, dy)["input"], rtol=1e-5, atol=1e-5)


def test_an_unknown_type_is_refused() -> None:
    inputs = _single({"input": _random(2, 3, 4), "weight": _random(3, 1, 2)})
    model = _model(inputs)
    model.graph.node[0].input[0] = "before"
    model.graph.node.insert(0, onnx.helper.make_node("unknown", ["input"], ["before"], domain="custom"))
    model.opset_import.append(onnx.helper.make_opsetid("custom", 1))
    with pytest.raises(onnx_grad.ModelError):
        onnx_grad.vjp(model, ["weight"], ["y0"])
