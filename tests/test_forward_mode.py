"""Tangents: ⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩ for every operator, where the right side is tested by finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import input_names, operators, output_names, parse, run
from tests.operator_forms import Form, normal, operator_forms
from tests.oracle import SHAPE_KNOWLEDGE, assert_dual, with_shapes

# ONNX Runtime and the reference evaluator compute these in single precision, or not in double.
IN_SINGLE = frozenset("Cast CastLike DFT DequantizeLinear LinearAttention STFT".split())
NOT_IN_DOUBLE = frozenset("GlobalLpPool MaxRoiPool MeanVarianceNormalization".split())

FORMS = [pytest.param(form, id=f"{form.operator}-{i}") for i, form in enumerate(operator_forms())]


@pytest.mark.parametrize("form", FORMS)
def test_dual_of_the_gradient(form: Form) -> None:
    dtype = np.float32 if form.operator in NOT_IN_DOUBLE else np.float64
    rtol = 1e-9 if form.operator not in IN_SINGLE | NOT_IN_DOUBLE else 1e-5
    # ONNX Runtime cannot run the body of LinearAttention, even forward, where it knows no rank.
    known = SHAPE_KNOWLEDGE[:2] if form.operator == "LinearAttention" else SHAPE_KNOWLEDGE
    for knowledge in known:
        assert_dual(with_shapes(form.model(dtype), knowledge), form.point(dtype), rtol)


def test_names_and_types_of_what_comes_back() -> None:
    model = onnx_grad.jvp(parse("g (float[n, 3] x, float[3] w) => (float[n, 3] y) { y = Mul(x, w) }"))
    assert input_names(model) == ["x", "w", "x_tangent", "w_tangent"]
    assert output_names(model) == ["y", "y_tangent"]
    assert operators(model) == ["Mul", "Mul", "Mul", "Add"]
    onnx.checker.check_model(model, full_check=True)


def test_nothing_is_left_of_the_reverse_pass() -> None:
    """Neither the rule's formula for the cotangent, nor an input for it."""
    model = onnx_grad.jvp(parse("g (float[n, 3] x) => (float[n, 3] y) { y = Tanh(x) }"))
    assert input_names(model) == ["x", "x_tangent"]
    assert operators(model) == ["Tanh", "Mul", "Sub", "Mul"]


def test_tangents_of_weights_and_of_tensors_inside() -> None:
    graph = "g (float[n, 2] x) => (float[n, 1] y) <float[2, 1] w = {2, -1}> { h = Tanh(x)  y = MatMul(h, w) }"
    model = onnx_grad.jvp(parse(graph), wrt=["w", "h"])
    assert input_names(model) == ["x", "w_tangent", "h_tangent"]
    x, dw, dh = normal(3, 2).astype(np.float32), np.float32([[1], [3]]), normal(3, 2).astype(np.float32)
    actual = run(model, {"x": x, "w_tangent": dw, "h_tangent": dh})["y_tangent"]
    np.testing.assert_allclose(actual, np.tanh(x) @ dw + dh @ np.float32([[2], [-1]]), rtol=1e-5)


def test_a_tensor_inside_moves_with_what_is_before_it_and_on_its_own() -> None:
    graph = "g (float[n] x) => (float[n] y) { h = Mul(x, x)  y = Sin(h) }"
    model = onnx_grad.jvp(parse(graph), wrt=["x", "h"])
    x, dx, dh = np.float32([0.5, -1]), np.float32([1, 2]), np.float32([-3, 0.5])
    actual = run(model, {"x": x, "x_tangent": dx, "h_tangent": dh})["y_tangent"]
    np.testing.assert_allclose(actual, np.cos(x * x) * (2 * x * dx + dh), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ("2, m, 3", "2, 3, n", ["MatMul", "Concat", "Concat", "MatMul"]),
        ("m, 3", "3, 100", ["MatMul", "Concat", "Concat", "MatMul"]),
        ("2, m, 3", "3, n", ["MatMul", "Concat", "Concat", "MatMul"]),
        ("m, 3", "3, 4", ["MatMul", "MatMul", "MatMul", "Add"]),
        ("m, k", "k, n", ["MatMul", "MatMul", "MatMul", "Add"]),
        ("m, 3", "3", ["MatMul", "MatMul", "MatMul", "Add"]),
    ],
)
def test_both_factors_of_a_product_move(rows: str, columns: str, expected: list[str]) -> None:
    """One product of joined operands where they are thin, as those of attention's scores are, else two."""
    model = parse(f"g (double[{rows}] a, double[{columns}] b) => (double[?] y) {{ y = MatMul(a, b) }}")
    assert operators(onnx_grad.jvp(model)) == expected
    sizes = {"m": 5, "k": 3, "n": 6}
    a, b = (normal(*(sizes.get(dim) or int(dim) for dim in shape.split(", "))) for shape in (rows, columns))
    assert_dual(model, {"a": a, "b": b}, rtol=1e-9)


def test_what_counts_as_constant_has_no_tangent() -> None:
    graph = "g (float[n] x) => (float[n] y) { h = Mul(x, x)  y = Mul(h, x) }"
    model = onnx_grad.jvp(parse(graph), stop="h")
    actual = run(model, {"x": [3.0], "x_tangent": [1.0]})["y_tangent"]
    assert actual == pytest.approx([9.0])


def test_without_a_path_the_tangent_is_zeros_and_a_warning_says_so() -> None:
    graph = "g (float[n] x, float[n] z) => (float[n] y, float[n] v) { y = Neg(x)  v = Floor(x) }"
    with pytest.warns(onnx_grad.NoPathWarning, match="from wrt to 'v'"):
        model = onnx_grad.jvp(parse(graph), wrt="x")
    values = run(model, {"x": [1.5], "z": [0], "x_tangent": [2]})
    assert values["y_tangent"] == -2
    assert values["v_tangent"] == 0


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("h = Sqrt(x)  y = Where(c, h, x)", [1.0, 0.25]),
        ("h = Relu(x)  y = Sqrt(h)", [0.0, 0.25]),
        ("h = Log(x)  y = Where(c, h, x)", [1.0, 0.25]),
        ("h = Max(x, zero)  y = Pow(h, half)", [0.0, 0.25]),
    ],
)
def test_elements_that_are_not_used_next_to_a_singularity(body: str, expected: list[float]) -> None:
    graph = (
        "g (float[n] x) => (float[n] y) <float zero = {0}, float half = {0.5}> "
        f"{{ c = Greater(x, zero)  {body} }}"
    )
    actual = run(onnx_grad.jvp(parse(graph)), {"x": [-1.0, 4.0], "x_tangent": [1.0, 1.0]})["y_tangent"]
    assert actual == pytest.approx(expected)


def test_a_rule_that_is_not_linear_gives_no_tangents() -> None:
    @onnx_grad.gradient("Twice", domain="custom")
    def twice(op: Any, node: Any, dy: Any) -> Any:
        return 2.0 * dy * dy

    try:
        model = parse("g (float[n] x) => (float[n] y) { y = custom.Twice(x) }")
        with pytest.raises(onnx_grad.RuleError, match="not linear in the cotangent"):
            onnx_grad.jvp(model)
    finally:
        onnx_grad.registry.unregister("Twice", "custom")


def test_users_rule_for_an_operator_that_is_linear() -> None:
    """What is declared of the operator goes with the rule that is replaced."""
    original = onnx_grad.registry.lookup("", "Neg")

    @onnx_grad.gradient("Neg")
    def neg(op: Any, node: Any, dy: Any) -> Any:
        return -3.0 * dy

    try:
        model = onnx_grad.jvp(parse("g (float[n] x) => (float[n] y) { y = Neg(x) }"))
    finally:
        onnx_grad.registry._table["", "Neg"] = original
    assert run(model, {"x": [1.0], "x_tangent": [1.0]})["y_tangent"] == -3
