"""The backend cases that come with onnx for its training operators, on ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.backend.test.case.model
import onnx.backend.test.case.node
import pytest
from onnx.backend.test.case.model import gradient  # noqa: F401  (makes the cases)
from onnx.backend.test.case.node import adagrad, adam, momentum  # noqa: F401

import onnx_grad
from tests.graphs import run
from tests.lowering.programs import DOMAIN

# Collecting all cases of onnx takes seconds; its modules add theirs to these lists.
CASES = {
    case.name: case
    for case in (
        *onnx.backend.test.case.node._NodeTestCases,
        *onnx.backend.test.case.model._SimpleModelTestCases,
    )
    if any(opset.domain == DOMAIN for opset in case.model.opset_import)
}


def test_all_cases_are_there() -> None:
    assert sorted(CASES) == [
        "test_adagrad",
        "test_adagrad_multiple",
        "test_adam",
        "test_adam_multiple",
        "test_gradient_of_add",
        "test_gradient_of_add_and_mul",
        "test_momentum",
        "test_momentum_multiple",
        "test_nesterov_momentum",
    ]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_backend_case(case: Any) -> None:
    model = onnx_grad.lower(case.model)
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == [v.name for v in case.model.graph.output]
    assert {(node.domain) for node in model.graph.node} == {""}
    for inputs, outputs in case.data_sets:
        names = [value.name for value in model.graph.input]
        values = run(model, dict(zip(names, inputs, strict=True)))
        for value, expected in zip(values.values(), outputs, strict=True):
            assert value.dtype == expected.dtype
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
