"""Reductions, softmaxes and cumulative sums: every way to give axes, ties, zeros, empty and masked rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import integers, normal, positive, tied


def product(x: Any, axes: tuple[int, ...], keepdim: bool) -> Any:
    """The product over several axes, which `torch.prod` takes one by one."""
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


REDUCTIONS: dict[str, Callable[[Any, tuple[int, ...], bool], Any]] = {
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keepdim=keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": product,
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keepdim=keep),
    "ReduceL2": lambda x, axes, keep: torch.linalg.vector_norm(x, dim=axes, keepdim=keep),
    "ReduceLogSum": lambda x, axes, keep: x.sum(axes, keepdim=keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keepdim=keep),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keepdim=keep),
}
# Axes as they are given, and those that are meant.
AXES: list[tuple[np.ndarray | None, tuple[int, ...]]] = [
    (None, (0, 1, 2)),
    (integers(), (0, 1, 2)),
    (integers(1), (1,)),
    (integers(-1, 0), (-1, 0)),
]


def reductions(shape: tuple[int, ...] = (2, 3, 4)) -> Iterator[Row]:
    for op_type, reduce in REDUCTIONS.items():
        for given, axes in AXES:
            for keep in (0, 1):
                inputs = {"x": positive(*shape), "axes": given}
                yield Row(op_type, inputs, _reducing(reduce, axes, bool(keep)), {"keepdims": keep})


def _reducing(reduce: Callable[..., Any], axes: tuple[int, ...], keep: bool) -> Callable[..., Any]:
    return lambda x, *_: reduce(x, axes, keep)


@rows(*reductions())
def test_axes(row: Row) -> None:
    agree(row)


@pytest.mark.parametrize("op_type", sorted(REDUCTIONS.keys() - {"ReduceLogSum", "ReduceLogSumExp"}))
def test_no_axes_can_mean_none(op_type: str) -> None:
    function = {"ReduceSumSquare": torch.square, "ReduceL1": torch.abs, "ReduceL2": torch.abs}
    inputs = {"x": normal(2, 3), "axes": integers()}
    attributes = {"noop_with_empty_axes": 1}
    agree(Row(op_type, inputs, lambda x, _: function.get(op_type, torch.clone)(x), attributes))


ZEROS = np.array([[2.0, 3.0, 4.0], [2.0, 0.0, 4.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
MASKED = np.array([[1.0, -np.inf, 2.0], [800.0, 800.0, -800.0], [-np.inf, 0.0, -np.inf]])


@rows(
    Row("ReduceMax", {"x": tied(3, 5), "axes": integers(1)}, lambda x, _: x.amax(1, keepdim=True)),
    Row("ReduceMin", {"x": tied(3, 5), "axes": integers(0)}, lambda x, _: x.amin(0, keepdim=True)),
    Row("ReduceMax", {"x": tied(2, 3, 4)}, lambda x: x.amax(), {"keepdims": 0}),
    Row("ReduceProd", {"x": ZEROS, "axes": integers(1)}, lambda x, _: x.prod(1, keepdim=True)),
    Row("ReduceProd", {"x": ZEROS}, lambda x: x.prod(), {"keepdims": 0}),
    Row("ReduceL1", {"x": ZEROS - 2, "axes": integers(1)}, lambda x, _: x.norm(1, 1, keepdim=True)),
    Row("ReduceL2", {"x": ZEROS, "axes": integers(1)}, lambda x, _: x.norm(2, 1, keepdim=True)),
    Row("ReduceLogSumExp", {"x": MASKED, "axes": integers(1)}, lambda x, _: x.logsumexp(1, keepdim=True)),
    Row("ReduceSum", {"x": normal(2, 0, 3), "axes": integers(1)}, lambda x, _: x.sum(1, keepdim=True)),
    Row("ReduceSum", {"x": normal(2, 0, 3), "axes": integers(0)}, lambda x, _: x.sum(0, keepdim=True)),
    Row("ReduceProd", {"x": normal(2, 0), "axes": integers(1)}, lambda x, _: x.prod(1, keepdim=True)),
    Row("ReduceMax", {"x": normal(0, 3), "axes": integers(1)}, lambda x, _: x.amax(1, keepdim=True)),
    Row("ReduceMean", {"x": normal(0, 3), "axes": integers(-1)}, lambda x, _: x.mean(1, keepdim=True)),
    Row("ReduceSum", {"x": np.array(2.0)}, torch.clone),
    Row("ReduceMax", {"x": np.array(2.0)}, torch.clone),
    Row("ReduceL2", {"x": normal(1, 3, 1), "axes": integers(0, 2)}, lambda x, _: x.abs()),
)
def test_ties_zeros_and_empty_rows(row: Row) -> None:
    agree(row)


SOFTMAX = {"Softmax": torch.softmax, "LogSoftmax": torch.log_softmax}


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("op_type", SOFTMAX)
def test_softmax(op_type: str, axis: int) -> None:
    agree(Row(op_type, {"x": normal(3, 2, 4) * 3}, lambda x: SOFTMAX[op_type](x, axis), {"axis": axis}))


@rows(
    Row("Softmax", {"x": MASKED}, lambda x: x.softmax(-1)),
    Row("LogSoftmax", {"x": MASKED[:2, [0, 2]]}, lambda x: x.log_softmax(-1)),
    Row("Softmax", {"x": normal(2, 1)}, lambda x: x.softmax(-1)),
    Row("Softmax", {"x": normal(0, 3)}, lambda x: x.softmax(-1)),
    Row("Softmax", {"x": normal(2, 0)}, lambda x: x.softmax(0), {"axis": 0}),
    Row(
        "Hardmax",
        {"x": normal(2, 3)},
        lambda x: torch.nn.functional.one_hot(x.argmax(-1), 3).double(),
        single=True,
    ),
)
def test_softmax_of_masked_and_empty_rows(row: Row) -> None:
    agree(row)


def cumulated(x: Any, axis: int, exclusive: bool, reverse: bool, cumulate: Any, first: float) -> Any:
    """A cumulative sum or product, the first or last element left out, from the front or the back."""
    x = x.flip(axis) if reverse else x
    if exclusive and x.shape[axis]:
        edge = torch.full_like(x.narrow(axis, 0, 1), first)
        x = torch.cat([edge, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
    y = cumulate(x, axis)
    return y.flip(axis) if reverse else y


def cumulations() -> Iterator[Row]:
    table = np.array([[2.0, 0.0, -1.0, 3.0], [1.5, 2.0, 3.0, -2.0], [0.0, 1.0, 0.0, 2.0]])
    for op_type, opset, cumulate, first in (
        ("CumSum", 18, torch.cumsum, 0.0),
        ("CumProd", 26, torch.cumprod, 1.0),
    ):
        for axis in (0, 1, -1):
            for exclusive, reverse in ((0, 0), (1, 0), (0, 1), (1, 1)):
                yield Row(
                    op_type,
                    {"x": table, "axis": np.array(axis)},
                    _cumulating(axis, bool(exclusive), bool(reverse), cumulate, first),
                    {"exclusive": exclusive, "reverse": reverse},
                    opset=opset,
                )
        empty = {"x": normal(2, 0), "axis": np.array(1)}
        yield Row(op_type, empty, _cumulating(1, False, False, cumulate, first), opset=opset)


def _cumulating(*arguments: Any) -> Callable[..., Any]:
    return lambda x, _: cumulated(x, *arguments)


@rows(*cumulations())
def test_cumulative(row: Row) -> None:
    agree(row)
