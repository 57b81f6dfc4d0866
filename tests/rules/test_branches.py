"""If: only the taken branch computes, whatever the branches read, give and hold."""

from __future__ import annotations

import numpy as np
import pytest

import onnx_grad
from tests.graphs import parse, run
from tests.oracle import check

X, W = np.array([0.3, -0.7, 1.1]), np.array([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [-0.6, 0.2, 0.9]])

OF_TWO_SHAPES = """
    shapes (bool c, double[3] x, double[3,3] w) => (double[N] y) {
        y = If (c) <
            then_branch = then () => (double[3] a) { product = MatMul (x, w) a = Tanh (product) },
            else_branch = otherwise () => (double[1] b) {
                square = Mul (x, x)
                power = Exp (square)
                first = Constant <value = int64[1] {0}> ()
                b = ReduceSum (power, first)
            }>
    }
"""

NESTED = """
    nested (bool c, bool d, double[3] x) => (double[3] y, double[3] z) {
        outer = Sin (x)
        y, z = If (c) <
            then_branch = then () => (double[3] a, double[3] a2) {
                a = If (d) <
                    then_branch = inner_then () => (double[3] p) { q = Exp (outer) p = Mul (q, x) },
                    else_branch = inner_else () => (double[3] r) { r = Mul (outer, outer) }>
                a2 = Mul (a, x)
            },
            else_branch = otherwise () => (double[3] b, double[3] b2) {
                b = Identity (outer)
                b2 = Constant <value = double[3] {1.0, 2.0, 3.0}> ()
            }>
    }
"""


@pytest.mark.parametrize("condition", [True, False])
def test_branches_of_two_shapes(condition: bool) -> None:
    check(parse(OF_TWO_SHAPES), {"c": np.array(condition), "x": X, "w": W}, second_order=True)


@pytest.mark.parametrize(("c", "d"), [(True, True), (True, False), (False, False)])
def test_nested_branches(c: bool, d: bool) -> None:
    check(parse(NESTED), {"c": np.array(c), "d": np.array(d), "x": X}, second_order=True)


def test_a_condition_that_depends_on_data() -> None:
    model = parse(
        """
        data (double[3] x) => (double[3] y) {
            total = ReduceSum <keepdims = 0> (x)
            zero = Constant <value = double {0.0}> ()
            c = Greater (total, zero)
            y = If (c) <then_branch = then () => (double[3] a) { a = Sin (x) },
                        else_branch = otherwise () => (double[3] b) { b = Exp (x) }>
        }"""
    )
    check(model, {"x": X}, second_order=True)
    check(model, {"x": -X}, second_order=True)


def test_the_other_branch_does_not_compute() -> None:
    """It would fail: its Reshape does not fit."""
    model = parse(
        """
        guarded (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = then () => (float[2] a) { a = Mul (x, x) },
                else_branch = otherwise () => (float[2] b) {
                    seven = Constant <value = int64[1] {7}> ()
                    torn = Reshape (x, seven)
                    product = Mul (torn, torn)
                    two = Constant <value = int64[1] {2}> ()
                    b = Reshape (product, two)
                }>
        }"""
    )
    result = run(onnx_grad.vjp(model), {"c": np.array(True), "x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(result["x_grad"], [2, 4])


def test_a_branch_that_reads_nothing_gives_zeros() -> None:
    model = parse(
        """
        fixed (bool c, float[2] x) => (float[2] y) {
            y = If (c) <
                then_branch = then () => (float[2] a) { a = Mul (x, x) },
                else_branch = otherwise () => (float[2] b) { b = Constant <value = float[2] {1, 1}> () }>
        }"""
    )
    result = run(onnx_grad.vjp(model), {"c": np.array(False), "x": [1, 2], "y_grad": [1, 1]})
    np.testing.assert_array_equal(result["x_grad"], [0, 0])


def test_a_singularity_behind_a_branch_does_not_leak() -> None:
    """Sqrt outside, Relu inside: where Relu does not select, its cotangent is infinite, and zero is right."""
    model = parse(
        """
        leak (bool c, float[2] x) => (float[2] y) {
            h = If (c) <then_branch = then () => (float[2] a) { a = Relu (x) },
                        else_branch = otherwise () => (float[2] b) { b = Identity (x) }>
            y = Sqrt (h)
        }"""
    )
    result = run(onnx_grad.vjp(model), {"c": np.array(True), "x": [-1, 4], "y_grad": [1, 1]})
    np.testing.assert_array_equal(result["x_grad"], [0, 0.25])
