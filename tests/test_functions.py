"""Model-local functions and functions that a user defines: expanded where they are differentiated."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

import onnx_grad
from onnx_grad.registry import unregister
from tests.graphs import operators, parse, run

SQUARE = '<domain: "custom", opset_import: ["" : 18]> square (a) => (b) { b = Mul (a, a) }'
SCALED = (
    '<domain: "custom", opset_import: ["" : 18]> scaled <factor> (a) => (b) '
    "{ k = Constant <value_float: float = @factor> () b = Mul (a, k) }"
)


def function(text: str) -> onnx.FunctionProto:
    return onnx.parser.parse_function(text)


def test_only_calls_on_the_path_are_expanded() -> None:
    model = parse(
        "g (float[N] x, float[N] u) => (float[N] y, float[N] v) "
        "{ y = custom.square (x) v = custom.square (u) }",
        extra=SQUARE,
    )
    gradient = onnx_grad.vjp(model, "x", "y")
    assert operators(gradient).count("square") == 1
    assert [f.name for f in gradient.functions] == ["square"]
    values = run(gradient, {"x": [1, 2], "u": [3, 4], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values["x_grad"], [2, 4])
    np.testing.assert_array_equal(values["v"], [9, 16])


def test_functions_that_call_functions_with_attributes() -> None:
    outer = (
        '<domain: "custom", opset_import: ["" : 18, "custom" : 1]> outer <by> (a) => (c) '
        "{ b = custom.scaled <factor: float = @by> (a) c = custom.square (b) }"
    )
    model = parse(
        "g (float[N] x) => (float[N] y) { y = custom.outer <by = 3.0> (x) }",
        extra=f"{outer} {SCALED} {SQUARE}",
    )
    values = run(onnx_grad.vjp(model), {"x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values["x_grad"], [18, 36])


def test_overloads_are_told_apart() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { h = custom.twice (x) y = custom.twice (h) }", ir_version=10
    )
    for overload, operator in (("sum", "Add"), ("product", "Mul")):
        body = onnx.helper.make_node(operator, ["a", "a"], ["b"])
        made = onnx.helper.make_function(
            "custom", "twice", ["a"], ["b"], [body], [onnx.helper.make_opsetid("", 18)], overload=overload
        )
        model.functions.append(made)
    model.graph.node[0].overload, model.graph.node[1].overload = "sum", "product"
    values = run(onnx_grad.vjp(model), {"x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values["y"], [4, 16])
    np.testing.assert_array_equal(values["x_grad"], [8, 16])


def test_a_call_inside_a_body() -> None:
    model = parse(
        "g (bool c, float[N] x) => (float[N] y) { y = If (c) <"
        "then_branch = t () => (float[N] a) { a = custom.square (x) }, "
        "else_branch = e () => (float[N] b) { b = Identity (x) }> }",
        extra=SQUARE,
    )
    values = run(onnx_grad.vjp(model), {"c": np.array(True), "x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values["x_grad"], [2, 4])


def test_tensors_inside_a_function_can_be_named() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { [call] y = custom.cube (x) }",
        extra='<domain: "custom", opset_import: ["" : 18]> cube (a) => (c) { b = Mul (a, a) c = Mul (a, b) }',
    )
    inner = onnx.inliner.inline_local_functions(model).graph.node[0].output[0]
    values = run(onnx_grad.vjp(model, inner), {"x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values[f"{inner}_grad"], [1, 2])


def test_a_function_of_another_opset_that_means_the_same() -> None:
    model = parse(
        "g (float[N] x) => (float[N] y) { y = custom.square (x) }", extra=SQUARE.replace("18", "14"), opset=20
    )
    values = run(onnx_grad.vjp(model), {"x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(values["x_grad"], [2, 4])


class TestDefineFunction:
    def test_the_gradient_follows(self) -> None:
        onnx_grad.define_function("Swoosh", function(SQUARE), domain="custom")
        try:
            model = parse("g (float[N] x) => (float[N] y) { y = custom.Swoosh (x) }")
            gradient = onnx_grad.vjp(model)
            assert "Swoosh" not in operators(gradient)
            values = run(gradient, {"x": [1, 2], "y_grad": [1, 1]})
            np.testing.assert_array_equal(values["x_grad"], [2, 4])
        finally:
            unregister("Swoosh", "custom")

    def test_attributes_of_the_node_reach_the_function(self) -> None:
        onnx_grad.define_function("Scaled", function(SCALED), domain="custom")
        try:
            model = parse("g (float[N] x) => (float[N] y) { y = custom.Scaled <factor = 3.0> (x) }")
            values = run(onnx_grad.vjp(model), {"x": [1, 2], "y_grad": [1, 1]})
            np.testing.assert_array_equal(values["x_grad"], [3, 3])
        finally:
            unregister("Scaled", "custom")

    def test_a_definition_for_another_opset(self) -> None:
        """Mul means the same in opsets 18 and 20; ReduceMax does not."""
        maximum = '<domain: "d", opset_import: ["" : 18]> maximum (a) => (b) { b = ReduceMax (a) }'
        onnx_grad.define_function("Swoosh", function(SQUARE), domain="custom")
        onnx_grad.define_function("Largest", function(maximum), domain="custom")
        try:
            model = parse("g (float[N] x) => (float[N] y) { y = custom.Swoosh (x) }", opset=20)
            values = run(onnx_grad.vjp(model), {"x": [1, 2], "y_grad": [1, 1]})
            np.testing.assert_array_equal(values["x_grad"], [2, 4])
            model = parse("g (float[N] x) => (float[1] y) { y = custom.Largest (x) }", opset=20)
            with pytest.raises(
                onnx_grad.ModelError, match="opset 18 and the model for 20, and ReduceMax differs"
            ):
                onnx_grad.vjp(model)
        finally:
            unregister("Swoosh", "custom")
            unregister("Largest", "custom")

    def test_standard_domains_are_refused(self) -> None:
        with pytest.raises(onnx_grad.RuleError, match="standard"):
            onnx_grad.define_function("Relu", function(SQUARE), domain="")
        with pytest.raises(onnx_grad.RuleError, match="standard"):
            onnx_grad.define_function("Scaler", function(SQUARE), domain="ai.onnx.ml")

    def test_an_empty_function_is_refused(self) -> None:
        with pytest.raises(onnx_grad.RuleError, match="no nodes"):
            onnx_grad.define_function("Nothing", onnx.FunctionProto(), domain="custom")
