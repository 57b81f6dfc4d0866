"""Transposed convolutions whose output size onnx infers wrongly."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnx_grad.prepare.transposed_sizes import settle_transposed_sizes
from tests.oracle import evaluator, single_node

Shape = tuple[int, ...]

# Shape of x, shape of w, attributes.
MISSIZED: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((1, 1, 5), (1, 2, 1), {"output_shape": [4]}),
    ((1, 1, 4, 3), (1, 1, 2, 2), {"output_shape": [2, 4], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 2, 3), (1, 1, 3, 4), {"output_shape": [1, 3], "dilations": [2, 1]}),
    ((2, 1, 3), (1, 2, 3), {"strides": [2], "auto_pad": "SAME_UPPER", "output_padding": [1]}),
    ((1, 1, 3, 2), (1, 1, 3, 4), {"strides": [2, 3], "auto_pad": "SAME_LOWER", "output_padding": [1, 0]}),
]
UNCHANGED: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "output_shape": [6]}),
    ((1, 1, 2), (1, 1, 2), {"strides": [2], "output_shape": [5]}),
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 3), (1, 1, 1), {"strides": [2], "auto_pad": "SAME_LOWER"}),
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "output_padding": [1], "pads": [1, 1]}),
]


def _inputs(x: Shape, w: Shape) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in (("x", x), ("w", w))}


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output[0].type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(copy, strict_mode=True)


def _dims(model: onnx.ModelProto) -> Shape:
    return tuple(dim.dim_value for dim in model.graph.output[0].type.tensor_type.shape.dim)


@pytest.mark.parametrize("kernel_shape", [True, False], ids=["kernel_shape", "shape of w"])
@pytest.mark.parametrize(("x", "w", "attributes"), MISSIZED, ids=str)
def test_the_same_values_and_the_right_shape(
    x: Shape, w: Shape, attributes: dict[str, Any], kernel_shape: bool
) -> None:
    inputs = _inputs(x, w)
    more = {"kernel_shape": w[2:]} if kernel_shape else {}
    model = _inferred(single_node("ConvTranspose", inputs, **attributes, **more))
    expected, before = evaluator(model)(inputs)["y0"], _dims(model)
    assert settle_transposed_sizes(model)
    settled = _inferred(model)
    np.testing.assert_allclose(evaluator(settled)(inputs)["y0"], expected, rtol=1e-6, atol=1e-6)
    assert _dims(settled) == expected.shape != before


@pytest.mark.parametrize(("x", "w", "attributes"), UNCHANGED, ids=str)
def test_what_is_left_as_it_is(x: Shape, w: Shape, attributes: dict[str, Any]) -> None:
    inputs = _inputs(x, w)
    model = _inferred(single_node("ConvTranspose", inputs, **attributes))
    before = model.SerializeToString()
    assert not settle_transposed_sizes(model)
    assert model.SerializeToString() == before
    assert _dims(model) == evaluator(model)(inputs)["y0"].shape


def test_unknown_sizes_are_left_as_they_are() -> None:
    inputs = _inputs(*MISSIZED[0][:2])
    model = single_node("ConvTranspose", inputs, **MISSIZED[0][2])
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "W"
    assert not settle_transposed_sizes(_inferred(model))
