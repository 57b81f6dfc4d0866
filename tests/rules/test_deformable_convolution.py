"""Deformable convolution, in float64 by onnx's reference evaluator and in float32 by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import onnx_grad
from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, single_node, with_shapes

Shape = tuple[int, ...]

# Shapes of x, w and the windows, attributes.
CASES: list[tuple[Shape, Shape, Shape, dict[str, Any]]] = [
    ((1, 1, 3, 4), (1, 1, 2, 2), (2, 3), {}),
    ((2, 2, 3, 3), (2, 1, 2, 1), (2, 3), {"group": 2}),
    ((1, 2, 3, 3), (1, 2, 1, 2), (3, 2), {"offset_group": 2}),
    ((1, 4, 2, 3), (2, 2, 1, 2), (2, 2), {"group": 2, "offset_group": 4}),
    ((1, 1, 4, 3), (2, 1, 2, 2), (2, 2), {"strides": [2, 1], "dilations": [1, 2], "pads": [0, 1, 0, 0]}),
]


def _operands(x: Shape, w: Shape, windows: Shape, offset_groups: int, **wanted: bool) -> dict[str, Any]:
    """Offsets that keep away from whole pixels, where bilinear interpolation has kinks."""
    generator = np.random.default_rng(0)
    taps = offset_groups * w[2] * w[3]
    offsets = generator.integers(-1, 2, (x[0], 2 * taps, *windows)) + generator.uniform(0.2, 0.8, windows)
    return {
        "x": generator.standard_normal(x),
        "w": generator.standard_normal(w),
        "offset": offsets,
        "b": generator.standard_normal(w[:1]) if wanted["bias"] else None,
        "mask": generator.uniform(0.5, 1.5, (x[0], taps, *windows)) if wanted["mask"] else None,
    }


def _present(operands: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: a for name, a in operands.items() if a is not None}


@pytest.mark.parametrize(("x", "w", "windows", "attributes"), CASES, ids=str)
def test_deform_conv(x: Shape, w: Shape, windows: Shape, attributes: dict[str, Any]) -> None:
    operands = _operands(x, w, windows, attributes.get("offset_group", 1), bias=True, mask=True)
    model = single_node("DeformConv", operands, opset=20, kernel_shape=w[2:], **attributes)
    check(model, operands, shapes=["static", "symbolic"])


@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("opset", [19, 22])
def test_in_onnx_runtime(opset: int, mask: bool) -> None:
    """Without a bias, and with whatever is known of the shapes."""
    operands = _operands((2, 2, 3, 4), (2, 2, 2, 2), (2, 3), 1, bias=False, mask=mask)
    inputs = _present(operands)
    dy = np.random.default_rng(1).standard_normal((2, 2, 2, 3))
    expected = gradients(single_node("DeformConv", operands, opset=20), inputs, {"y0": dy}, list(inputs))
    narrow = {name: None if a is None else a.astype(np.float32) for name, a in operands.items()}
    model = single_node("DeformConv", narrow, opset=opset)
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(
            with_shapes(model, knowledge), _present(narrow), {"y0": dy.astype(np.float32)}, list(inputs)
        )
        for name, gradient in actual.items():
            assert gradient.dtype == np.float32
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-4)


def test_second_order() -> None:
    operands = _operands((1, 1, 2, 3), (1, 1, 1, 2), (2, 2), 1, bias=False, mask=True)
    model = single_node("DeformConv", operands, opset=20)
    check(model, _present(operands), shapes=["static"], second_order=True)


def test_other_ranks_are_refused() -> None:
    inputs = {"x": np.zeros((1, 1, 4)), "w": np.zeros((1, 1, 2)), "offset": np.zeros((1, 2, 3))}
    with pytest.raises(onnx_grad.UnsupportedOpError, match="two dimensions"):
        onnx_grad.vjp(single_node("DeformConv", inputs, opset=19))
