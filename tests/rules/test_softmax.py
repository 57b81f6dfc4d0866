"""Softmax and its logarithm along every axis, masked rows included."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.builder import Builder
from tests.graphs import parse
from tests.oracle import check, gradients, single_node

X = np.random.default_rng(3).standard_normal((2, 3, 4))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3, None])
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_axes(op_type: str, axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    check(single_node(op_type, {"x": X}, **attributes), {"x": X})


@pytest.mark.parametrize("shape", [(4,), (1, 1), (0, 3)], ids=str)
@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_shapes(op_type: str, shape: tuple[int, ...]) -> None:
    inputs = {"x": np.resize(X, shape)}
    check(single_node(op_type, inputs), inputs, second_order=True)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_before_opset_13_the_trailing_axes_are_one_row(op_type: str, axis: int) -> None:
    check(single_node(op_type, {"x": X}, opset=11, axis=axis), {"x": X}, shapes=["static"])


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_masked_elements_get_a_zero_gradient(op_type: str, dtype: type) -> None:
    x = np.array([[0.5, -np.inf, 1.0, -np.inf], [-np.inf, -np.inf, 2.0, -np.inf]], dtype)
    dy = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]], dtype)
    if op_type == "LogSoftmax":
        dy[np.isinf(x)] = 0
    actual = gradients(single_node(op_type, {"x": x}), {"x": x}, {"y0": dy}, ["x"])["x"]
    assert actual.dtype == dtype
    p = 1 / (1 + np.exp(-0.5))
    slope = {"Softmax": 2 * p * (1 - p), "LogSoftmax": 3 - 4 * p}[op_type]
    np.testing.assert_allclose(
        actual, [[-slope, 0, slope, 0], [0, 0, 0, 0]], atol=4e-3 if dtype == np.float16 else 1e-6
    )


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
def test_large_numbers_do_not_overflow(op_type: str) -> None:
    x = np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    dy = np.array([[1, 0, 0]], np.float32)
    actual = gradients(single_node(op_type, {"x": x}), {"x": x}, {"y0": dy}, ["x"])["x"]
    p = 1 / (1 + np.exp(-1))
    expected = [[p * (1 - p), -p * (1 - p), 0]] if op_type == "Softmax" else [[1 - p, p - 1, 0]]
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


class TestRowsThatWeightAMatrix:
    """The sum over a row of probabilities is taken over what they weight, where its rows are shorter."""

    ATTENTION = "p = Softmax(s) o = MatMul(p, v)"

    @staticmethod
    def model(body: str, columns: int = 2, outputs: str = "double[2, 3, c] o") -> onnx.ModelProto:
        text = f"g (double[2, 3, 4] s, double[2, 4, {columns}] v) => ({outputs}) {{ {body} }}"
        return parse(text.replace(", c]", f", {columns}]"))

    def summed(self, model: onnx.ModelProto, **options: Any) -> int:
        """How many elements a row has that is summed up."""
        gradient = onnx_grad.vjp(model, **options)
        (node,) = [node for node in gradient.graph.node if node.op_type == "ReduceSum"]
        shapes = {value.name: value.type.tensor_type.shape for value in gradient.graph.value_info}
        return int(shapes[node.input[0]].dim[-1].dim_value)

    @pytest.mark.parametrize("columns", [1, 2, 4, 5])
    def test_the_gradient(self, columns: int) -> None:
        model = self.model(self.ATTENTION, columns)
        v = np.random.default_rng(1).standard_normal((2, 4, columns))
        check(model, {"s": X, "v": v}, second_order=True)
        assert self.summed(model, wrt="s") == min(columns, 4)

    def test_probabilities_that_are_read_or_asked_for(self) -> None:
        read = self.model(self.ATTENTION + " q = Mul(p, p)", outputs="double[2, 3, c] o, double[2, 3, 4] q")
        v = np.random.default_rng(1).standard_normal((2, 4, 2))
        check(read, {"s": X, "v": v})
        assert self.summed(read, wrt="s", of="o") == 4
        assert self.summed(self.model(self.ATTENTION), wrt=["s", "p"]) == 4

    def test_a_rule_of_a_users_own_that_wraps_the_products(self) -> None:
        """What it makes of dP is not what the product's row sums tell."""
        original = registry.lookup("", "MatMul")
        model, v = self.model(self.ATTENTION), np.random.default_rng(1).standard_normal((2, 4, 2))
        inputs, dy = {"s": X, "v": v}, {"o": np.random.default_rng(2).standard_normal((2, 3, 2))}
        expected = gradients(model, inputs, dy, ["s"])["s"] / 2

        @registry.gradient("MatMul")
        def halved(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
            first, _ = original.rule(op, node, dy)
            return (first() if callable(first) else first) * 0.5

        try:
            actual = gradients(model, inputs, dy, ["s"])["s"]
        finally:
            registry._table["", "MatMul"] = original
        np.testing.assert_allclose(actual, expected)

    def test_probabilities_on_the_right_or_on_both_sides(self) -> None:
        right = parse(
            "g (double[3, 4] s, double[2, 3] v) => (double[2, 4] o) { p = Softmax(s) o = MatMul(v, p) }"
        )
        check(right, {"s": X[0], "v": X[1, :2, :3]})
        both = parse("g (double[3, 3] s) => (double[3, 3] o) { p = Softmax(s) o = MatMul(p, p) }")
        check(both, {"s": X[0, :, :3]})

    def test_one_matrix_of_probabilities_for_several(self) -> None:
        """Its cotangent is a sum over the batch, and so would its rows' be."""
        shared = parse(
            "g (double[1, 3, 4] s, double[2, 4, 2] v) => (double[2, 3, 2] o)"
            "{ p = Softmax(s) o = MatMul(p, v) }"
        )
        check(shared, {"s": X[:1], "v": X.reshape(2, 4, 3)[..., :2]})

    def test_another_axis(self) -> None:
        model = parse(
            "g (double[2, 3, 4] s, double[2, 4, 2] v) => (double[2, 3, 2] o)"
            "{ p = Softmax <axis = 1> (s) o = MatMul(p, v) }"
        )
        check(model, {"s": X, "v": X.reshape(2, 4, 3)[..., :2]})
