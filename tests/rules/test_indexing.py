"""Operators that pick elements by index."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import check, gradients, graph_model, single_node
from tests.rules.forms import check_forms, check_narrow, integers, normal


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
@pytest.mark.parametrize(
    "indices",
    [
        np.array(-2),
        integers(1),
        integers(0, 1, 1, -1),
        np.array([[0, -2], [1, 1]]),
        np.array([[1]]),
        np.array([1, 0], np.int32),
        integers(),
    ],
    ids=str,
)
def test_gather(indices: np.ndarray, axis: int) -> None:
    # Second order scatters and gathers again: once for each shape of indices is enough.
    check_forms("Gather", {"x": normal(2, 3, 2), "i": indices}, axis=axis, second_order=axis == 1)


@pytest.mark.parametrize(("shape", "axis"), [((0, 4), 1), ((3, 0), 0), ((2, 0, 3), -1), ((4,), -1)], ids=str)
def test_gather_from_an_empty_tensor_or_a_vector(shape: tuple[int, ...], axis: int) -> None:
    check_forms("Gather", {"x": normal(*shape), "i": integers(2, 0)}, axis=axis)


@pytest.mark.parametrize("axis", [0, -1])
def test_gather_of_a_constant_permutation_needs_no_addition(axis: int) -> None:
    x = {"x": normal(4, 4)}
    node = onnx.helper.make_node("Gather", ["x", "i"], ["y"], axis=axis)
    model = graph_model([node], x, ["y"], initializers={"i": integers(2, 0, -1, 1)})
    assert [n.op_type for n in onnx_grad.vjp(model, ["x"]).graph.node] == ["Gather", "Gather"]
    check(model, x, second_order=True)


def test_embedding_adds_up_repeated_words() -> None:
    inputs = {"table": normal(5, 2), "words": np.array([[0, 3, 3], [3, 1, 0]])}
    dy = np.arange(12.0).reshape(2, 3, 2)
    actual = gradients(single_node("Gather", inputs), inputs, {"y0": dy}, ["table"])
    expected = np.zeros((5, 2))
    np.add.at(expected, inputs["words"], dy)
    np.testing.assert_array_equal(actual["table"], expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_gather_elements(axis: int) -> None:
    inputs = {"x": normal(3, 3), "i": np.array([[0, -1, 0], [1, 1, 2]])}
    check_forms("GatherElements", inputs, axis=axis)


def test_gather_elements_from_32_bit_indices() -> None:
    check_forms("GatherElements", {"x": normal(3, 2), "i": np.array([[0, 0]], np.int32)})


@pytest.mark.parametrize(
    ("shape", "indices", "batch_dims"),
    [
        ((3, 4, 2), [[0, 1], [0, 1], [-1, -2]], 0),
        ((3, 4, 2), [0, 1, -1], 0),
        ((3, 4, 2), [[[0], [1]], [[1], [1]], [[-1], [-2]]], 1),
        ((3, 4, 2), [[0], [1], [3]], 1),
        ((1, 2, 2, 3), [[[[0, 1], [0, 1]], [[-1, 0], [1, 2]]]], 2),
        ((2, 0, 4), np.zeros((2, 0, 1), np.int64), 2),
    ],
    ids=str,
)
def test_gather_nd(shape: tuple[int, ...], indices: object, batch_dims: int) -> None:
    check_forms("GatherND", {"x": normal(*shape), "i": np.array(indices)}, batch_dims=batch_dims)


@pytest.mark.parametrize("is_sorted", [0, 1])
@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [0, -1])
def test_top_k(axis: int, largest: int, is_sorted: int) -> None:
    inputs = {"x": normal(3, 4), "k": integers(2)}
    check_forms("TopK", inputs, outputs=2, axis=axis, largest=largest, sorted=is_sorted)


@pytest.mark.parametrize(
    ("condition", "axis"),
    [([1, 0, 1], 0), ([1, 0, 1], -1), ([0, 1], 1), ([1, 0, 1, 0, 0, 1], None), ([0, 0], 0)],
    ids=str,
)
def test_compress(condition: list[int], axis: int | None) -> None:
    attributes = {} if axis is None else {"axis": axis}
    check_forms("Compress", {"x": normal(3, 4), "condition": np.array(condition, bool)}, **attributes)


@pytest.mark.parametrize("is_sorted", [0, 1])
def test_unique_elements(is_sorted: int) -> None:
    x = {"x": np.array([[2.0, 1.5], [3.0, 0.5]])}
    check(single_node("Unique", x, sorted=is_sorted), x, second_order=True)


@pytest.mark.parametrize("axis", [0, -1])
def test_unique_slices(axis: int) -> None:
    x = {"x": np.array([[2.0, 1.0], [5.0, 3.0], [0.5, 4.0]])}
    check(single_node("Unique", x, axis=axis), x, second_order=True)


def test_equal_elements_of_unique_share() -> None:
    x = {"x": np.array([2.0, 1.0, 2.0, 3.0])}
    actual = gradients(single_node("Unique", x), x, {"y0": np.array([5.0, 8.0, 7.0])}, ["x"])
    np.testing.assert_array_equal(actual["x"], [4.0, 5.0, 4.0, 7.0])


def test_equal_slices_of_unique_share() -> None:
    x = {"x": np.array([[1.0, 2.0], [0.0, 2.0], [1.0, 2.0]])}
    dy = np.array([[1.0, 2.0], [4.0, 6.0]])
    actual = gradients(single_node("Unique", x, axis=0), x, {"y0": dy}, ["x"])
    np.testing.assert_array_equal(actual["x"], [[2.0, 3.0], [1.0, 2.0], [2.0, 3.0]])


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    inputs = {"i": np.array([[0, 2], [-1, 5]]), "depth": np.array(3), "values": np.array([0.5, 2.0])}
    check_forms("OneHot", inputs, axis=axis)


def test_nothing_flows_through_indices() -> None:
    x = {"x": np.array([1.5, -2.0, 3.0])}
    nodes = [
        onnx.helper.make_node("ArgMax", ["x"], ["largest"], keepdims=0),
        onnx.helper.make_node("NonZero", ["x"], ["nonzero"]),
        onnx.helper.make_node("Gather", ["x", "largest"], ["top"]),
        onnx.helper.make_node("Gather", ["x", "nonzero"], ["y"]),
    ]
    check(graph_model(nodes, x, ["top", "y"]), x)


CASES = {
    "Gather rows": ("Gather", {"x": normal(3, 2), "i": integers(0, 2, 2)}, {}),
    "Gather columns": ("Gather", {"x": normal(3, 4), "i": integers(0, 2, 2)}, {"axis": 1}),
    "GatherElements": ("GatherElements", {"x": normal(3, 2), "i": np.array([[0, 0], [0, 2]])}, {}),
    "GatherND": ("GatherND", {"x": normal(3, 2), "i": np.array([[0, 1], [0, 1]])}, {}),
    "TopK": ("TopK", {"x": normal(5), "k": integers(2)}, {"outputs": 2}),
    "Compress": ("Compress", {"x": normal(3), "condition": np.array([True, False, True])}, {"axis": 0}),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_narrow_dtypes(case: tuple[str, dict[str, np.ndarray], dict[str, int]]) -> None:
    op_type, inputs, attributes = case
    check_narrow(op_type, inputs, **attributes)


def test_many_small_contributions_add_up_in_half_precision() -> None:
    inputs = {"table": np.zeros((2, 1), np.float16), "words": np.zeros(3000, np.int64)}
    dy = np.full((3000, 1), 0.01, np.float16)
    actual = gradients(single_node("Gather", inputs), inputs, {"y0": dy}, ["table"])
    np.testing.assert_allclose(actual["table"], [[30.0], [0.0]], rtol=2e-3)
