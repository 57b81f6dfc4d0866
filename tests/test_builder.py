"""How rules build nodes: promoted constants, shared nodes, dtypes, names."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnx_grad.builder import Builder
from onnx_grad.recording import recording


@pytest.fixture
def op() -> Builder:
    return Builder(18, {"x"})


def value(dtype: ir.DataType | None, name: str = "x", shape: tuple[int, ...] = (2,)) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=None if dtype is None else ir.TensorType(dtype))


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE])
def test_numbers_take_the_dtype_of_the_operand_they_meet(op: Builder, dtype: ir.DataType) -> None:
    x = value(dtype)
    with recording(op):
        result = 1.0 - x * 2
    assert result.dtype == dtype
    assert {constant.dtype for constant in op.initializers} == {dtype}


def test_numbers_beside_a_value_of_unknown_type_are_cast_when_it_runs(op: Builder) -> None:
    op.Mul(value(None), 2.0)
    assert [node.op_type for node in op.nodes] == ["CastLike", "Mul"]


def test_integers_that_are_no_operands_are_int64(op: Builder) -> None:
    op.ReduceSum(value(ir.DataType.FLOAT), [0], keepdims=0)
    assert [constant.dtype for constant in op.initializers] == [ir.DataType.INT64]


def test_arrays_are_taken_as_they_are(op: Builder) -> None:
    op.Mul(value(ir.DataType.FLOAT), np.ones((3, 0), np.float32))
    (constant,) = op.initializers
    assert constant.shape == (3, 0)


def test_equal_nodes_and_constants_are_shared(op: Builder) -> None:
    x = value(ir.DataType.FLOAT)
    assert op.Mul(x, 2.0) is op.Mul(x, 2.0)
    assert op.Mul(x, 2.0) is not op.Mul(x, 3.0)
    assert op.Transpose(x, perm=[0]) is op.Transpose(x, perm=[0])
    assert op.Cast(x, to=1) is not op.Cast(x, to=11)
    assert len(op.initializers) == 2


def test_random_nodes_are_never_shared(op: Builder) -> None:
    x = value(ir.DataType.FLOAT)
    assert op.RandomNormalLike(x) is not op.RandomNormalLike(x)


@pytest.mark.parametrize(
    ("build", "dtype"),
    [
        (lambda op, x: op.Cast(x, to=ir.DataType.BOOL), ir.DataType.BOOL),
        (lambda op, x: op.Equal(x, 0.0), ir.DataType.BOOL),
        (lambda op, x: op.Shape(x), ir.DataType.INT64),
        (lambda op, x: op.ArgMax(x), ir.DataType.INT64),
        (lambda op, x: op.Where(op.Equal(x, 0.0), x, x), ir.DataType.DOUBLE),
        (lambda op, x: op.MaxPool(x, kernel_shape=[1], outputs=2)[1], ir.DataType.INT64),
    ],
)
def test_dtypes_are_carried_along(op: Builder, build, dtype: ir.DataType) -> None:
    assert build(op, value(ir.DataType.DOUBLE)).dtype == dtype


def test_the_shape_of_a_static_value_is_a_constant(op: Builder) -> None:
    assert op.shape(value(ir.DataType.FLOAT)).const_value is not None
    dynamic = ir.Value(name="d", shape=ir.Shape(["N"]), type=ir.TensorType(ir.DataType.FLOAT))
    assert op.shape(dynamic).producer().op_type == "Shape"


@pytest.mark.parametrize(
    ("dims", "lengths"),
    [((2, 3), [2, 3]), (("N", 3), [-1, 3]), ((2, None), [2, -1]), (("N", "M"), None), (("N", 0), None)],
    ids=str,
)
def test_a_shape_but_for_one_dimension_is_a_constant(
    op: Builder, dims: tuple[int | str | None, ...], lengths: list[int] | None
) -> None:
    like = ir.Value(name="like", shape=ir.Shape(dims), type=ir.TensorType(ir.DataType.FLOAT))
    node = op.reshape_like(value(ir.DataType.FLOAT), like).producer()
    given = node.inputs[1].const_value
    assert (None if given is None else given.numpy().tolist()) == lengths


def test_names_are_new_in_the_model(op: Builder) -> None:
    assert op.unique_name("x") == "x_1"
    assert op.unique_name("x") == "x_2"


def test_no_such_operator(op: Builder) -> None:
    with pytest.raises(AttributeError):
        op.nothing(value(ir.DataType.FLOAT))


def test_arithmetic_outside_of_a_transform() -> None:
    with pytest.raises(ValueError, match="magic handler"):
        value(ir.DataType.FLOAT) * 2.0


def test_a_handler_of_somebody_else_is_put_back(op: Builder) -> None:
    class Theirs:
        def Mul(self, a, b):
            return "theirs"

    before = ir.set_value_magic_handler(Theirs())
    try:
        x = value(ir.DataType.FLOAT)
        with recording(op):
            assert isinstance(x * 2.0, ir.Value)
        assert x * 2.0 == "theirs"
    finally:
        ir.set_value_magic_handler(before)


def test_a_sum_with_a_negative_is_a_difference(op: Builder) -> None:
    x, y = value(ir.DataType.FLOAT), value(ir.DataType.FLOAT, "y")
    for total in (op.total(x, op.Neg(y)), op.total(op.Neg(y), x)):
        node = total.producer()
        assert (node.op_type, list(node.inputs)) == ("Sub", [x, y])
    assert op.total(x, y).producer().op_type == "Add"
