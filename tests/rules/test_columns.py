"""Col2Im, which adds overlapping blocks up to an image."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.oracle import check, gradients, graph_model, single_node, with_shapes
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
    check(single_node("Col2Im", {**x, **shapes}, **attributes), {**x, **shapes})
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
    check(graph_model(nodes, inputs, ["y"]), inputs, second_order=True)


def test_more_axes_than_expected_fail_when_run() -> None:
    x = np.ones((1, 1, 1), np.float32)
    inputs = {"x": x, "image_shape": integers(1, 1, 1, 1), "block_shape": integers(1, 1, 1, 1)}
    model = with_shapes(single_node("Col2Im", inputs), "unknown")
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.Fail, match="Expand"):
        gradients(model, inputs, {"y0": np.ones((1,) * 6, np.float32)}, ["x"])


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strides": [1, 2], "pads": [0, 1, 0, 1]},
        {"dilations": [2, 1], "pads": [1, 0, 1, 0]},
        {"strides": [4, 4]},
    ],
    ids=str,
)
def test_agrees_with_pytorch(settings: dict[str, list[int]]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    image, block = (4, 5), (2, 3)
    pads = settings.get("pads", [0] * 4)
    fold = torch.nn.Fold(image, block, settings.get("dilations", 1), pads[:2], settings.get("strides", 1))
    unfold = torch.nn.Unfold(block, fold.dilation, fold.padding, fold.stride)
    columns = unfold(torch.zeros(2, 2, *image, dtype=torch.float64))
    x = torch.tensor(normal(*columns.shape), requires_grad=True)
    dy = normal(2, 2, *image, seed=2)
    fold(x).backward(torch.tensor(dy))
    inputs = {"x": x.detach().numpy(), "image_shape": integers(*image), "block_shape": integers(*block)}
    actual = gradients(single_node("Col2Im", inputs, **settings), inputs, {"y0": dy}, ["x"])["x"]
    np.testing.assert_allclose(actual, x.grad, rtol=1e-12)


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
def test_an_empty_batch(knowledge: str) -> None:
    x = np.empty((0, 4, 4), np.float32)
    inputs = {"x": x, "image_shape": integers(3, 3), "block_shape": integers(2, 2)}
    model = with_shapes(single_node("Col2Im", inputs), knowledge)
    dy = np.empty((0, 1, 3, 3), np.float32)
    assert gradients(model, inputs, {"y0": dy}, ["x"])["x"].shape == x.shape
