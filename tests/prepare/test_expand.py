"""Functions are replaced by their bodies where that is needed, and nowhere else."""

from __future__ import annotations

import numpy as np

import onnx_grad
from tests.graphs import operators, parse, run


def test_a_body_of_the_specification() -> None:
    model = parse("g (float[4,4] x) => (float[2,2] y) <int64[2] s = {2, 2}> { y = CenterCropPad(x, s) }")
    values = run(
        onnx_grad.vjp(model), {"x": np.ones((4, 4), np.float32), "y_grad": np.ones((2, 2), np.float32)}
    )
    expected = np.zeros((4, 4))
    expected[1:3, 1:3] = 1
    np.testing.assert_array_equal(values["x_grad"], expected)


def test_only_the_nodes_on_the_way_are_expanded() -> None:
    model = parse(
        "g (float[4] x, float[4] w) => (float[2] y, float[2] z) <int64[1] s = {2}> "
        "{ [on] y = CenterCropPad(x, s) [off] z = CenterCropPad(w, s) }"
    )
    transformed = onnx_grad.vjp(model, wrt="x", of="y")
    assert operators(transformed).count("CenterCropPad") == 1


def test_a_function_with_a_rule_is_kept() -> None:
    @onnx_grad.gradient("square", domain="custom")
    def square(op, node, dy):
        (a,) = node.inputs
        return 2.0 * a * dy

    try:
        model = parse(
            "g (float[N] x) => (float[N] y) { y = custom.square (x) }",
            extra='<domain: "custom", opset_import: ["" : 18]> square (a) => (b) { b = Mul(a, a) }',
        )
        transformed = onnx_grad.vjp(model)
    finally:
        onnx_grad.registry.unregister("square", domain="custom")
    assert operators(transformed)[0] == "square"
    np.testing.assert_array_equal(run(transformed, {"x": [3], "y_grad": [1]})["x_grad"], [6])


def test_nested_functions_and_attribute_references() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { y = custom.outer <slope: float = 3.0> (x) }",
        extra='<domain: "custom", opset_import: ["" : 18, "custom" : 1]> outer <slope> (a) => (b) '
        "{ t = custom.inner <slope: float = @slope> (a) b = Neg(t) } "
        '<domain: "custom", opset_import: ["" : 18]> inner <slope> (a) => (b) '
        "{ b = LeakyRelu <alpha: float = @slope> (a) }",
    )
    values = run(onnx_grad.vjp(model), {"x": [-1, 1], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values["x_grad"], [-3, -1])
