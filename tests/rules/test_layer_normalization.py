"""LayerNormalization and RMSNormalization along every axis, with every shape of scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_grad
from tests.oracle import (
    SHAPE_KNOWLEDGE,
    check,
    gradients,
    graph_model,
    numerical_gradient,
    single_node,
    with_shapes,
)

AXES_AND_SCALES = [
    (None, (3,)),
    (-1, (3,)),
    (2, (3,)),
    (-1, (1,)),
    (-1, ()),
    (-1, (2, 3)),
    (-2, (2, 3)),
    (1, (2, 3)),
    (-2, (3,)),
    (0, (2, 2, 3)),
    (1, (2, 1, 1)),
]


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).uniform(0.5, 2.0, shape))


def _options(axis: int | None) -> dict[str, float]:
    return {"epsilon": 1e-2} if axis is None else {"epsilon": 1e-2, "axis": axis}


@pytest.mark.parametrize(("axis", "scale_shape"), AXES_AND_SCALES)
def test_layer_normalization(axis: int | None, scale_shape: tuple[int, ...]) -> None:
    inputs = {"X": _random(2, 2, 3), "Scale": _random(*scale_shape), "B": _random(*scale_shape)}
    check(single_node("LayerNormalization", inputs, **_options(axis)), inputs)


@pytest.mark.parametrize("outputs", [1, 2, 3])
def test_optional_inputs_and_outputs(outputs: int) -> None:
    inputs = {"X": _random(2, 2, 3), "Scale": _random(3)}
    check(single_node("LayerNormalization", inputs, outputs=outputs, epsilon=1e-2), inputs, of=["y0"])


@pytest.mark.parametrize("axis", [-1, 1])
def test_layer_normalization_at_second_order(axis: int) -> None:
    inputs = {"X": _random(2, 1, 3), "Scale": _random(3), "B": _random(3)}
    check(single_node("LayerNormalization", inputs, **_options(axis)), inputs, second_order=True)


def test_layer_normalization_of_an_empty_batch() -> None:
    inputs = {"X": _random(0, 3), "Scale": _random(3), "B": _random(3)}
    check(single_node("LayerNormalization", inputs), inputs)


@pytest.mark.parametrize(("axis", "scale_shape"), AXES_AND_SCALES)
def test_rms_normalization(axis: int | None, scale_shape: tuple[int, ...]) -> None:
    inputs = {"X": _random(2, 2, 3), "scale": _random(*scale_shape)}
    model = single_node("RMSNormalization", inputs, opset=23, stash_type=_DOUBLE, **_options(axis))
    check(model, inputs, second_order=axis is None)


_DOUBLE = onnx.TensorProto.DOUBLE


def _layer_normalization(at: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    x = at["X"]
    mean, r = x.mean(-1, keepdims=True), 1 / np.sqrt(x.var(-1, keepdims=True) + 1e-2)
    return {"y0": (x - mean) * r * at["Scale"] + at["B"], "y1": mean, "y2": r}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("of", [("y0",), ("y1",), ("y2",), ("y0", "y1", "y2")])
def test_lower_precision_and_every_output(of: tuple[str, ...], dtype: type[np.floating]) -> None:
    """The statistics are given in single precision, whatever the type of the input."""
    inputs = {
        n: a.astype(dtype) for n, a in (("X", _random(2, 3, 4)), ("Scale", _random(4)), ("B", _random(4)))
    }
    exact = {n: a.astype(np.float64) for n, a in inputs.items()}
    generator = np.random.default_rng(0)
    cotangents = {
        y: generator.standard_normal(value.shape).astype(dtype if y == "y0" else np.float32)
        for y, value in _layer_normalization(exact).items()
        if y in of
    }
    model = single_node("LayerNormalization", inputs, outputs=3, epsilon=1e-2)
    names = list(inputs) if "y0" in of else ["X"]
    actual = gradients(model, inputs, cotangents, names)
    for name in names:
        assert actual[name].dtype == dtype
        exact_cotangents = {y: dy.astype(np.float64) for y, dy in cotangents.items()}
        expected = numerical_gradient(_layer_normalization, exact, name, exact_cotangents)
        np.testing.assert_allclose(
            actual[name], expected, rtol=0, atol=20 * np.finfo(dtype).eps, err_msg=name
        )


@pytest.mark.parametrize("axis", [-1, -2, 1])
@pytest.mark.parametrize("has_bias", [True, False])
def test_layer_normalization_against_torch(axis: int, has_bias: bool) -> None:
    """Cotangents arrive at all three outputs, whatever is known of shapes."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    scale_shape = (3,) if axis == -1 else (2, 3)
    inputs = {"X": _random(2, 2, 3), "Scale": _random(*scale_shape)}
    if has_bias:
        inputs["B"] = _random(*scale_shape)
    inputs = {name: a.astype(np.float32) for name, a in inputs.items()}
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in inputs.items()}
    x, axes = leaves["X"], [2] if axis == -1 else [1, 2]
    values = {
        "y0": torch.nn.functional.layer_norm(x, scale_shape, leaves["Scale"], leaves.get("B"), eps=1e-2),
        "y1": x.mean(axes, keepdim=True),
        "y2": (x.var(axes, keepdim=True, correction=0) + 1e-2).rsqrt(),
    }
    cotangents = {name: _random(*value.shape).astype(np.float32) for name, value in values.items()}
    torch.autograd.backward(list(values.values()), list(map(torch.tensor, cotangents.values())))
    model = single_node("LayerNormalization", inputs, outputs=3, axis=axis, epsilon=1e-2)
    _check_against_torch(model, inputs, cotangents, leaves)


@pytest.mark.parametrize("axis", [-1, -2, 1])
def test_rms_normalization_against_torch(axis: int) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    scale_shape = (3,) if axis == -1 else (2, 3)
    inputs = {
        name: a.astype(np.float32) for name, a in (("X", _random(2, 2, 3)), ("scale", _random(*scale_shape)))
    }
    leaves = {name: torch.tensor(a, requires_grad=True) for name, a in inputs.items()}
    y = torch.nn.functional.rms_norm(leaves["X"], scale_shape, leaves["scale"], eps=1e-2)
    dy = _random(2, 2, 3).astype(np.float32)
    y.backward(torch.tensor(dy))
    model = single_node("RMSNormalization", inputs, opset=23, axis=axis, epsilon=1e-2)
    _check_against_torch(model, inputs, {"y0": dy}, leaves)


def _check_against_torch(
    model: onnx.ModelProto,
    inputs: Mapping[str, np.ndarray],
    cotangents: Mapping[str, np.ndarray],
    leaves: Mapping[str, Any],
) -> None:
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), inputs, cotangents, list(inputs))
        for name in inputs:
            np.testing.assert_allclose(
                actual[name], leaves[name].grad, rtol=1e-4, atol=1e-5, err_msg=f"{name}, {knowledge} shapes"
            )


@pytest.mark.parametrize("knowledge", SHAPE_KNOWLEDGE)
def test_statistics_in_half_precision(knowledge: str) -> None:
    """No evaluator computes such a node, but the gradient needs none of its outputs."""
    inputs = {"X": _random(2, 3).astype(np.float32), "Scale": _random(3).astype(np.float32)}
    model = single_node(
        "LayerNormalization", inputs, outputs=3, stash_type=onnx.TensorProto.BFLOAT16, epsilon=1e-2
    )
    transformed = onnx_grad.vjp(with_shapes(model, knowledge), ["X"])
    (forward,) = [node for node in transformed.graph.node if node.op_type == "LayerNormalization"]
    transformed.graph.node.remove(forward)
    del transformed.graph.output[:3]
    exact = {n: a.astype(np.float64) for n, a in (*inputs.items(), ("B", np.zeros(3)))}
    cotangents = {"y0": _random(2, 3), "y1": np.array([[1.0], [-2.0]]), "y2": np.array([[0.5], [4.0]])}
    types = {"y0": np.float32, "y1": ml_dtypes.bfloat16, "y2": ml_dtypes.bfloat16}
    given = {f"{y}_grad": dy.astype(types[y]) for y, dy in cotangents.items()}
    (actual,) = ReferenceEvaluator(transformed).run(None, inputs | given)
    expected = numerical_gradient(_layer_normalization, exact, "X", cotangents)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_single_precision_reads_the_statistics_of_the_forward_node() -> None:
    inputs = {"X": _random(2, 3).astype(np.float32), "Scale": _random(3).astype(np.float32)}
    transformed = onnx_grad.vjp(single_node("LayerNormalization", inputs), ["X"])
    (forward,) = [node for node in transformed.graph.node if node.op_type == "LayerNormalization"]
    assert list(forward.output) == ["y0", "y0/Mean", "y0/InvStdDev"]
    assert "ReduceMean" not in {node.op_type for node in transformed.graph.node}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rms_normalization_in_lower_precision(dtype: type[np.floating]) -> None:
    inputs = {"X": _random(2, 4).astype(dtype), "scale": _random(4).astype(dtype)}
    exact = {n: a.astype(np.float64) for n, a in inputs.items()}
    dy = np.random.default_rng(1).standard_normal((2, 4)).astype(dtype)

    def normalize(at: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        mean_square = (at["X"] ** 2).mean(-1, keepdims=True)
        return {"y0": at["X"] / np.sqrt(mean_square + 1e-2) * at["scale"]}

    model = single_node("RMSNormalization", inputs, opset=23, epsilon=1e-2)
    actual = gradients(model, inputs, {"y0": dy}, list(inputs))
    for name in inputs:
        assert actual[name].dtype == dtype
        expected = numerical_gradient(normalize, exact, name, {"y0": dy.astype(np.float64)})
        np.testing.assert_allclose(
            actual[name], expected, rtol=0, atol=20 * np.finfo(dtype).eps, err_msg=name
        )


def test_a_static_scale_makes_means_products_with_a_vector() -> None:
    """Even where the shape of the input is unknown: a scale of length 3 is certainly not stretched."""
    inputs = {"X": _random(2, 3), "Scale": _random(3), "B": _random(3)}
    node = onnx.helper.make_node("LayerNormalization", list(inputs), ["y0"])
    weights = {name: inputs[name].astype(np.float32) for name in ("Scale", "B")}
    x = {"X": inputs["X"].astype(np.float32)}
    model = with_shapes(graph_model([node], x, ["y0"], initializers=weights), "unknown")
    transformed = onnx_grad.vjp(model, ["X"])
    assert [n.op_type for n in transformed.graph.node].count("MatMul") == 2
