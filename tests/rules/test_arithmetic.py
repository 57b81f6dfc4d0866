"""Arithmetic, broadcast in every direction."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.oracle import check, graph_model, single_node
from tests.rules.pointwise import TOLERANCES, slopes

SHAPES = [
    ((2, 3), (2, 3)),
    ((2, 3), (3,)),
    ((3,), (2, 3)),
    ((2, 1), (1, 3)),
    ((2, 3), ()),
    ((), ()),
    ((2, 1, 3), (4, 1)),
    ((0, 3), (1, 3)),
    ((1, 1), (1,)),
]

# Derivatives by the operands at (a, b) = (3, 2).
SLOPES = {
    "Add": (1, 1),
    "Sub": (1, -1),
    "Mul": (2, 3),
    "Div": (0.5, -0.75),
    "Sum": (1, 1),
    "Mean": (0.5, 0.5),
}


def _operands(*shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    return {
        name: np.asarray(generator.uniform(0.5, 2.0, shape))
        for name, shape in zip("abc", shapes, strict=False)
    }


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_two_operands(op_type: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = _operands(*shapes)
    check(single_node(op_type, inputs), inputs, second_order=op_type in ("Mul", "Div"))


@pytest.mark.parametrize("op_type", ["Sum", "Mean"])
@pytest.mark.parametrize("shapes", [((2, 3),), ((2, 3), (3,)), ((2, 3), (), (1, 3), (2, 1))], ids=str)
def test_any_number_of_operands(op_type: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    inputs = _operands(*shapes)
    check(single_node(op_type, inputs), inputs)


def test_an_operand_used_twice() -> None:
    inputs = {"a": np.array([2.0, 3.0])}
    square = onnx.helper.make_node("Mul", ["a", "a"], ["y"])
    check(graph_model([square], inputs, ["y"]), inputs, second_order=True)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("op_type", SLOPES)
def test_dtype_is_kept(op_type: str, dtype: type) -> None:
    inputs = {"a": np.full((2, 2), 3, dtype), "b": np.full((2, 2), 2, dtype)}
    for gradient, expected in zip(slopes(op_type, inputs).values(), SLOPES[op_type], strict=True):
        assert gradient.dtype == dtype
        np.testing.assert_allclose(gradient, expected, rtol=TOLERANCES[dtype])


def test_negation_and_absolute_value() -> None:
    inputs = {"x": np.array([[-2.0, 0.5], [3.0, -0.1]])}
    check(single_node("Neg", inputs), inputs, second_order=True)
    check(single_node("Abs", inputs), inputs, second_order=True)


def test_absolute_value_is_flat_at_zero() -> None:
    np.testing.assert_array_equal(slopes("Abs", {"x": np.array([0.0, -0.0])})["x"], [0, 0])


@pytest.mark.parametrize(("fmod", "opset"), [(1, 18), (1, 28), (0, 28)])
@pytest.mark.parametrize("shapes", [((2, 3), (2, 3)), ((2, 3), (3,)), ((), (2, 1))], ids=str)
def test_modulo(fmod: int, opset: int, shapes: tuple[tuple[int, ...], ...]) -> None:
    signs = {"a": -7.3, "b": 1.0}
    inputs = {name: np.asarray(signs[name] * operand) for name, operand in _operands(*shapes).items()}
    check(single_node("Mod", inputs, opset=opset, fmod=fmod), inputs, second_order=True)


def test_modulo_by_each_sign() -> None:
    inputs = {"a": np.array([7.5, -7.5, 7.5, -7.5]), "b": np.array([2.0, 2.0, -2.0, -2.0])}
    truncated = slopes("Mod", inputs, fmod=1)
    np.testing.assert_array_equal(truncated["a"], 1)
    np.testing.assert_array_equal(truncated["b"], [-3, 3, 3, -3])
    floored = slopes("Mod", inputs, fmod=0, opset=28)
    np.testing.assert_array_equal(floored["b"], [-3, 4, 4, -3])


def test_modulo_of_a_multiple_takes_the_quotient_there() -> None:
    inputs = {"a": np.array([4.0, -4.0, 0.3]), "b": np.array([2.0, 2.0, 0.1])}
    quotients = np.rint((inputs["a"] - np.fmod(inputs["a"], inputs["b"])) / inputs["b"])
    np.testing.assert_array_equal(slopes("Mod", inputs, fmod=1)["b"], -quotients)
