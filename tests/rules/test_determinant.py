"""Det of regular and singular matrices."""

from __future__ import annotations

import numpy as np
import pytest

from tests.oracle import check, gradients, single_node


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (4, 4), (2, 3, 3), (2, 1, 2, 2), (0, 2, 2)], ids=str)
def test_regular_matrices(shape: tuple[int, ...]) -> None:
    inputs = {"X": np.asarray(np.random.default_rng(0).standard_normal(shape))}
    check(single_node("Det", inputs), inputs, second_order=shape == (2, 3, 3))


def test_a_singular_matrix_has_a_gradient() -> None:
    """The gradient of det is the matrix of cofactors, also where there is no inverse."""
    inputs = {"X": np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 0.0]])}
    check(single_node("Det", inputs), inputs, second_order=True)


def test_single_precision() -> None:
    x = np.array([[2.0, 1.0], [4.0, 3.0]], np.float32)
    dy = np.asarray(np.float32(2.0))
    actual = gradients(single_node("Det", {"X": x}), {"X": x}, {"y0": dy}, ["X"])["X"]
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, [[6.0, -8.0], [-2.0, 4.0]], rtol=1e-6)
