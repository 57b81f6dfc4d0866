"""Products: matrices of every rank, contractions of every kind, determinants."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.torch_operators.agreement import Row, agree, rows, torch
from tests.torch_operators.inputs import normal


@rows(
    *(
        Row("MatMul", {"a": normal(*a), "b": normal(*b, seed=1)}, torch.matmul)
        for a, b in [
            ((3,), (3,)),
            ((3,), (3, 2)),
            ((2, 3), (3,)),
            ((2, 3), (3, 4)),
            ((5, 2, 3), (3, 4)),
            ((2, 3), (5, 3, 4)),
            ((5, 2, 3), (5, 3, 4)),
            ((5, 1, 2, 3), (4, 3, 2)),
            ((1, 2, 3), (5, 3, 1)),
            ((3,), (5, 3, 2)),
            ((5, 2, 3), (3,)),
            ((2, 0), (0, 3)),
            ((0, 3), (3, 2)),
            ((0, 2, 3), (3, 2)),
            ((1, 1), (1, 1)),
        ]
    )
)
def test_matmul(row: Row) -> None:
    agree(row)


def gemms() -> Iterator[Row]:
    addends = [None, (), (4,), (1, 4), (2, 1), (2, 4), (1,)]
    for number, addend in enumerate(addends):
        trans_a, trans_b = number % 2, number // 2 % 2
        alpha, beta = (1.0, 1.0) if number % 3 == 0 else (0.5, -2.0)
        a, b = normal(*((3, 2) if trans_a else (2, 3))), normal(*((4, 3) if trans_b else (3, 4)), seed=1)
        c = None if addend is None else normal(*addend, seed=2)
        yield Row(
            "Gemm",
            {"a": a, "b": b, "c": c},
            lambda a, b, c=0.0, ta=trans_a, tb=trans_b, alpha=alpha, beta=beta: (
                alpha * (a.T if ta else a) @ (b.T if tb else b) + beta * c
            ),
            {"transA": trans_a, "transB": trans_b, "alpha": alpha, "beta": beta},
        )
    nothing = {"a": normal(2, 0), "b": normal(0, 3), "c": normal(3)}
    yield Row("Gemm", nothing, lambda a, b, c: a @ b + c)


@rows(*gemms())
def test_gemm(row: Row) -> None:
    agree(row)


# The equation and the shapes of its operands.
EINSUMS: list[tuple[str, list[tuple[int, ...]]]] = [
    ("ij,jk->ik", [(2, 3), (3, 4)]),
    ("ij,jk", [(2, 3), (3, 4)]),
    ("ij->ji", [(2, 3)]),
    ("ij->", [(2, 3)]),
    ("ii->i", [(3, 3)]),
    ("ii", [(3, 3)]),
    ("iij->j", [(2, 2, 3)]),
    ("bij,bjk->bik", [(2, 2, 3), (2, 3, 2)]),
    ("...ij,...jk->...ik", [(5, 2, 3), (1, 3, 2)]),
    ("...i,...i->...", [(2, 3), (2, 3)]),
    ("i...->...", [(2, 3, 2)]),
    ("i,j->ij", [(2,), (3,)]),
    ("i,j,k->kji", [(2,), (3,), (2,)]),
    ("ij,jk,kl->il", [(2, 3), (3, 2), (2, 2)]),
    ("ij,kj->ik", [(2, 1), (3, 1)]),
    ("ij,ij->i", [(1, 3), (1, 3)]),
    ("ij,j->i", [(0, 3), (3,)]),
]


@rows(
    *(
        Row(
            "Einsum",
            {f"x{i}": normal(*shape, seed=i) for i, shape in enumerate(shapes)},
            lambda *operands, e=equation: torch.einsum(e, *operands),
            {"equation": equation},
        )
        for equation, shapes in EINSUMS
    )
)
def test_einsum(row: Row) -> None:
    agree(row)


def spoiled(*zeros: int) -> np.ndarray:
    """A matrix with those singular values zero."""
    left, _, right = np.linalg.svd(normal(3, 3))
    values = np.array([2.0, 1.0, 0.5])
    values[list(zeros)] = 0
    return np.asarray(left * values @ right)


def minors(x: torch.Tensor) -> torch.Tensor:
    """The determinant of a 3 × 3 matrix written out, whose gradient is right for singular ones too."""
    (a, b, c), (d, e, f), (g, h, i) = x
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


@rows(
    Row("Det", {"x": normal(3, 3)}, torch.linalg.det),
    Row("Det", {"x": normal(2, 1, 2, 2)}, torch.linalg.det),
    Row("Det", {"x": normal(2, 1, 1)}, torch.linalg.det),
    Row("Det", {"x": spoiled(2)}, minors),
    Row("Det", {"x": spoiled(1, 2)}, minors),
    Row("Det", {"x": np.zeros((3, 3))}, minors),
)
def test_determinants(row: Row) -> None:
    agree(row)
