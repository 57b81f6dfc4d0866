"""Borders along some axes, where ONNX Runtime's optimizer moves transposes about."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from tests.oracle import check, graph_model

NODES: list[tuple[str, dict[str, list[int]], dict[str, Any]]] = [
    ("Slice", {"starts": [1], "ends": [3], "axes": [2]}, {}),
    ("Slice", {"starts": [1, 1], "ends": [3, 2], "axes": [-1, 1]}, {}),
    ("Gather", {"indices": [1]}, {"axis": 2}),
]


@pytest.mark.parametrize("constant", [True, False], ids=["constant", "run time"])
@pytest.mark.parametrize(("op_type", "operands", "attributes"), NODES, ids=str)
def test_between_transposes(
    op_type: str, operands: dict[str, list[int]], attributes: dict[str, Any], constant: bool
) -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 3, 4))}
    numbers = {name: np.array(values) for name, values in operands.items()}
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0, 2]),
        onnx.helper.make_node(op_type, ["a", *numbers], ["b"], **attributes),
        onnx.helper.make_node("Transpose", ["b"], ["y"], perm=[2, 0, 1]),
    ]
    if constant:
        check(graph_model(nodes, inputs, ["y"], initializers=numbers), inputs)
    else:
        check(graph_model(nodes, inputs | numbers, ["y"]), inputs | numbers)
