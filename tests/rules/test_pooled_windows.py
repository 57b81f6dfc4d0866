"""Pooling windows that onnx, ONNX Runtime and the specification do not agree on, or that do not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import onnx_grad
from onnx_grad.checking.float64_operators import REPLACEMENTS
from tests.oracle import numerical_gradient, single_node, with_shapes
from tests.single_precision import check_in_single_precision

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]

# Before opset 22, onnx infers another shape for the output than that of ONNX Runtime's result.
MISCOUNTED: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 1, 7), {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1}),
    ((1, 1, 3, 5), {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 0, 1, 0], "ceil_mode": 1}),
]
# ONNX Runtime does not pad for the dilation, and leaves out the windows that do not fit.
SAME_AND_DILATED: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 1, 6), {"kernel_shape": [3], "dilations": [2], "strides": [1], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 7), {"kernel_shape": [3], "dilations": [2], "strides": [2], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 9), {"kernel_shape": [4], "dilations": [2], "strides": [2], "auto_pad": "SAME_LOWER"}),
    (
        (1, 1, 5, 7),
        {"kernel_shape": [2, 2], "dilations": [1, 4], "strides": [2, 1], "auto_pad": "SAME_UPPER"},
    ),
]
# A stride of more than the kernel, so that the padding for one window at every stride is negative.
GAPS: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 1, 9), {"kernel_shape": [2], "strides": [3], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 7), {"kernel_shape": [1], "strides": [3], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 9, 5), {"kernel_shape": [2, 2], "strides": [5, 2], "auto_pad": "SAME_LOWER"}),
]
# A window larger than the image, of which ONNX Runtime makes one that is not full.
OVERSIZED: list[tuple[Shape, dict[str, Any]]] = [
    ((1, 1, 2), {"kernel_shape": [4], "strides": [3]}),
    ((1, 1, 1, 5), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ((1, 1, 2), {"kernel_shape": [5], "strides": [3], "pads": [1, 0]}),
]


def _image(shape: Shape) -> Arrays:
    """No two elements closer than 0.25, none closer to zero than 0.1."""
    count = int(np.prod(shape))
    values = 0.25 * (np.random.default_rng(2).permutation(count) - count // 2) + 0.1
    return {"x": values.reshape(shape).astype(np.float32)}


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool", "MaxPool"])
@pytest.mark.parametrize(("shape", "attributes"), MISCOUNTED + OVERSIZED, ids=str)
def test_unusual_counts(op_type: str, shape: Shape, attributes: dict[str, Any]) -> None:
    inputs = _image(shape)
    model = single_node(op_type, inputs, **attributes)
    check_in_single_precision(model, inputs, step=0.02, tolerance=2e-3)


@pytest.mark.parametrize("opset", [18, 19])
@pytest.mark.parametrize(("shape", "attributes"), MISCOUNTED + OVERSIZED, ids=str)
def test_unusual_counts_with_padding(shape: Shape, attributes: dict[str, Any], opset: int) -> None:
    inputs = _image(shape)
    model = single_node("AveragePool", inputs, opset=opset, count_include_pad=1, **attributes)
    check_in_single_precision(model, inputs)


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool"])
@pytest.mark.parametrize(("shape", "attributes"), GAPS, ids=str)
def test_gaps_between_windows(op_type: str, shape: Shape, attributes: dict[str, Any]) -> None:
    inputs = _image(shape)
    model = single_node(op_type, inputs, opset=19, **attributes)
    check_in_single_precision(model, inputs, step=0.02, tolerance=4e-3, second_order=True)


@pytest.mark.parametrize("op_type", ["AveragePool", "LpPool", "MaxPool"])
@pytest.mark.parametrize(("shape", "attributes"), SAME_AND_DILATED, ids=str)
def test_same_padding_with_dilation(op_type: str, shape: Shape, attributes: dict[str, Any]) -> None:
    """Refused with advice where sizes are fixed, and right where they are not."""
    inputs = _image(shape)
    model = single_node(op_type, inputs, opset=19, **attributes)
    with pytest.raises(onnx_grad.UnsupportedOpError, match="give the attribute pads instead"):
        onnx_grad.vjp(model)
    check_in_single_precision(model, inputs, step=0.02, tolerance=2e-3, shapes=["symbolic", "unknown"])


@pytest.mark.parametrize(("shape", "attributes"), SAME_AND_DILATED, ids=str)
def test_same_padding_with_dilation_as_specified(shape: Shape, attributes: dict[str, Any]) -> None:
    """The graph for unknown sizes is right as well where windows are padded as the specification says."""
    inputs = {name: array.astype(np.float64) for name, array in _image(shape).items()}
    model = with_shapes(single_node("LpPool", inputs, opset=19, **attributes), "unknown")
    operators = [*REPLACEMENTS, LpPool]
    forward = ReferenceEvaluator(model, new_ops=operators)
    (y,) = forward.run(None, inputs)
    dy = np.random.default_rng(0).standard_normal(y.shape)
    expected = numerical_gradient(
        lambda moved: {"y0": forward.run(None, dict(moved))[0]}, inputs, "x", {"y0": dy}
    )
    backward = ReferenceEvaluator(onnx_grad.vjp(model), new_ops=operators)
    (dx,) = backward.run(["x_grad"], {**inputs, "y0_grad": dy})
    np.testing.assert_allclose(dx, expected, rtol=1e-6, atol=1e-7)


class LpPool(OpRun):
    """LpPool of order 2 with auto_pad as specified: one window for every stride."""

    op_domain = ""

    def _run(self, x: np.ndarray, **attributes: Any) -> tuple[np.ndarray]:
        axes = zip(
            x.shape[2:], *(attributes[name] for name in ("kernel_shape", "strides", "dilations")), strict=True
        )
        taps = []
        for axis, (length, kernel, stride, dilation) in enumerate(axes):
            count = -(-length // stride)
            total = max(0, (count - 1) * stride + (kernel - 1) * dilation + 1 - length)
            before = total - total // 2 if attributes["auto_pad"] == "SAME_LOWER" else total // 2
            border = [(0, 0)] * x.ndim
            border[axis + 2] = before, total - before
            x = np.pad(x, border)
            taps.append(np.arange(count)[:, None] * stride + np.arange(kernel) * dilation)
        for axis, positions in reversed(list(enumerate(taps))):
            x = np.take(x, positions, axis=axis + 2)
        kernel_axes = tuple(range(3, x.ndim, 2))
        return (np.sqrt((x**2).sum(axis=kernel_axes)),)
