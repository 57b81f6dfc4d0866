"""BatchNormalization in both modes, for every rank."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import check, gradients, numerical_gradient, single_node

SHAPES = [(4,), (4, 3), (2, 3, 2), (2, 2, 1, 3), (1, 2, 2, 1, 2), (0, 2, 3)]
PARAMETERS = ("scale", "B", "mean", "var")


def _inputs(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    channels = shape[1] if len(shape) > 1 else 1
    inputs = {"X": np.asarray(generator.standard_normal(shape) + 1.0)}
    for name in PARAMETERS:
        inputs[name] = np.asarray(generator.uniform(0.5, 1.5, channels))
    return inputs


def _in_training(inputs: dict[str, np.ndarray], **attributes: float) -> onnx.ModelProto:
    return single_node("BatchNormalization", inputs, outputs=3, training_mode=1, epsilon=1e-2, **attributes)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_given_statistics(shape: tuple[int, ...]) -> None:
    inputs = _inputs(shape)
    check(single_node("BatchNormalization", inputs, epsilon=1e-2), inputs)


def test_given_statistics_at_second_order() -> None:
    inputs = _inputs((2, 2, 2))
    check(single_node("BatchNormalization", inputs, epsilon=1e-2), inputs, second_order=True)


def test_input_gradient_is_one_node() -> None:
    model = single_node("BatchNormalization", _inputs((2, 3, 2)))
    assert [n.op_type for n in onnx_grad.vjp(model, ["X"]).graph.node] == ["BatchNormalization"] * 2


@pytest.mark.parametrize("shape", SHAPES[1:-1], ids=str)
@pytest.mark.parametrize("momentum", [0.0, 0.7])
def test_statistics_of_the_batch(shape: tuple[int, ...], momentum: float) -> None:
    inputs = _inputs(shape)
    check(_in_training(inputs, momentum=momentum), inputs)


@pytest.mark.parametrize("of", ["y0", "y1", "y2"])
def test_each_output_in_training(of: str) -> None:
    inputs = _inputs((2, 3, 2))
    check(_in_training(inputs), inputs, of=[of], second_order=of == "y0")


def test_training_leaves_the_statistics_given_as_they_are() -> None:
    """ONNX Runtime writes running statistics over initializers it gave them for: running twice must agree."""
    inputs = _inputs((2, 3, 2))
    model = onnx_grad.vjp(_in_training(inputs), ["X"], ["y0"])
    training_nodes = [n for n in model.graph.node if any(a.name == "training_mode" for a in n.attribute)]
    assert [n.name for n in training_nodes] == ["y0"]


@pytest.mark.parametrize(
    ("dtype", "statistics_dtype"),
    [(np.float32, np.float32), (np.float16, np.float16), (np.float16, np.float32)],
)
@pytest.mark.parametrize("training", [False, True])
def test_lower_precision(
    dtype: type[np.floating], statistics_dtype: type[np.floating], training: bool
) -> None:
    exact = _inputs((2, 3, 4))
    inputs = {n: a.astype(dtype if n == "X" else statistics_dtype) for n, a in exact.items()}
    exact = {n: a.astype(np.float64) for n, a in inputs.items()}
    dy = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(dtype)

    def normalize(at: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = at["X"]
        mean, var = (x.mean((0, 2)), x.var((0, 2))) if training else (at["mean"], at["var"])
        scale, bias, mean, var = (a[:, None] for a in (at["scale"], at["B"], mean, var))
        return {"y0": scale * (x - mean) / np.sqrt(var + 1e-2) + bias}

    model = _in_training(inputs) if training else single_node("BatchNormalization", inputs, epsilon=1e-2)
    names = ["X", "scale", "B"] if training else list(inputs)
    actual = gradients(model, inputs, {"y0": dy}, names)
    for name in names:
        assert actual[name].dtype == inputs[name].dtype
        expected = numerical_gradient(normalize, exact, name, {"y0": dy.astype(np.float64)})
        np.testing.assert_allclose(
            actual[name], expected, rtol=0, atol=20 * np.finfo(dtype).eps, err_msg=name
        )
