"""Operands that began at an axis, as before opset 7, whether or not their ranks are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import operators, parse, run

Array = np.ndarray
A = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4) / 8
B = np.array([1.0, 2.0, 0.5], np.float32)
SHAPES = {"static": ("[2,3,4]", "[3]"), "unknown": ("[]", "[]"), "one of them": ("[2,3,4]", "[]")}

# y, dy/da and dy/db of two operands of one shape.
ARITHMETIC: dict[str, tuple[Callable[[Array, Array], Array], ...]] = {
    "Add": (np.add, lambda a, b: 1 + 0 * a, lambda a, b: 1 + 0 * a),
    "Sub": (np.subtract, lambda a, b: 1 + 0 * a, lambda a, b: -1 + 0 * a),
    "Mul": (np.multiply, lambda a, b: b + 0 * a, lambda a, b: a),
    "Div": (np.divide, lambda a, b: 1 / b + 0 * a, lambda a, b: -a / b**2),
    "Pow": (np.power, lambda a, b: b * a ** (b - 1), lambda a, b: a**b * np.log(a)),
}
CONDITIONS: dict[str, Callable[[Array, Array], Array]] = {
    "Less": np.less,
    "Greater": np.greater,
    "And": np.logical_and,
    "Or": np.logical_or,
    "Xor": np.logical_xor,
}


def _model(graph: str, shapes: str) -> onnx.ModelProto:
    """The graph at opset 6, `#A` and `#B` being the shapes of the operands."""
    first, second = SHAPES[shapes]
    model = parse(graph.replace("#A", first).replace("#B", second), opset=6)
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.tensor_type.shape.dim:
            value.type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("op_type", ARITHMETIC)
def test_arithmetic_along_an_axis(op_type: str, shapes: str) -> None:
    model = _model(
        f"g (float#A a, float#B b) => (float[] y) {{ y = {op_type} <broadcast = 1, axis = 1> (a, b) }}",
        shapes,
    )
    dy = np.cos(A)
    values = run(onnx_grad.vjp(model), {"a": A, "b": B, "y_grad": dy})
    forward, da, db = (function(A, B[:, None]) for function in ARITHMETIC[op_type])
    np.testing.assert_allclose(values["y"], forward, rtol=1e-5)
    np.testing.assert_allclose(values["a_grad"], dy * da, rtol=1e-5)
    np.testing.assert_allclose(values["b_grad"], (dy * db).sum((0, 2)), rtol=1e-4)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("op_type", CONDITIONS)
def test_conditions_along_an_axis(op_type: str, shapes: str) -> None:
    """They decide over elements of the first operand."""
    logical = op_type in ("And", "Or", "Xor")
    p, q = ("p", "q") if logical else ("a", "b")
    model = _model(
        "g (float#A a, float#B b) => (float[] y) { p = Cast <to = 9> (a) q = Cast <to = 9> (b) "
        f"c = {op_type} <broadcast = 1, axis = 1> ({p}, {q}) m = Cast <to = 1> (c) y = Mul(a, m) }}",
        shapes,
    )
    a, b = np.where(A > 1.5, A, 0).astype(np.float32), np.array([0.0, 2.0, 1.5], np.float32)
    values = run(onnx_grad.vjp(model, ["a"]), {"a": a, "b": b, "y_grad": np.ones_like(A)})
    operands = (a != 0, (b != 0)[:, None]) if logical else (a, b[:, None])
    np.testing.assert_array_equal(values["a_grad"], CONDITIONS[op_type](*operands))


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("axis", ["", ", axis = 1"])
def test_a_second_operand_of_several_axes(axis: str, shapes: str) -> None:
    """At an axis, or at the end where none is given."""
    b = np.arange(12, dtype=np.float32).reshape(3, 4) if axis == "" else np.ones((3, 4), np.float32)
    second = SHAPES[shapes][1].replace("3", "3,4")
    model = _model(
        f"g (float#A a, float{second} b) => (float[] y) {{ y = Mul <broadcast = 1{axis}> (a, b) }}",
        shapes,
    )
    values = run(onnx_grad.vjp(model), {"a": A, "b": b, "y_grad": np.ones_like(A)})
    np.testing.assert_allclose(values["a_grad"], np.broadcast_to(b, A.shape))
    np.testing.assert_allclose(values["b_grad"], A.sum(0))


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("slope", [B, np.array([0.25], np.float32)], ids=["per channel", "shared"])
def test_prelu(slope: Array, shapes: str) -> None:
    model = _model("g (float#A a, float#B b) => (float[] y) { y = PRelu(a, b) }", shapes)
    if shapes == "static":
        model.graph.input[1].type.tensor_type.shape.dim[0].dim_value = slope.size
    a = A - 1.5
    values = run(onnx_grad.vjp(model), {"a": a, "b": slope, "y_grad": np.ones_like(A)})
    np.testing.assert_allclose(values["a_grad"], np.where(a > 0, 1, slope[:, None]))
    db = np.minimum(a, 0).sum((0, 2), keepdims=False)
    np.testing.assert_allclose(values["b_grad"], db if slope.size == 3 else [db.sum()], rtol=1e-6)


def test_prelu_of_a_vector() -> None:
    """There are no axes behind the channels, nor channels."""
    model = _model("g (float#A a, float#B b) => (float[] y) { y = PRelu(a, b) }", "unknown")
    values = run(onnx_grad.vjp(model), {"a": [-1, 2], "b": [0.5], "y_grad": [1, 1]})
    np.testing.assert_allclose(values["a_grad"], [0.5, 1])
    np.testing.assert_allclose(values["b_grad"], [-1])


def test_known_ranks_need_no_arithmetic() -> None:
    model = _model("g (float#A a, float#B b) => (float[] y) { y = PRelu(a, b) }", "static")
    assert not {"Shape", "Expand", "Reshape"} & set(operators(onnx_grad.vjp(model, ["a"])))


def test_training_of_batch_normalization_is_refused() -> None:
    model = parse(
        "g (float[2,3] x, float[3] s, float[3] b, float[3] m, float[3] v) => (float[2,3] y) "
        "{ [norm] y = BatchNormalization(x, s, b, m, v) }",
        opset=6,
    )
    with pytest.raises(onnx_grad.ModelError, match="'norm' is a BatchNormalization of opset 6 in training"):
        onnx_grad.vjp(model, ["x"])
