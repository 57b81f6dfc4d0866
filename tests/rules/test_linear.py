"""Matrix products of every rank, with every way of stretching batch axes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.oracle import check, gradients, single_node

Shapes = tuple[tuple[int, ...], tuple[int, ...]]

MATMUL_SHAPES = [
    # A vector on one side or both.
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((2, 2, 3), (3,)),
    ((3,), (3, 2)),
    ((3,), (2, 3, 4)),
    # A linear layer: the second operand is one matrix.
    ((2, 3), (3, 4)),
    ((2, 3, 4), (4, 2)),
    ((2, 1, 3, 4), (4, 2)),
    # Batches, stretched on either side or both.
    ((2, 3), (2, 3, 4)),
    ((2, 2, 3), (2, 3, 4)),
    ((2, 3), (2, 1, 3, 2)),
    ((1, 2, 3), (2, 3, 1)),
    ((2, 2, 3), (1, 3, 2)),
    ((2, 1, 2, 3), (3, 3, 2)),
    ((2, 1, 1, 3), (1, 3, 3, 2)),
    # Empty axes.
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((2, 2, 0), (0, 3)),
    ((2, 0, 3), (2, 3, 2)),
    ((2, 2, 0), (2, 0, 2)),
    ((2, 2, 0), (0,)),
    ((0,), (0,)),
]


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).standard_normal(shape))


@pytest.mark.parametrize("shapes", MATMUL_SHAPES, ids=str)
def test_matmul(shapes: Shapes) -> None:
    inputs = {"a": _random(*shapes[0]), "b": _random(*shapes[1])}
    check(single_node("MatMul", inputs), inputs)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3,)), ((3,), (2, 3, 2)), ((2, 2, 3), (3, 2)), ((2, 1, 2, 3), (2, 3, 2))], ids=str
)
def test_matmul_second_order(shapes: Shapes) -> None:
    inputs = {"a": _random(*shapes[0]), "b": _random(*shapes[1])}
    check(single_node("MatMul", inputs), inputs, second_order=True)


@pytest.mark.parametrize(
    ("symbols", "expected"),
    [
        ((("n", "k"), ("k", "m")), ["Gemm", "Gemm"]),
        ((("b", "n", "k"), ("k", "m")), ["Transpose", "MatMul", "Flatten", "Flatten", "Gemm"]),
        ((("b", "n", "k"), ("b", "k", "m")), ["Transpose", "MatMul", "Transpose", "MatMul"]),
    ],
)
def test_matmul_of_shared_symbols_undoes_nothing(
    symbols: tuple[tuple[str, ...], tuple[str, ...]], expected: list[str]
) -> None:
    a, b = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in zip("ab", symbols, strict=True)
    )
    y = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("MatMul", ["a", "b"], ["y"])
    graph = onnx.helper.make_graph([node], "product", [a, b], [y])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)])
    assert [n.op_type for n in onnx_grad.vjp(model).graph.node] == ["MatMul", *expected]


@pytest.mark.parametrize("trans_a", [0, 1])
@pytest.mark.parametrize("trans_b", [0, 1])
@pytest.mark.parametrize("c_shape", [None, (2, 4)], ids=str)
def test_gemm_transposed(trans_a: int, trans_b: int, c_shape: tuple[int, ...] | None) -> None:
    a, b = _random(2, 3), _random(3, 4)
    inputs = {"a": a.T.copy() if trans_a else a, "b": b.T.copy() if trans_b else b}
    if c_shape is not None:
        inputs["c"] = _random(*c_shape)
    check(
        single_node("Gemm", inputs, transA=trans_a, transB=trans_b, alpha=0.5, beta=1.5),
        inputs,
        second_order=True,
    )


@pytest.mark.parametrize("c_shape", [(), (1,), (4,), (1, 4), (2, 1), (1, 1), (2, 4)], ids=str)
def test_gemm_stretches_c(c_shape: tuple[int, ...]) -> None:
    inputs = {"a": _random(2, 3), "b": _random(3, 4), "c": _random(*c_shape)}
    check(single_node("Gemm", inputs), inputs)


@pytest.mark.parametrize("shapes", [((0, 3), (3, 2)), ((2, 0), (0, 3)), ((2, 3), (3, 0))], ids=str)
def test_gemm_of_empty_matrices(shapes: Shapes) -> None:
    inputs = {"a": _random(*shapes[0]), "b": _random(*shapes[1]), "c": _random(shapes[1][1])}
    check(single_node("Gemm", inputs), inputs)


def test_gemm_without_beta_gives_c_no_gradient() -> None:
    inputs = {"a": _random(2, 3), "b": _random(3, 4), "c": _random(4)}
    check(single_node("Gemm", inputs, alpha=2.0, beta=0.0), inputs)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_lower_precision(dtype: type[np.floating]) -> None:
    a, b, dy = (_random(*shape).astype(dtype) for shape in [(2, 3, 4), (4, 2), (2, 3, 2)])
    model = single_node("MatMul", {"a": a, "b": b})
    actual = gradients(model, {"a": a, "b": b}, {"y0": dy}, ["a", "b"])
    tolerance = 8 * np.finfo(dtype).eps
    assert actual["a"].dtype == actual["b"].dtype == dtype
    np.testing.assert_allclose(actual["a"], dy @ b.T, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        actual["b"], np.einsum("bnk,bnm->km", a, dy, dtype=np.float64), rtol=tolerance, atol=tolerance
    )
