"""Reductions along axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.oracle import check, gradients, single_node
from tests.rules.forms import check_forms, check_narrow, integers, normal

REDUCTIONS = [
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
]
WITHOUT_EMPTY = [op_type for op_type in REDUCTIONS if op_type not in ("ReduceMax", "ReduceMin")]

# axes, keepdims, noop_with_empty_axes
FORMS = [
    (None, 1, 0),
    (None, 0, 0),
    (None, 0, 1),
    ((), 0, 0),
    ((), 1, 1),
    ((1,), 0, 1),
    ((-2,), 1, 0),
    ((-1, 0), 0, 0),
]

POSITIVE = np.abs(normal(2, 3, 2)) + 0.3


@pytest.mark.parametrize(("axes", "keepdims", "noop"), FORMS, ids=str)
@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_reduction(op_type: str, axes: tuple[int, ...] | None, keepdims: int, noop: int) -> None:
    inputs = {"x": POSITIVE, "axes": None if axes is None else integers(*axes)}
    # The axes matter to the first derivative, the formula to the second: one form of each is enough.
    second_order = (axes, keepdims) == ((-1, 0), 0)
    check_forms(op_type, inputs, keepdims=keepdims, noop_with_empty_axes=noop, second_order=second_order)


@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_reduction_of_a_scalar(op_type: str) -> None:
    check_forms(op_type, {"x": np.array(1.5)})


@pytest.mark.parametrize("axes", [(1,), (0, -1)], ids=str)
@pytest.mark.parametrize("op_type", WITHOUT_EMPTY)
def test_reduction_of_an_empty_tensor(op_type: str, axes: tuple[int, ...]) -> None:
    # ln 0 is infinite, and so is its tangent.
    inputs = {"x": normal(2, 0, 1), "axes": integers(*axes)}
    check_forms(op_type, inputs, tangents=op_type != "ReduceLogSum")


@pytest.mark.parametrize("op_type", ["ReduceL1", "ReduceSum", "ReduceMean", "ReduceProd", "ReduceSumSquare"])
def test_reduction_of_both_signs(op_type: str) -> None:
    check_forms(op_type, {"x": normal(2, 3), "axes": integers(1)})


@pytest.mark.parametrize("op_type", REDUCTIONS)
def test_narrow_dtypes(op_type: str) -> None:
    check_narrow(op_type, {"x": POSITIVE, "axes": integers(1)}, keepdims=0)


def test_mean_over_more_elements_than_half_precision_counts() -> None:
    x = {"x": np.ones(100_000, np.float16)}
    actual = gradients(single_node("ReduceMean", x, keepdims=0), x, {"y0": np.array(100, np.float16)}, ["x"])
    np.testing.assert_allclose(actual["x"][:3], [1e-3] * 3, rtol=1e-2)


@pytest.mark.parametrize(
    "x",
    [[[0.0, 2.0, 3.0]], [[0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]], [[0.0, -2.0], [3.0, 4.0]]],
    ids=["one zero", "two zeros", "three zeros", "one row with a zero"],
)
def test_product_with_zeros(x: list[list[float]]) -> None:
    inputs = {"x": np.array(x), "axes": integers(1)}
    check(single_node("ReduceProd", inputs), inputs, second_order=True)


@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize(("op_type", "sign"), [("ReduceMax", 1.0), ("ReduceMin", -1.0)])
def test_equal_extrema_share_evenly(op_type: str, sign: float, keepdims: int) -> None:
    x = {"x": sign * np.array([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]), "axes": integers(1)}
    model = single_node(op_type, x, keepdims=keepdims)
    dy = np.array([[4.0], [6.0]]) if keepdims else np.array([4.0, 6.0])
    actual = gradients(model, x, {"y0": dy}, ["x"])
    np.testing.assert_array_equal(actual["x"], [[0, 2, 2], [2, 2, 2]])


def test_norms_at_zero() -> None:
    np.testing.assert_array_equal(_slope("ReduceL2", [0.0, 0.0]), [0.0, 0.0])
    np.testing.assert_array_equal(_slope("ReduceL1", [0.0, -2.0, 3.0]), [0.0, -1.0, 1.0])


def test_logarithm_of_a_sum_of_large_and_of_vanishing_exponentials() -> None:
    np.testing.assert_allclose(_slope("ReduceLogSumExp", [1000.0, 1000.0]), [0.5, 0.5])
    np.testing.assert_allclose(_slope("ReduceLogSumExp", [-2000.0, -1000.0]), [0.0, 1.0])
    np.testing.assert_array_equal(_slope("ReduceLogSumExp", [-np.inf, 0.0]), [0.0, 1.0])
    np.testing.assert_array_equal(_slope("ReduceLogSumExp", [-np.inf, -np.inf]), [0.0, 0.0])


POINTS = np.array([[1.0, 3.0, 3.0], [0.0, 0.0, 0.0], [0.0, -2.0, 5.0]])


@pytest.mark.parametrize(
    ("op_type", "in_pytorch"),
    [
        ("ReduceMax", lambda torch, x: x.amax(1)),
        ("ReduceMin", lambda torch, x: x.amin(1)),
        ("ReduceProd", lambda torch, x: x.prod(1)),
        ("ReduceL1", lambda torch, x: torch.linalg.vector_norm(x, 1, dim=1)),
        ("ReduceL2", lambda torch, x: torch.linalg.vector_norm(x, dim=1)),
        ("ReduceLogSumExp", lambda torch, x: x.logsumexp(1)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_agrees_with_pytorch(op_type: str, in_pytorch: Callable[[Any, Any], Any]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    x = torch.tensor(POINTS, requires_grad=True)
    in_pytorch(torch, x).sum().backward()
    inputs = {"x": POINTS, "axes": integers(1)}
    actual = gradients(single_node(op_type, inputs, keepdims=0), inputs, {"y0": np.ones(3)}, ["x"])
    np.testing.assert_allclose(actual["x"], x.grad, rtol=1e-12)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("exclusive", [0, 1])
def test_cumulative_sum(exclusive: int, reverse: int, axis: int) -> None:
    inputs = {"x": normal(3, 4), "axis": np.array(axis)}
    check_forms("CumSum", inputs, exclusive=exclusive, reverse=reverse)


def test_cumulative_sum_of_nothing_and_in_single_precision() -> None:
    check_forms("CumSum", {"x": normal(0, 2), "axis": np.array(0)})
    check_narrow("CumSum", {"x": normal(3, 2), "axis": np.array(0, np.int32)})


def _slope(op_type: str, x: list[float]) -> np.ndarray:
    """The gradient of `op_type` over all of the vector `x`."""
    inputs = {"x": np.array(x)}
    model = single_node(op_type, inputs, keepdims=0)
    return gradients(model, inputs, {"y0": np.array(1.0)}, ["x"])["x"]
