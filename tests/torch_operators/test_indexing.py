"""Gathers and scatters: negative indices, repeated ones, ties, zeros, and none at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import integers, normal, tied


def taken(x: Any, indices: Any, axis: int) -> Any:
    """As numpy's `take`: the indices' axes replace the given one."""
    axis %= x.ndim
    flat = x.index_select(axis, indices.reshape(-1) % max(x.shape[axis], 1))
    return flat.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize(
    "indices",
    [np.array(-1), integers(0, 1, 0), np.array([[0, -1], [1, 1]]), np.array([[-2]], np.int32), integers()],
    ids=lambda indices: str(indices.tolist()),
)
def test_gather(indices: np.ndarray, axis: int) -> None:
    inputs = {"x": normal(2, 3, 2), "i": indices}
    agree(Row("Gather", inputs, lambda x, i: taken(x, i.long(), axis), {"axis": axis}))


@rows(
    *(
        Row("GatherElements", {"x": normal(*shape), "i": np.array(indices)}, _gather, {"axis": axis})
        for shape, indices, axis, _gather in [
            ((2, 3), [[0, -1, 1], [1, 1, -2]], 0, lambda x, i: x.gather(0, i % 2)),
            ((2, 3), [[0, -1, 1, 2], [1, 1, -3, 0]], 1, lambda x, i: x.gather(1, i % 3)),
            ((2, 3), [[0, 0]], -1, lambda x, i: x.gather(1, i)),
            ((2, 2, 2), [[[1, 0]], [[0, -1]]], -2, lambda x, i: x.gather(1, i % 2)),
            ((4,), [3, 3, 3], 0, lambda x, i: x.gather(0, i)),
        ]
    )
)
def test_gather_elements(row: Row) -> None:
    agree(row)


@rows(
    Row(
        "GatherND",
        {"x": normal(2, 3, 4), "i": np.array([[0, 1], [1, -1], [0, 1]])},
        lambda x, i: x[i[:, 0], i[:, 1]],
    ),
    Row(
        "GatherND",
        {"x": normal(2, 3), "i": np.array([[[0, 2]], [[-1, 0]]])},
        lambda x, i: x[i[..., 0], i[..., 1]],
    ),
    Row("GatherND", {"x": normal(2, 3), "i": np.array([[1], [-2], [1]])}, lambda x, i: x[i[:, 0]]),
    Row(
        "GatherND",
        {"x": normal(2, 3, 4), "i": np.array([[1], [-1]])},
        lambda x, i: torch.stack([x[0, 1], x[1, -1]]),
        {"batch_dims": 1},
    ),
    Row(
        "GatherND",
        {"x": normal(2, 2, 3), "i": np.array([[[2], [0]], [[1], [1]]])},
        lambda x, i: x.gather(2, i).squeeze(-1),
        {"batch_dims": 2},
    ),
    Row("GatherND", {"x": normal(2, 3), "i": np.zeros((0, 2), np.int64)}, lambda x, i: x[i[:, 0], i[:, 1]]),
)
def test_gather_nd(row: Row) -> None:
    agree(row)


REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatters_of_elements() -> Iterator[Row]:
    for reduction, in_pytorch in REDUCE.items():
        # Repeated positions, zeros among the factors, ties between data and updates and among updates.
        for axis, indices in (
            (0, [[0, -1, 2], [2, 2, 0], [0, 2, 0]]),
            (-1, [[0, 0, 0], [1, -1, 1], [2, 0, 2]]),
        ):
            for seed in (0, 1):
                yield Row(
                    "ScatterElements",
                    {"x": tied(3, 3, seed=seed), "i": np.array(indices), "u": tied(3, 3, seed=seed + 2)},
                    _scatter_reduce(axis, in_pytorch),
                    {"axis": axis, "reduction": reduction},
                )
    for axis in (0, 1):
        yield Row(
            "ScatterElements",
            {"x": normal(2, 3), "i": np.array([[1, -2 if axis == 0 else -1]]), "u": normal(1, 2, seed=1)},
            lambda x, i, u, axis=axis: x.scatter(axis, i % x.shape[axis], u),
            {"axis": axis},
        )
    nothing = {"x": normal(2, 3), "i": np.zeros((0, 3), np.int64), "u": normal(0, 3)}
    yield Row("ScatterElements", nothing, lambda x, i, u: x.clone() + 0 * u.sum(), {"reduction": "add"})


def _scatter_reduce(axis: int, reduction: str) -> Callable[..., Any]:
    return lambda x, i, u: x.scatter_reduce(axis, i % x.shape[axis], u, reduction)


@rows(*scatters_of_elements())
def test_scatter_elements(row: Row) -> None:
    agree(row)


def scatters_of_slices() -> Iterator[Row]:
    for reduction, in_pytorch in REDUCE.items():
        yield Row(
            "ScatterND",
            {"x": tied(3, 2), "i": np.array([[1], [-1], [1]]), "u": tied(3, 2, seed=1)},
            lambda x, i, u, r=in_pytorch: x.scatter_reduce(0, (i % 3).expand(3, 2), u, r),
            {"reduction": reduction},
        )
        yield Row(
            "ScatterND",
            {"x": tied(2, 3), "i": np.array([[[0, 1]], [[1, -1]], [[0, 1]]]), "u": tied(3, 1, seed=1)},
            lambda x, i, u, r=in_pytorch: (
                x.reshape(-1).scatter_reduce(
                    0, (i % torch.tensor([2, 3]) @ torch.tensor([3, 1])).reshape(-1), u.reshape(-1), r
                )
            ).reshape(2, 3),
            {"reduction": reduction},
        )
    plain = {"x": normal(3, 2), "i": np.array([[2], [-3]]), "u": normal(2, 2, seed=1)}
    yield Row("ScatterND", plain, lambda x, i, u: x.index_copy(0, i[:, 0] % 3, u))
    added = {"x": normal(3, 2), "i": np.array([[2], [0], [2]]), "u": normal(3, 2, seed=1)}
    yield Row("ScatterND", added, lambda x, i, u: x.index_add(0, i[:, 0], u), {"reduction": "add"})


@rows(*scatters_of_slices())
def test_scatter_nd(row: Row) -> None:
    agree(row)


def written(cache: Any, update: Any, starts: Any, wraps: bool) -> Any:
    """Each batch's update written into its cache from its start on."""
    result = cache.clone()
    for batch in range(cache.shape[0]):
        for step in range(update.shape[2]):
            position = int(starts[batch]) + step
            result[batch, :, position % cache.shape[2] if wraps else position] = update[batch, :, step]
    return result


@rows(
    Row(
        "TensorScatter",
        {"x": normal(2, 1, 4, 2), "u": normal(2, 1, 2, 2, seed=1), "w": integers(1, 2)},
        lambda x, u, w: written(x, u, w, False),
        opset=24,
    ),
    Row(
        "TensorScatter",
        {"x": normal(2, 1, 4, 2), "u": normal(2, 1, 2, 2, seed=1), "w": integers(3, 2)},
        lambda x, u, w: written(x, u, w, True),
        {"mode": "circular"},
        opset=24,
    ),
)
def test_tensor_scatter(row: Row) -> None:
    agree(row)


@rows(
    *(
        Row(
            "TopK",
            {"x": normal(3, 4), "k": integers(k)},
            lambda x, k, axis=axis, largest=largest: x.topk(int(k), axis, bool(largest)).values,
            {"axis": axis, "largest": largest},
            outputs=2,
        )
        for axis, k in ((0, 2), (1, 3), (-1, 4), (-2, 1), (0, 0))
        for largest in (0, 1)
    ),
    Row(
        "TopK",
        {"x": normal(3, 4), "k": integers(4)},
        lambda x, k: x.topk(4, sorted=True).values,
        {"sorted": 1},
        outputs=2,
    ),
    Row(
        "Compress", {"x": normal(2, 3), "c": np.array([True, False, True])}, lambda x, c: x[:, c], {"axis": 1}
    ),
    Row(
        "Compress",
        {"x": normal(2, 3), "c": np.array([False, True])},
        lambda x, c: x[:, :2][:, c],
        {"axis": -1},
    ),
    Row(
        "Compress",
        {"x": normal(2, 3), "c": np.array([False, True, True])},
        lambda x, c: x.reshape(-1)[[1, 2]],
    ),
    Row("Compress", {"x": normal(2, 3), "c": np.array([False, False])}, lambda x, c: x[c], {"axis": 0}),
    Row("Unique", {"x": np.array([2.0, -1.0, 3.0])}, lambda x: x.sort().values, outputs=1),
    Row("Unique", {"x": np.array([2.0, -1.0, 3.0])}, torch.clone, {"sorted": 0}, outputs=1),
    Row("Unique", {"x": normal(3, 2)}, lambda x: x[x[:, 0].argsort()], {"axis": 0}, outputs=1),
    Row(
        "ReverseSequence",
        {"x": normal(3, 2, 2), "n": integers(3, 1)},
        lambda x, n: torch.stack([x[:, 0].flip(0), x[:, 1]], 1),
    ),
    Row(
        "ReverseSequence",
        {"x": normal(2, 3), "n": integers(2, 3)},
        lambda x, n: torch.stack([x[0, [1, 0, 2]], x[1].flip(0)]),
        {"batch_axis": 0, "time_axis": 1},
    ),
    Row(
        "OneHot",
        {"i": integers(0, -1, 2, 9), "depth": integers(3), "v": normal(2)},
        lambda i, depth, v: torch.where(
            torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]], dtype=bool), v[1], v[0]
        ),
        single=True,
    ),
    Row(
        "OneHot",
        {"i": np.array([[0, 1]]), "depth": integers(2), "v": normal(2)},
        lambda i, depth, v: torch.where(torch.eye(2, dtype=bool)[:, None, :], v[1], v[0]),
        {"axis": 0},
        single=True,
    ),
)
def test_selections(row: Row) -> None:
    agree(row)
