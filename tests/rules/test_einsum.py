"""Einsum equations of every form."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

import onnx_grad
from tests.oracle import check, gradients, single_node, with_shapes

EQUATIONS = [
    # Implicit output: the labels that appear once, in order; an ellipsis comes first.
    ("ij,jk", (2, 3), (3, 4)),
    ("ba", (2, 3)),
    ("ij,ij", (2, 3), (2, 3)),
    ("j...,j", (3, 2), (3,)),
    (" i j , j k -> k i ", (2, 3), (3, 4)),
    ("iJ,Jk->kJ", (2, 3), (3, 4)),
    # An ellipsis at every place.
    ("...ij,...jk->...ik", (2, 2, 3), (2, 3, 4)),
    ("...ij,jk->...ik", (2, 2, 2, 3), (3, 4)),
    ("i...j,j->...i", (2, 2, 3), (3,)),
    ("...,->...", (2, 3), ()),
    ("...i->...", (2, 3)),
    ("i...->...", (2, 3)),
    # Labels of a single operand, absent from the output.
    ("ij->i", (2, 3)),
    ("ij->", (2, 3)),
    ("ijk,l->jl", (2, 3, 2), (2,)),
    ("ij,k->k", (2, 3), (2,)),
    ("bi...k,k->b...", (2, 3, 2, 2), (2,)),
    # Diagonals.
    ("ii->i", (3, 3)),
    ("ii", (3, 3)),
    ("iij,jk->ik", (2, 2, 3), (3, 2)),
    ("iiji->j", (2, 2, 3, 2)),
    ("...ii->...i", (2, 3, 3)),
    ("i...i,i->...", (3, 2, 3), (3,)),
    ("iijj->ij", (2, 2, 3, 3)),
    # Several operands.
    ("ij,jk,kl->il", (2, 3), (3, 2), (2, 3)),
    ("i,j,k->ijk", (2,), (3,), (2,)),
    ("bi,ij,bj->b", (2, 3), (3, 2), (2, 2)),
    (",,i->i", (), (), (3,)),
    # Axes of length 1 that meet longer ones.
    ("ij,jk->ik", (2, 1), (3, 4)),
    ("ij,j->i", (2, 3), (1,)),
    ("...i,...i->...", (1, 3), (2, 3)),
    # Empty axes.
    ("ij,jk->ik", (2, 0), (0, 4)),
    ("ij,jk->ik", (0, 3), (3, 4)),
    ("ij->j", (0, 3)),
    ("ii->i", (0, 0)),
]


Case = tuple[str, *tuple[tuple[int, ...], ...]]


def _inputs(shapes: Iterable[tuple[int, ...]]) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: np.asarray(generator.standard_normal(s)) for name, s in zip("abc", shapes, strict=False)}


@pytest.mark.parametrize("case", EQUATIONS, ids=lambda case: case[0])
def test_equation(case: Case) -> None:
    equation, *shapes = case
    inputs = _inputs(shapes)
    check(single_node("Einsum", inputs, equation=equation), inputs)


@pytest.mark.parametrize(
    "case",
    [
        ("...ij,jk->...ik", (2, 2, 3), (3, 2)),
        ("iij,jk->ik", (2, 2, 3), (3, 2)),
        ("bi,ij,bj->b", (2, 3), (3, 2), (2, 2)),
        ("ij->i", (2, 3)),
        ("ij,j->i", (2, 3), (1,)),
    ],
    ids=lambda case: case[0],
)
def test_second_order(case: Case) -> None:
    equation, *shapes = case
    inputs = _inputs(shapes)
    check(single_node("Einsum", inputs, equation=equation), inputs, second_order=True)


def test_both_operands_stretched_on_a_label_of_the_output() -> None:
    """ONNX's shape inference takes the length from the first operand only, so static shapes do not run."""
    inputs = _inputs([(2, 1), (1, 3)])
    check(single_node("Einsum", inputs, equation="ij,ij->ij"), inputs, shapes=["symbolic", "unknown"])


def test_a_contraction_of_known_labels_takes_one_node() -> None:
    model = with_shapes(
        single_node("Einsum", _inputs([(2, 3, 2), (2, 3, 2)]), equation="bqd,bkd->bqk"), "static"
    )
    for value, shape in zip(model.graph.input, ("bqd", "bkd"), strict=True):
        for dimension, symbol in zip(value.type.tensor_type.shape.dim, shape, strict=True):
            dimension.dim_param = symbol
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert [node.op_type for node in onnx_grad.vjp(model).graph.node] == ["Einsum"] * 3


def test_three_operands_are_contracted_along_shared_labels() -> None:
    """The cotangent (il) meets the factor with l before the one with j: no outer product in between."""
    model = single_node("Einsum", _inputs([(2, 3), (3, 2), (2, 3)]), equation="ij,jk,kl->il")
    (gradient,) = [n for n in onnx_grad.vjp(model, ["a"]).graph.node if n.name.endswith("d0")]
    assert gradient.attribute[0].s.decode() == "il,kl,jk->ij"


def test_single_precision() -> None:
    inputs = {name: a.astype(np.float32) for name, a in _inputs([(2, 3), (3, 4)]).items()}
    cotangent = np.ones((2, 4), np.float32)
    model = single_node("Einsum", inputs, equation="ij,jk->ik")
    actual = gradients(model, inputs, {"y0": cotangent}, ["a", "b"])
    assert actual["a"].dtype == actual["b"].dtype == np.float32
    np.testing.assert_allclose(actual["a"], cotangent @ inputs["b"].T, rtol=1e-6)
    np.testing.assert_allclose(actual["b"], inputs["a"].T @ cotangent, rtol=1e-6)
