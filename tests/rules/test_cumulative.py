"""Cumulative products in both directions, zeros among the factors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.oracle import check, graph_model, single_node

X = np.array([[[0.5, -1.2], [2.0, 0.0], [0.7, 3.0]], [[0.0, 1.5], [-0.3, 0.0], [0.0, 1.1]]])


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_directions(axis: int, reverse: int, exclusive: int) -> None:
    inputs = {"x": X, "axis": np.array(axis)}
    model = single_node("CumProd", inputs, opset=26, reverse=reverse, exclusive=exclusive)
    check(model, inputs, second_order=axis == 1)


@pytest.mark.parametrize("shape", [(1,), (0, 2), (2, 0), (4,)], ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    inputs = {"x": np.resize(X, shape), "axis": np.array(0)}
    check(single_node("CumProd", inputs, opset=26), inputs)


def test_constant_axis_of_the_other_integer_type() -> None:
    product = onnx.helper.make_node("CumProd", ["x", "axis"], ["y"])
    model = graph_model([product], {"x": X}, ["y"], initializers={"axis": np.array(1, np.int32)}, opset=26)
    check(model, {"x": X})
