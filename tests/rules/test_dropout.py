"""Dropout: compared with its own mask, which must be the one that the forward pass used."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_grad
from tests.oracle import check, given_names, graph_model

X = np.asarray(np.random.default_rng(0).uniform(1.0, 2.0, (4, 5)))
TRAINING = np.asarray(True)


def _run(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs and the gradient of the first input, by name, for a cotangent of ones."""
    transformed = onnx_grad.vjp(model, ["x"], ["y0"])
    onnx.checker.check_model(transformed, full_check=True)
    session = onnxruntime.InferenceSession(
        transformed.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    values = session.run(None, {**inputs, given_names(transformed)[0]["y0"]: np.ones_like(inputs["x"])})
    return dict(zip((output.name for output in session.get_outputs()), values, strict=True))


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("training", [None, np.asarray(False)], ids=["left out", "false"])
def test_inference_passes_the_cotangent(outputs: int, training: np.ndarray | None) -> None:
    weights = {"ratio": np.asarray(0.3), **({} if training is None else {"training": training})}
    node = onnx.helper.make_node("Dropout", ["x", *weights], [f"y{i}" for i in range(outputs)])
    model = graph_model([node], {"x": X}, node.output, initializers=weights)
    check(model, {"x": X}, of=["y0"])
    gradient = onnx_grad.vjp(model, ["x"], ["y0"])
    assert [n.op_type for n in gradient.graph.node] == ["Dropout", "Identity"]


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("ratio", [None, 0.0, 0.25])
@pytest.mark.parametrize("at_run_time", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_training_masks_the_cotangent(
    ratio: float | None, outputs: int, at_run_time: bool, dtype: type[np.floating]
) -> None:
    x = X.astype(dtype)
    options = (
        {"training": TRAINING} if ratio is None else {"ratio": np.asarray(dtype(ratio)), "training": TRAINING}
    )
    names = ["x", "ratio" if ratio is not None else "", "training"]
    node = onnx.helper.make_node("Dropout", names, [f"y{i}" for i in range(outputs)], seed=7)
    inputs = {"x": x, **options} if at_run_time else {"x": x}
    model = graph_model([node], inputs, ["y0"], initializers={} if at_run_time else options)
    values = _run(model, inputs)
    scale = values["y0"] / x
    np.testing.assert_allclose(values["x_grad"], scale, rtol=4 * np.finfo(dtype).eps)
    assert values["x_grad"].dtype == dtype
    assert (scale == 0).any() == (ratio != 0.0)


def test_the_precision_of_the_ratio_is_its_own() -> None:
    inputs = {"x": X, "ratio": np.asarray(np.float32(0.25)), "training": TRAINING}
    node = onnx.helper.make_node("Dropout", list(inputs), ["y0"])
    values = _run(graph_model([node], inputs, ["y0"]), inputs)
    np.testing.assert_allclose(values["x_grad"], values["y0"] / X, rtol=1e-12)


def test_inference_at_run_time() -> None:
    inputs = {"x": X, "ratio": np.asarray(0.25), "training": np.asarray(False)}
    node = onnx.helper.make_node("Dropout", list(inputs), ["y0"])
    check(graph_model([node], inputs, ["y0"]), inputs, wrt=["x"], second_order=True)


def test_the_gradient_graph_draws_one_mask() -> None:
    """Differentiating again still reads the mask of the forward node: x² dropped out has twice its scale."""
    nodes = [
        onnx.helper.make_node("Mul", ["x", "x"], ["square"]),
        onnx.helper.make_node("Dropout", ["square", "", "training"], ["y0"]),
    ]
    model = graph_model(nodes, {"x": X}, ["y0"], initializers={"training": TRAINING})
    second = onnx_grad.vjp(onnx_grad.vjp(model, ["x"], ["y0"]), ["x"], ["x_grad"])
    assert [n.op_type for n in second.graph.node].count("Dropout") == 1
    session = onnxruntime.InferenceSession(second.SerializeToString(), providers=["CPUExecutionProvider"])
    ones = np.ones_like(X)
    y, curvature = session.run(["y0", "x_grad_1"], {"x": X, "y0_grad": ones, "x_grad_grad": ones})
    np.testing.assert_allclose(curvature, 2 * y / X**2, rtol=1e-12)
