"""Col2Im, which adds overlapping blocks up to an image."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.errors import UnsupportedOpError
from tests.oracle import check, graph_model, single_node, with_shapes
from tests.rules.forms import check_linear, integers, normal

# shape of the columns, of the image, of a block, attributes
CASES = {
    "overlapping": ((1, 8, 8), (3, 5), (2, 2), {}),
    "strides and uneven padding": ((1, 8, 9), (3, 5), (2, 2), {"strides": [1, 2], "pads": [0, 1, 1, 0]}),
    "dilations": ((2, 4, 2), (3, 3), (2, 2), {"dilations": [2, 1], "pads": [1, 0, 0, 0], "strides": [1, 2]}),
    "a line": ((2, 6, 2), (4,), (3,), {}),
    "a dilated line": ((2, 6, 3), (7,), (3,), {"pads": [1, 1], "dilations": [2], "strides": [2]}),
    "a volume": ((1, 8, 2), (2, 2, 3), (2, 2, 2), {}),
}
Case = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], dict[str, list[int]]]


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_col2im(case: Case) -> None:
    columns, image, block, attributes = case
    x, shapes = {"x": normal(*columns)}, {"image_shape": integers(*image), "block_shape": integers(*block)}
    # The number of axes must be known, by the length of `image_shape`.
    check(single_node("Col2Im", {**x, **shapes}, **attributes), {**x, **shapes}, shapes=["static"])
    node = onnx.helper.make_node("Col2Im", ["x", *shapes], ["y0"], **attributes)
    check(graph_model([node], x, ["y0"], initializers=shapes), x)


@pytest.mark.parametrize("case", ["overlapping", "strides and uneven padding", "dilations"])
def test_single_precision(case: str) -> None:
    # ONNX Runtime 1.32 is wrong where there is only one spatial axis and it is dilated.
    columns, image, block, attributes = CASES[case]
    x = {"x": normal(*columns).astype(np.float32)}
    shapes = {"image_shape": integers(*image), "block_shape": integers(*block)}
    node = onnx.helper.make_node("Col2Im", ["x", *shapes], ["y0"], **attributes)
    check_linear(graph_model([node], x, ["y0"], initializers=shapes), x)


def test_second_order() -> None:
    inputs = {"x": normal(1, 4, 4), "image_shape": integers(3, 3), "block_shape": integers(2, 2)}
    nodes = [
        onnx.helper.make_node("Col2Im", list(inputs), ["image"]),
        onnx.helper.make_node("Mul", ["image", "image"], ["y"]),
    ]
    check(graph_model(nodes, inputs, ["y"]), inputs, shapes=["static"], second_order=True)


def test_an_unknown_number_of_axes_is_refused() -> None:
    inputs = {"x": normal(1, 4, 4), "image_shape": integers(3, 3), "block_shape": integers(2, 2)}
    with pytest.raises(UnsupportedOpError, match="image_shape"):
        onnx_grad.vjp(with_shapes(single_node("Col2Im", inputs), "unknown"), ["x"])
