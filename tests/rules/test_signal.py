"""Fourier transforms of every kind."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnx_grad import registry
from onnx_grad.registry import State
from tests.oracle import check, gradients, graph_model, single_node


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


# Length of the last axis of the input, attributes.
KINDS = {
    "of real numbers": (1, {}),
    "of complex numbers": (2, {}),
    "one-sided": (1, {"onesided": 1}),
    "inverse of real numbers": (1, {"inverse": 1}),
    "inverse of complex numbers": (2, {"inverse": 1}),
    "inverse one-sided": (2, {"inverse": 1, "onesided": 1}),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("opset", [18, 20])
def test_dft(kind: str, length: int, opset: int) -> None:
    parts, attributes = KINDS[kind]
    inputs = {"x": _random(2, length, 1, parts)}
    node = onnx.helper.make_node("DFT", ["x", "", "axis"] if opset >= 20 else ["x"], ["y"], **attributes)
    model = graph_model(
        [node], inputs, ["y"], initializers={"axis": np.asarray(1)} if opset >= 20 else {}, opset=opset
    )
    check(model, inputs, second_order=length == 4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "inverse one-sided"])
@pytest.mark.parametrize("dft_length", [3, 4, 6])
@pytest.mark.parametrize("opset", [18, 20])
def test_dft_of_a_given_length(kind: str, dft_length: int, opset: int) -> None:
    parts, attributes = KINDS[kind]
    inputs = {"x": _random(2, 4, parts), "dft_length": np.asarray(dft_length)}
    if opset < 20:
        attributes = {**attributes, "axis": -2}
    check(single_node("DFT", inputs, opset=opset, **attributes), inputs)


@pytest.mark.parametrize("dft_length", [6, 7])
def test_inverse_onesided_dft_of_a_given_length(dft_length: int) -> None:
    """ONNX Runtime is right only where the spectrum has as many bins as that length needs."""
    inputs = {"x": _random(2, 4, 2), "dft_length": np.asarray(dft_length)}
    model = single_node("DFT", inputs, opset=20, inverse=1, onesided=1)
    check(model, inputs, second_order=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("axis", [0, -3])
def test_dft_along_an_axis_given_at_run_time(kind: str, axis: int) -> None:
    parts, attributes = KINDS[kind]
    inputs = {"x": _random(3, 2, parts) if axis == 0 else _random(3, 1, parts), "axis": np.asarray(axis)}
    node = onnx.helper.make_node("DFT", ["x", "", "axis"], ["y"], **attributes)
    check(graph_model([node], inputs, ["y"], opset=20), inputs)


STFT_CASES = {
    "window": (1, {"window": _random(4)}, {}),
    "window and length": (1, {"window": _random(4), "frame_length": np.asarray(4)}, {}),
    "length": (1, {"window": None, "frame_length": np.asarray(3)}, {}),
    "two-sided": (1, {"window": _random(3)}, {"onesided": 0}),
    "complex": (2, {"window": _random(3)}, {"onesided": 0}),
}


@pytest.mark.parametrize("case", STFT_CASES)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_stft(case: str, step: int) -> None:
    """Frames that overlap, that touch, and that leave samples out between them."""
    parts, given, attributes = STFT_CASES[case]
    inputs = {"signal": _random(2, 9, parts), "step": np.asarray(step), **given}
    present = {name: a for name, a in inputs.items() if a is not None}
    check(single_node("STFT", inputs, opset=20, **attributes), present, second_order=step == 2)


def test_stft_before_opset_20_with_a_constant_window() -> None:
    weights = {"step": np.asarray(2, np.int32), "window": _random(4)}
    inputs = {"signal": _random(1, 8, 1)}
    # Left out, one-sidedness is true, but ONNX infers the shape as if it were false.
    node = onnx.helper.make_node("STFT", ["signal", *weights], ["y"], onesided=1)
    check(graph_model([node], inputs, ["y"], initializers=weights), inputs)


def test_single_precision() -> None:
    x, dy = (_random(2, 5, 1).astype(np.float32) for _ in range(2))
    dy = np.concatenate([dy, dy], axis=-1)
    node = onnx.helper.make_node("DFT", ["x"], ["y"])
    actual = gradients(graph_model([node], {"x": x}, ["y"], opset=20), {"x": x}, {"y": dy}, ["x"])["x"]
    expected = np.fft.ifft(dy[..., 0] + 1j * dy[..., 1], axis=1).real * 5
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual[..., 0], expected, rtol=1e-5, atol=1e-6)


def test_windows_and_mel_weights_have_zero_derivative() -> None:
    for op_type in ("HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix"):
        assert registry.lookup("", op_type).state is State.ZERO
