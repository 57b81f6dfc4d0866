"""The unit step is exact, stands in for masks between convolutions, and has no derivative."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad.builder import Builder
from onnx_grad.step_function import is_unit_step, unit_step
from tests.graphs import operators, parse, run

NETWORK = """
    g (float[2, 3, 5, 5] x) => (float[2, 4, 5, 5] y)
    {{
        a = Conv <pads = [1, 1, 1, 1]> (x, w)
        b = Relu(a)
        {last}
    }}
"""
CONVOLUTIONS = "y = Conv <pads = [1, 1, 1, 1]> (b, v)"


def network(last: str = CONVOLUTIONS, weights: str = "constant") -> onnx.ModelProto:
    model = parse(NETWORK.format(last=last))
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal((4, c, 3, 3)) for name, c in (("w", 3), ("v", 4))}
    for name, array in arrays.items():
        if weights == "constant":
            model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        else:
            model.graph.input.append(onnx.helper.make_tensor_value_info(name, 1, array.shape))
    return model


def test_every_positive_number_is_one() -> None:
    """Down to the smallest of all, which the reference and ONNX Runtime agree on."""
    op = Builder(18, set())
    x = ir.Value(name="x", shape=ir.Shape([8]), type=ir.TensorType(ir.DataType.FLOAT))
    with op.serving("x"):
        y = unit_step(op, x)
    graph = ir.Graph([x], [y], nodes=op.nodes, opset_imports={"": 18}, name="step")
    y.shape = x.shape
    model = ir.to_proto(ir.Model(graph, ir_version=9))
    numbers = np.float32([-np.inf, -1, -1e-45, -0.0, 0.0, 1e-45, 1e-39, np.inf])
    expected = (numbers > 0).astype(np.float32)
    np.testing.assert_array_equal(run(model, {"x": numbers})[str(y.name)], expected)
    assert all(map(is_unit_step, op.nodes))


@pytest.mark.parametrize(
    ("last", "weights", "pulled", "pushed"),
    [
        (CONVOLUTIONS, "constant", 2, 2),
        (CONVOLUTIONS, "inputs", 0, 0),
        ("c = Neg(b)  y = Conv <pads = [1, 1, 1, 1]> (c, v)", "constant", 0, 2),
    ],
    ids=["between convolutions", "weights at run time", "behind a convolution only"],
)
def test_where_it_is_used(last: str, weights: str, pulled: int, pushed: int) -> None:
    model = network(last, weights)
    for transform, expected in ((onnx_grad.vjp, pulled), (onnx_grad.jvp, pushed)):
        assert Counter(operators(transform(model, wrt="x")))["HardSigmoid"] == expected


def test_gradients_and_tangents_are_those_by_a_mask() -> None:
    """That is how they are computed where the weights are inputs."""
    generator = np.random.default_rng(1)
    x, dx = generator.standard_normal((2, 2, 3, 5, 5)).astype(np.float32)
    dy = generator.standard_normal((2, 4, 5, 5)).astype(np.float32)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in network().graph.initializer}
    for transform, seed, result in (
        (onnx_grad.vjp, {"y_grad": dy}, "x_grad"),
        (onnx_grad.jvp, {"x_tangent": dx}, "y_tangent"),
    ):
        stepped = run(transform(network(), wrt="x"), {"x": x, **seed})[result]
        masked = run(transform(network(weights="inputs"), wrt="x"), {"x": x, **weights, **seed})[result]
        np.testing.assert_allclose(stepped, masked, rtol=1e-4, atol=1e-4)


def test_no_derivative_flows_through_it() -> None:
    """The second derivative of a network of ReLUs is zero, and takes no nodes to tell."""
    first = onnx_grad.vjp(network(), wrt="x")
    with pytest.warns(onnx_grad.NoPathWarning):
        second = onnx_grad.vjp(first, wrt="x", of="x_grad")
    assert "Greater" not in operators(second)


def test_a_hard_sigmoid_of_the_model_has_its_derivative() -> None:
    steep = float(np.finfo(np.float32).max)
    model = parse("g (float[n] x) => (float[n] y) { y = HardSigmoid <alpha = 1.0, beta = 0.0> (x) }")
    model.graph.node[0].attribute[0].f = steep
    gradient = onnx_grad.vjp(model)
    actual = run(gradient, {"x": np.float32([1e-39, 1]), "y_grad": np.float32([1, 1])})["x_grad"]
    np.testing.assert_allclose(actual, [steep, 0])
