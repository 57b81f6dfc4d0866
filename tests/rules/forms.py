"""Checks of one operator in several forms: integer inputs at run time or constant, and narrow dtypes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from tests.oracle import (
    SHAPE_KNOWLEDGE,
    check,
    evaluator,
    gradients,
    graph_model,
    numerical_gradient,
    single_node,
    with_shapes,
)

Inputs = Mapping[str, np.ndarray | None]

TOLERANCES = {np.float32: 1e-5, np.float16: 1e-2}


def integers(*values: int) -> np.ndarray:
    """A 1-D int64 tensor, as axes, pads and shapes are."""
    return np.array(values, dtype=np.int64)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed values, float64."""
    return np.asarray(np.random.default_rng(seed).standard_normal(shape))


def check_forms(
    op_type: str,
    inputs: Inputs,
    *,
    outputs: int = 1,
    opset: int = 18,
    wrt: Sequence[str] | None = None,
    second_order: bool = True,
    tangents: bool = True,
    **attributes: Any,
) -> None:
    """`check` an operator with its integer and boolean inputs given at run time, then as constants."""
    given = {name: array for name, array in inputs.items() if array is not None}
    model = single_node(op_type, inputs, outputs=outputs, opset=opset, **attributes)
    check(model, given, wrt=wrt, second_order=second_order, tangents=tangents)
    floats = {name: array for name, array in given.items() if array.dtype == np.float64}
    if len(floats) == len(given):
        return
    node = onnx.helper.make_node(
        op_type,
        [name if array is not None else "" for name, array in inputs.items()],
        [f"y{i}" for i in range(outputs)],
        **attributes,
    )
    constants = {name: array for name, array in given.items() if name not in floats}
    model = graph_model([node], floats, node.output, initializers=constants, opset=opset)
    check(model, floats, wrt=wrt, second_order=second_order, tangents=tangents)


def check_narrow(
    op_type: str, inputs: Inputs, *, outputs: int = 1, opset: int = 18, scale: float = 1.0, **attributes: Any
) -> None:
    """The gradients in float32 and float16, through ONNX Runtime, are those in float64."""
    given = {name: array for name, array in inputs.items() if array is not None}
    wrt = [name for name, array in given.items() if array.dtype == np.float64]
    model = single_node(op_type, inputs, outputs=outputs, opset=opset, **attributes)
    cotangents = {
        name: scale * normal(*value.shape, seed=1)
        for name, value in evaluator(model)(given).items()
        if value.dtype == np.float64
    }
    expected = gradients(model, given, cotangents, wrt)
    for dtype, tolerance in TOLERANCES.items():
        narrow = {
            name: None if array is None else array.astype(dtype) if name in wrt else array
            for name, array in inputs.items()
        }
        actual = gradients(
            single_node(op_type, narrow, outputs=outputs, opset=opset, **attributes),
            {name: array for name, array in narrow.items() if array is not None},
            {name: dy.astype(dtype) for name, dy in cotangents.items()},
            wrt,
        )
        for name in wrt:
            assert actual[name].dtype == dtype
            np.testing.assert_allclose(actual[name], expected[name], rtol=tolerance, atol=tolerance)


def check_linear(
    model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], shapes: Sequence[str] = SHAPE_KNOWLEDGE
) -> None:
    """The gradient in float32 of a model that is linear in `x`, where differences are exact at any step."""
    run = evaluator(model)
    cotangents = {
        name: normal(*value.shape, seed=1).astype(np.float32) for name, value in run(inputs).items()
    }
    expected = numerical_gradient(run, inputs, "x", cotangents, step=0.5)
    for knowledge in shapes:
        actual = gradients(with_shapes(model, knowledge), inputs, cotangents, ["x"])
        assert actual["x"].dtype == np.float32
        np.testing.assert_allclose(actual["x"], expected, rtol=1e-4, atol=2e-5, err_msg=knowledge)
