"""Operators that only rearrange, repeat or convert elements."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import check, gradients, graph_model, single_node
from tests.rules.forms import check_forms, check_narrow, integers, normal


@pytest.mark.parametrize(
    ("shape", "target", "allowzero"),
    [
        ((2, 3), (3, -1), 0),
        ((2, 3), (0, 3, 1), 0),
        ((2, 0), (0, 5), 1),
        ((), (1, 1), 0),
        ((1, 1), (), 0),
    ],
    ids=str,
)
def test_reshape(shape: tuple[int, ...], target: tuple[int, ...], allowzero: int) -> None:
    check_forms("Reshape", {"x": normal(*shape), "shape": integers(*target)}, allowzero=allowzero)


@pytest.mark.parametrize("axis", [0, 1, -1, 3])
def test_flatten(axis: int) -> None:
    check_forms("Flatten", {"x": normal(2, 1, 3)}, axis=axis)


@pytest.mark.parametrize("axes", [(1,), (-1, 1)], ids=str)
def test_squeeze(axes: tuple[int, ...]) -> None:
    check_forms("Squeeze", {"x": normal(2, 1, 3, 1), "axes": integers(*axes)})


def test_squeeze_of_every_axis_of_length_one() -> None:
    check_forms("Squeeze", {"x": normal(2, 1, 3, 1)})


def test_squeeze_of_no_axes_at_run_time() -> None:
    # ONNX Runtime squeezes every axis of length 1, though the specification says none.
    inputs = {"x": normal(1, 1), "axes": integers()}
    check(single_node("Squeeze", inputs), inputs, second_order=True)


@pytest.mark.parametrize("axes", [(), (0,), (-1, 1), (3, 0)], ids=str)
def test_unsqueeze(axes: tuple[int, ...]) -> None:
    check_forms("Unsqueeze", {"x": normal(2, 3), "axes": integers(*axes)})


@pytest.mark.parametrize(
    ("shape", "target"),
    [((2, 1), (3, 1, 4)), ((2, 3), (1,)), ((), (2, 2)), ((0, 1), (1, 2)), ((2, 3), (2, 3))],
    ids=str,
)
def test_expand(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    check_forms("Expand", {"x": normal(*shape), "shape": integers(*target)})


@pytest.mark.parametrize("perm", [None, (2, 0, 1), (0, 1, 2)], ids=str)
def test_transpose(perm: tuple[int, ...] | None) -> None:
    attributes = {} if perm is None else {"perm": perm}
    check_forms("Transpose", {"x": normal(2, 3, 1)}, **attributes)


def test_identity() -> None:
    check_forms("Identity", {"x": normal(2)})


@pytest.mark.parametrize("axis", [1, -2])
def test_concat(axis: int) -> None:
    inputs = {"a": normal(2, 3, 2), "b": normal(2, 1, 2, seed=1), "empty": normal(2, 0, 2)}
    check_forms("Concat", inputs, axis=axis)


def test_concat_of_one_and_of_the_same() -> None:
    x = {"x": normal(2, 3)}
    check_forms("Concat", x, axis=0)
    twice = onnx.helper.make_node("Concat", ["x", "x"], ["y"], axis=-1)
    check(graph_model([twice], x, ["y"]), x)


def test_concat_with_one_symbolic_length() -> None:
    inputs = {"a": normal(2, 3), "b": normal(2, 2, seed=1)}
    model = single_node("Concat", inputs, axis=1)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "length"
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "total"
    check(model, inputs, shapes=["static"])


@pytest.mark.parametrize("axis", [0, -2])
@pytest.mark.parametrize("lengths", [(2, 3), (0, 4, 1), (5,)], ids=str)
def test_split_into_lengths(axis: int, lengths: tuple[int, ...]) -> None:
    inputs = {"x": normal(5, 2), "split": integers(*lengths)}
    check_forms("Split", inputs, outputs=len(lengths), axis=axis)


def test_split_into_uneven_parts() -> None:
    check_forms("Split", {"x": normal(2, 7)}, outputs=3, axis=1, num_outputs=3)


@pytest.mark.parametrize("used", [["y0"], ["y2"], ["y1", "y2"]], ids=str)
def test_split_of_which_parts_are_unused(used: list[str]) -> None:
    x = {"x": normal(6, 2)}
    check(single_node("Split", x, outputs=3, num_outputs=3), x, of=used)


@pytest.mark.parametrize(
    ("shape", "repeats"),
    [((2, 3), (2, 3)), ((2, 3), (1, 3)), ((2, 3), (1, 1)), ((2, 3), (0, 2)), ((), ()), ((2, 0), (3, 2))],
    ids=str,
)
def test_tile(shape: tuple[int, ...], repeats: tuple[int, ...]) -> None:
    check_forms("Tile", {"x": normal(*shape), "repeats": integers(*repeats)})


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(mode: str, batch: int) -> None:
    check_forms("DepthToSpace", {"x": normal(batch, 8, 1, 2)}, blocksize=2, mode=mode)


def test_space_to_depth() -> None:
    check_forms("SpaceToDepth", {"x": normal(1, 2, 4, 2)}, blocksize=2)


@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_space_to_depth_in_the_order_of_opset_28(mode: str) -> None:
    inputs = {"x": normal(1, 2, 4, 2)}
    check(single_node("SpaceToDepth", inputs, opset=28, blocksize=2, mode=mode), inputs)


@pytest.mark.parametrize(
    ("op_type", "inputs", "attributes"),
    [
        ("Tile", {"x": normal(2, 3), "repeats": integers(2, 3)}, {}),
        ("Expand", {"x": normal(2, 1), "shape": integers(2, 4)}, {}),
        ("Transpose", {"x": normal(2, 3)}, {"perm": [1, 0]}),
        ("DepthToSpace", {"x": normal(1, 4, 2, 2)}, {"blocksize": 2, "mode": "CRD"}),
    ],
    ids=str,
)
def test_narrow_dtypes(op_type: str, inputs: dict[str, np.ndarray], attributes: dict[str, object]) -> None:
    check_narrow(op_type, inputs, **attributes)


FLOATS = {
    np.float64: onnx.TensorProto.DOUBLE,
    np.float32: onnx.TensorProto.FLOAT,
    np.float16: onnx.TensorProto.FLOAT16,
}


@pytest.mark.parametrize("target", FLOATS, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("source", FLOATS, ids=lambda dtype: dtype.__name__)
def test_cast_passes_between_floats(source: type[np.generic], target: type[np.generic]) -> None:
    inputs = {"x": np.array([1.5, -2.0], source)}
    actual = gradients(
        single_node("Cast", inputs, to=FLOATS[target]), inputs, {"y0": np.array([0.5, 3.0], target)}, ["x"]
    )
    assert actual["x"].dtype == source
    np.testing.assert_array_equal(actual["x"], [0.5, 3.0])


def test_cast_like_passes_to_its_first_input_only() -> None:
    inputs = {"x": np.array([1.5, -2.0]), "like": np.array([1.0], np.float32)}
    actual = gradients(
        single_node("CastLike", inputs), inputs, {"y0": np.array([0.5, 3.0], np.float32)}, ["x", "like"]
    )
    np.testing.assert_array_equal(actual["x"], [0.5, 3.0])
    np.testing.assert_array_equal(actual["like"], [0.0])


@pytest.mark.parametrize("target", [onnx.TensorProto.INT64, onnx.TensorProto.BOOL])
def test_nothing_flows_through_an_integer(target: int) -> None:
    there = onnx.helper.make_node("Cast", ["x"], ["rounded"], to=target)
    back = onnx.helper.make_node("Cast", ["rounded"], ["y"], to=onnx.TensorProto.DOUBLE)
    x = {"x": np.array([1.5, -2.25])}
    model = graph_model([there, back], x, ["y"])
    with pytest.warns(onnx_grad.NoPathWarning):
        onnx_grad.vjp(model, ["x"], ["y"])
    np.testing.assert_array_equal(gradients(model, x, {"y": np.ones(2)}, ["x"])["x"], [0, 0])


@pytest.mark.parametrize("op_type", ["Shape", "Size"])
def test_nothing_flows_through_a_shape(op_type: str) -> None:
    x = {"x": normal(2, 3)}
    measure = onnx.helper.make_node(op_type, ["x"], ["n"])
    number = onnx.helper.make_node("Cast", ["n"], ["scale"], to=onnx.TensorProto.DOUBLE)
    total = onnx.helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0)
    product = onnx.helper.make_node("Mul", ["total", "scale"], ["y"])
    check(graph_model([measure, number, total, product], x, ["y"]), x)
