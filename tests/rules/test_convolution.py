"""Convolution: every attribute, known and unknown sizes, each way of computing the gradient of the weights.

Convolution is linear in each operand, so that differences are exact in float32 as well, and ONNX Runtime,
which has no float64 convolution, can be what is tested.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_grad
from onnx_grad.rules import filter_gradient, gathered, transposed_products
from tests.oracle import (
    SHAPE_KNOWLEDGE,
    check,
    evaluator,
    given_names,
    gradients,
    graph_model,
    single_node,
    with_shapes,
)
from tests.single_precision import check_in_single_precision

Shape = tuple[int, ...]
Arrays = dict[str, np.ndarray]

# Shape of x, shape of w, attributes.
CONVOLUTIONS: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((1, 2, 4), (2, 2, 2), {}),
    ((2, 1, 4), (2, 1, 3), {"pads": [2, 1]}),
    ((1, 1, 4), (1, 1, 2), {"pads": [2, 3]}),
    ((1, 1, 6), (1, 1, 2), {"strides": [3]}),
    ((1, 1, 7), (2, 1, 2), {"strides": [3], "dilations": [2], "pads": [0, 1]}),
    ((1, 4, 5), (2, 4, 2), {"strides": [2], "pads": [1, 1]}),
    ((1, 4, 4), (4, 2, 2), {"group": 2, "dilations": [2]}),
    ((1, 4, 5), (2, 2, 2), {"group": 2, "strides": [3]}),
    ((2, 2, 4), (2, 1, 2), {"group": 2, "pads": [1, 0]}),
    ((1, 2, 4), (4, 1, 2), {"group": 2}),
    ((2, 4, 3), (2, 4, 1), {}),
    ((1, 4, 5), (2, 2, 1), {"group": 2, "strides": [2]}),
    ((1, 1, 4), (1, 1, 3), {"auto_pad": "VALID"}),
    ((1, 1, 4), (1, 1, 4), {"auto_pad": "SAME_UPPER"}),
    ((1, 1, 4), (1, 1, 4), {"auto_pad": "SAME_LOWER"}),
    ((1, 1, 4), (1, 1, 3), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    ((1, 4, 5), (1, 4, 4), {"auto_pad": "SAME_LOWER", "strides": [3]}),
    ((1, 4, 4), (2, 2, 3), {"auto_pad": "SAME_LOWER", "strides": [2], "group": 2}),
    ((1, 1, 6), (1, 1, 1), {"auto_pad": "SAME_UPPER", "strides": [3]}),
    ((1, 16, 3), (1, 16, 2), {"pads": [1, 0]}),
    ((1, 4, 3, 3), (1, 4, 2, 2), {"pads": [1, 0, 0, 1], "strides": [1, 2]}),
    ((1, 4, 3, 3), (1, 4, 2, 2), {"pads": [0, 1, 1, 0]}),
    ((1, 2, 3, 3), (2, 1, 2, 2), {"group": 2, "pads": [1, 1, 1, 1]}),
    ((1, 1, 3, 2, 2), (1, 1, 2, 1, 2), {"pads": [0, 0, 1, 0, 0, 0]}),
    ((1, 4, 2, 2, 2), (1, 4, 2, 2, 1), {"pads": [1, 0, 0, 0, 0, 0]}),
]
TRANSPOSED: list[tuple[Shape, Shape, dict[str, Any]]] = [
    ((1, 2, 3), (2, 2, 2), {}),
    ((2, 1, 3), (1, 2, 3), {"pads": [2, 1]}),
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "output_padding": [1]}),
    ((1, 1, 3), (1, 1, 2), {"strides": [3], "output_padding": [2], "pads": [1, 1]}),
    ((1, 2, 2), (2, 1, 2), {"strides": [3], "dilations": [2], "pads": [0, 1]}),
    ((1, 4, 3), (4, 2, 2), {"group": 2, "strides": [2]}),
    ((1, 2, 3), (2, 1, 3), {"group": 2, "pads": [1, 1]}),
    ((1, 4, 3), (4, 1, 1), {"group": 2}),
    ((1, 1, 3), (1, 1, 3), {"auto_pad": "VALID", "strides": [2]}),
    ((1, 1, 3), (1, 1, 4), {"auto_pad": "SAME_UPPER"}),
    ((1, 1, 3), (1, 1, 4), {"auto_pad": "SAME_LOWER"}),
    ((1, 1, 3), (1, 1, 3), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    ((1, 1, 3), (1, 1, 2), {"auto_pad": "SAME_LOWER", "strides": [4]}),
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "output_shape": [6]}),
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "output_shape": [6], "auto_pad": "SAME_UPPER"}),
    ((1, 1, 3), (1, 1, 4), {"strides": [2], "output_shape": [5], "output_padding": [1]}),
    ((1, 1, 3), (1, 1, 1), {"output_shape": [2]}),
    ((1, 1, 2), (1, 2, 2), {"strides": [2], "output_shape": [5]}),
    ((1, 1, 3), (1, 1, 3), {"strides": [2], "auto_pad": "SAME_LOWER", "output_padding": [1]}),
    ((1, 4, 2, 2), (4, 2, 2, 2), {"pads": [1, 0, 0, 1], "strides": [1, 2], "output_padding": [0, 1]}),
    ((1, 1, 2, 2, 1), (1, 1, 2, 1, 2), {"strides": [1, 2, 1]}),
]


def _arrays(**shapes: Shape) -> Arrays:
    generator = np.random.default_rng(3)
    return {name: generator.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("kernel_shape", [True, False], ids=["kernel_shape", "shape of w"])
@pytest.mark.parametrize(("x", "w", "attributes"), CONVOLUTIONS, ids=str)
def test_conv(x: Shape, w: Shape, attributes: dict[str, Any], kernel_shape: bool) -> None:
    attributes = {**attributes, "kernel_shape": w[2:]} if kernel_shape else attributes
    inputs = _arrays(x=x, w=w, b=w[:1])
    check_in_single_precision(single_node("Conv", inputs, **attributes), inputs)


@pytest.mark.parametrize("kernel_shape", [True, False], ids=["kernel_shape", "shape of w"])
@pytest.mark.parametrize(("x", "w", "attributes"), TRANSPOSED, ids=str)
def test_conv_transpose(x: Shape, w: Shape, attributes: dict[str, Any], kernel_shape: bool) -> None:
    attributes = {**attributes, "kernel_shape": w[2:]} if kernel_shape else attributes
    inputs = _arrays(x=x, w=w, b=(w[1] * attributes.get("group", 1),))
    check_in_single_precision(single_node("ConvTranspose", inputs, **attributes), inputs)


@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [("Conv", *case) for case in CONVOLUTIONS] + [("ConvTranspose", *case) for case in TRANSPOSED],
    ids=str,
)
def test_second_order(op_type: str, x: Shape, w: Shape, attributes: dict[str, Any]) -> None:
    inputs = _arrays(x=x, w=w)
    model = single_node(op_type, inputs, kernel_shape=w[2:], **attributes)
    check_in_single_precision(model, inputs, second_order=True)


@pytest.mark.parametrize("strides", [[1], [2]])
def test_in_float64(strides: list[int]) -> None:
    inputs = {name: a.astype(np.float64) for name, a in _arrays(x=(1, 2, 5), w=(1, 2, 2)).items()}
    check(single_node("Conv", inputs, strides=strides, pads=[1, 0]), inputs, second_order=True)
    inputs = {name: a.astype(np.float64) for name, a in _arrays(x=(1, 2, 3), w=(2, 1, 2)).items()}
    check(single_node("ConvTranspose", inputs, strides=strides, pads=[1, 0]), inputs, second_order=True)


@pytest.mark.parametrize("strides", [[1], [2]])
@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
def test_same_padding_with_dilation(auto_pad: str, strides: list[int]) -> None:
    """ONNX Runtime refuses to run it; onnx's reference evaluator does."""
    inputs = {name: a.astype(np.float64) for name, a in _arrays(x=(1, 1, 6), w=(1, 1, 4)).items()}
    check(single_node("Conv", inputs, auto_pad=auto_pad, dilations=[2], strides=strides), inputs)


@pytest.mark.parametrize("folded", [False, True], ids=["an initializer", "folded"])
@pytest.mark.parametrize("group", [1, 2])
def test_constant_weights(group: int, folded: bool) -> None:
    """Constant weights are turned round, for the input gradient to be a `Conv`, which is faster."""
    inputs, weights = _arrays(x=(1, 8, 4, 4)), _arrays(w=(4, 8 // group, 3, 3))
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"], group=group, pads=[1, 1, 1, 1])]
    if folded:
        weights = {"turned": np.ascontiguousarray(weights["w"].transpose(3, 2, 1, 0))}
        nodes.insert(0, onnx.helper.make_node("Transpose", ["turned"], ["w"]))
    model = graph_model(nodes, inputs, ["y"], initializers=weights)
    check_in_single_precision(model, inputs)
    assert "ConvTranspose" not in _operators(onnx_grad.vjp(model, ["x"]))


# Shape of x, shape of w, attributes, operators that tell the formula for the gradient of the weights.
FORMULAS: list[tuple[Shape, Shape, dict[str, Any], tuple[str, ...]]] = [
    ((2, 8, 4, 4), (4, 8, 1, 1), {}, ("MatMul",)),
    ((2, 8, 4, 4), (4, 8, 1, 1), {"strides": [2, 2]}, ("MatMul", "Slice")),
    ((2, 8, 4, 4), (4, 8, 3, 3), {"pads": [1, 1, 1, 1]}, ("MatMul", "Pad")),
    ((2, 8, 4, 4), (8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8}, ("MatMul", "Gather")),
    ((2, 8, 5, 5), (8, 1, 3, 3), {"strides": [2, 2], "group": 8}, ("MatMul", "Gather")),
    ((2, 8, 4, 40), (8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8}, ("MatMul", "Pad")),
    ((2, 8, 1, 4), (8, 1, 3, 3), {"pads": [1, 1, 1, 1], "group": 8}, ("MatMul", "Pad")),
    ((2, 16, 4, 4), (4, 16, 3, 3), {"pads": [1, 1, 1, 1]}, ("MatMul", "Pad", "Gather")),
    ((2, 8, 5, 5), (4, 8, 3, 3), {"strides": [2, 2]}, ("MatMul", "Gather")),
    ((2, 8, 5, 5), (4, 4, 3, 3), {"strides": [2, 2], "group": 2}, ("Conv",)),
    ((2, 3, 4, 4), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, ("Conv", "MatMul")),
    ((2, 3, 5, 5), (4, 3, 3, 3), {"strides": [2, 2]}, ("Conv", "MatMul")),
    ((1, 3, 4, 4), (4, 3, 3, 3), {"pads": [1, 1, 1, 1]}, ("Conv", "Gemm")),
    ((2, 3, 5, 5), (4, 3, 5, 5), {"pads": [1, 1, 1, 1]}, ("Conv",)),
    ((1, 8, 4, 4), (4, 8, 1, 1), {}, ("Gemm",)),
    ((1, 8, 4, 4), (4, 8, 1, 1), {"strides": [2, 2]}, ("Gemm", "Slice")),
    ((1, 8, 4, 4), (4, 8, 3, 3), {"pads": [1, 1, 1, 1]}, ("Gemm", "Pad")),
    ((1, 16, 4, 4), (4, 16, 3, 3), {"pads": [1, 1, 1, 1]}, ("MatMul", "Pad", "Gather")),
    ((1, 16, 2, 2), (8, 16, 3, 3), {"pads": [1, 1, 1, 1]}, ("MatMul", "Pad", "Gather")),
    ((1, 8, 5, 5), (8, 8, 3, 3), {"strides": [2, 2]}, ("MatMul", "Gather")),
    ((1, 8, 4, 4), (4, 4, 3, 3), {"pads": [1, 1, 1, 1], "group": 2}, ("MatMul", "Pad")),
]


@pytest.mark.parametrize(("x", "w", "attributes", "expected"), FORMULAS, ids=str)
def test_formulas_for_the_weights(
    x: Shape, w: Shape, attributes: dict[str, Any], expected: tuple[str, ...]
) -> None:
    """Each formula against PyTorch, for a batch, and that it is the one the sizes ask for."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    inputs = _arrays(x=x, w=w)
    model = single_node("Conv", inputs, **attributes)
    forward = _operators(model)
    backward = _operators(onnx_grad.vjp(model, ["w"])) - forward
    tells = {"MatMul", "Gemm", "Slice", "Pad", "Gather", "Conv"}
    assert tells.intersection(backward) == set(expected)
    tensors = {name: torch.tensor(a, dtype=torch.float64, requires_grad=True) for name, a in inputs.items()}
    y = torch.nn.functional.conv2d(
        tensors["x"],
        tensors["w"],
        stride=attributes.get("strides", 1),
        padding=attributes.get("pads", [0])[0],
        groups=attributes.get("group", 1),
    )
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["x", "w"])
        for name, tensor in tensors.items():
            np.testing.assert_allclose(actual[name], tensor.grad.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [("Conv", *case) for case in CONVOLUTIONS] + [("ConvTranspose", *case) for case in TRANSPOSED],
    ids=str,
)
def test_formulas_for_many_taps(
    op_type: str, x: Shape, w: Shape, attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of few weights by the formulas for many."""
    monkeypatch.setattr(filter_gradient, "_FEW_TAPS", 0)
    inputs = _arrays(x=x, w=w)
    model = single_node(op_type, inputs, kernel_shape=w[2:], **attributes)
    check_in_single_precision(model, inputs)


@pytest.mark.parametrize(
    ("x", "w", "attributes"), [case[:3] for case in FORMULAS if "Gather" in case[3]], ids=str
)
def test_gathered_from_many_places(
    x: Shape, w: Shape, attributes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the taps of many windows lie is computed by the graph, and comes to the same."""
    inputs = _arrays(x=x, w=w)
    model = single_node("Conv", inputs, **attributes)
    dy = np.random.default_rng(0).standard_normal(evaluator(model)(inputs)["y0"].shape).astype(np.float32)
    stored = gradients(model, inputs, {"y0": dy}, ["w"])["w"]
    monkeypatch.setattr(gathered, "_MOST_PLACES", 0)
    np.testing.assert_array_equal(gradients(model, inputs, {"y0": dy}, ["w"])["w"], stored)


@pytest.mark.parametrize(
    ("x", "w", "attributes"), [case[:3] for case in FORMULAS if "Gather" in case[3]], ids=str
)
def test_a_batch_that_is_known_at_run_time_only(x: Shape, w: Shape, attributes: dict[str, Any]) -> None:
    """Windows are copied side by side then, and not for each tap."""
    inputs = _arrays(x=x, w=w)
    model = single_node("Conv", inputs, **attributes)
    dy = np.random.default_rng(0).standard_normal(evaluator(model)(inputs)["y0"].shape).astype(np.float32)
    expected = gradients(model, inputs, {"y0": dy}, ["w"])["w"]
    for value in (*model.graph.input[:1], *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    actual = gradients(model, inputs, {"y0": dy}, ["w"])["w"]
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 16, 0, 4), (2, 16, 4, 0), (0, 16, 4, 4)], ids=str)
def test_images_without_pixels(shape: Shape) -> None:
    """Windows see nothing but padding then, or there are none."""
    inputs = _arrays(x=shape, w=(4, 16, 3, 3))
    model = single_node("Conv", inputs, pads=[2, 2, 2, 2])
    y = evaluator(model)(inputs)["y0"]
    for knowledge in SHAPE_KNOWLEDGE:
        dw = gradients(with_shapes(model, knowledge), inputs, {"y0": np.ones_like(y)}, ["w"])["w"]
        np.testing.assert_array_equal(dw, np.zeros((4, 16, 3, 3)))


@pytest.mark.parametrize("few_windows", [1000, 0], ids=["scattered", "gathered"])
@pytest.mark.parametrize(
    ("op_type", "x", "w", "attributes"),
    [("Conv", *case) for case in CONVOLUTIONS] + [("ConvTranspose", *case) for case in TRANSPOSED],
    ids=str,
)
def test_products_for_the_image(
    op_type: str,
    x: Shape,
    w: Shape,
    attributes: dict[str, Any],
    few_windows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The products that replace `ConvTranspose` for many weights, wherever they can, for few weights too."""
    monkeypatch.setattr(transposed_products, "_MANY_WEIGHTS", 0)
    monkeypatch.setattr(transposed_products, "_FEW_WINDOWS", few_windows)
    inputs = _arrays(x=x, w=w)
    model = single_node(op_type, inputs, kernel_shape=w[2:], **attributes)
    check_in_single_precision(model, inputs)


# Shape of x, shape of w, attributes, an operator that tells the formula for the gradient of the input.
IMAGE_FORMULAS: list[tuple[Shape, Shape, dict[str, Any], str]] = [
    ((2, 64, 3, 3), (64, 64, 3, 3), {"pads": [1, 1, 1, 1]}, "Gemm"),
    ((2, 64, 7, 7), (64, 64, 3, 3), {"pads": [1, 1, 1, 1], "strides": [2, 2]}, "Gemm"),
    ((2, 64, 6, 6), (64, 64, 3, 3), {"pads": [1, 0, 2, 1]}, "Gather"),
    ((2, 128, 20), (128, 128, 3), {"dilations": [2]}, "Gemm"),
    ((1, 64, 9, 9), (64, 64, 3, 3), {"pads": [1, 1, 1, 1]}, "ConvTranspose"),
    ((1, 64, 6, 6), (64, 64, 3, 3), {"pads": [3, 0, 0, 0]}, "ConvTranspose"),
]


@pytest.mark.parametrize(("x", "w", "attributes", "expected"), IMAGE_FORMULAS, ids=str)
def test_formulas_for_the_image(x: Shape, w: Shape, attributes: dict[str, Any], expected: str) -> None:
    """Each formula is the one that the sizes ask for, and gives what `ConvTranspose` gives."""
    inputs = _arrays(x=x, w=w)
    model = single_node("Conv", inputs, **attributes)
    backward = _operators(onnx_grad.vjp(model, ["x"])) - _operators(model)
    assert {"Gemm", "Gather", "ConvTranspose"}.intersection(backward) == {expected}
    dy = np.random.default_rng(0).standard_normal(evaluator(model)(inputs)["y0"].shape).astype(np.float32)
    actual, reference = (
        gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["x"])["x"]
        for knowledge in ("static", "symbolic")
    )
    np.testing.assert_allclose(actual, reference, rtol=1e-4, atol=1e-3)


# PyTorch's function, shapes of x and w, its arguments.
AS_PYTORCH: list[tuple[str, Shape, Shape, dict[str, int]]] = [
    ("conv1d", (2, 4, 11), (6, 2, 3), {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}),
    ("conv1d", (2, 4, 9), (4, 1, 3), {"stride": 2, "padding": 1, "groups": 4}),
    ("conv3d", (2, 2, 5, 4, 6), (2, 1, 2, 3, 3), {"padding": 1, "dilation": 2, "groups": 2}),
    ("conv2d", (2, 3, 7, 6), (4, 3, 3, 2), {"stride": 3, "padding": 1}),
    ("conv2d", (1, 6, 5, 8), (6, 1, 2, 3), {"padding": 1, "groups": 6}),
    ("conv3d", (1, 2, 4, 3, 5), (2, 1, 2, 2, 3), {"stride": 2, "padding": 1, "groups": 2}),
    ("conv3d", (1, 4, 4, 3, 5), (2, 4, 2, 2, 3), {"padding": 1}),
    ("conv3d", (2, 4, 4, 3, 5), (2, 4, 2, 2, 3), {"stride": 2, "padding": 1}),
    ("conv_transpose1d", (2, 4, 5), (4, 3, 3), {"stride": 3, "padding": 1, "output_padding": 2, "groups": 2}),
    ("conv_transpose2d", (2, 3, 4, 3), (3, 2, 2, 3), {"stride": 2, "dilation": 2, "output_padding": 1}),
    ("conv_transpose3d", (1, 2, 2, 3, 2), (2, 1, 3, 2, 2), {"stride": 2, "padding": 1, "groups": 2}),
]


@pytest.mark.parametrize(("function", "x", "w", "arguments"), AS_PYTORCH, ids=str)
def test_as_pytorch(function: str, x: Shape, w: Shape, arguments: dict[str, int]) -> None:
    torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
    is_transposed = function.startswith("conv_transpose")
    groups, rank = arguments.get("groups", 1), len(x) - 2
    inputs = _arrays(x=x, w=w, b=(w[1] * groups if is_transposed else w[0],))
    tensors = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in inputs.values()]
    y = getattr(torch.nn.functional, function)(*tensors, **arguments)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    y.backward(torch.tensor(dy, dtype=torch.float64))
    attributes: dict[str, Any] = {
        "group": groups,
        "strides": [arguments.get("stride", 1)] * rank,
        "dilations": [arguments.get("dilation", 1)] * rank,
        "pads": [arguments.get("padding", 0)] * 2 * rank,
    }
    if is_transposed:
        attributes["output_padding"] = [arguments.get("output_padding", 0)] * rank
    model = single_node("ConvTranspose" if is_transposed else "Conv", inputs, **attributes)
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, list(inputs))
        for gradient, tensor in zip(actual.values(), tensors, strict=True):
            np.testing.assert_allclose(gradient, tensor.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_one_file_for_every_size() -> None:
    """A graph made for symbolic batch and image sizes serves them all."""
    weights = _arrays(w=(3, 2, 3, 3), v=(3, 2, 2, 2), b=(2,))
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], auto_pad="SAME_UPPER"),
        onnx.helper.make_node("ConvTranspose", ["a", "v", "b"], ["y"], strides=[2, 2], pads=[0, 1, 0, 0]),
    ]
    model = graph_model(nodes, _arrays(x=(1, 2, 5, 5)), ["y"], initializers=weights)
    symbolic = with_shapes(model, "symbolic")
    transformed = onnx_grad.vjp(symbolic, ["x", "w", "v", "b"])
    cotangents, names = given_names(transformed)
    forward, backward = evaluator(symbolic), evaluator(transformed)
    for sizes in ((1, 2, 3, 3), (2, 2, 4, 7), (3, 2, 6, 1)):
        inputs = _arrays(x=sizes)
        dy = np.random.default_rng(0).standard_normal(forward(inputs)["y"].shape).astype(np.float32)
        actual = backward({**inputs, cotangents["y"]: dy})
        static = graph_model(nodes, {**inputs, **weights}, ["y"])
        expected = gradients(static, {**inputs, **weights}, {"y": dy}, list(names))
        for name, gradient in expected.items():
            np.testing.assert_allclose(actual[names[name]], gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attributes", [{}, {"strides": [2]}, {"group": 2}, {"group": 4}], ids=str)
@pytest.mark.parametrize("kernel", [1, 2])
def test_an_empty_batch(kernel: int, attributes: dict[str, Any]) -> None:
    inputs, weights = _arrays(x=(0, 4, 5)), _arrays(w=(4, 4 // attributes.get("group", 1), kernel), b=(4,))
    node = onnx.helper.make_node("Conv", ["x", "w", "b"], ["y"], **attributes)
    for model in (
        graph_model([node], inputs, ["y"], initializers=weights),
        graph_model([node], inputs | weights, ["y"]),
    ):
        given = inputs if model.graph.initializer else inputs | weights
        dy = {"y": evaluator(model)(given)["y"]}
        for knowledge in SHAPE_KNOWLEDGE:
            actual = gradients(with_shapes(model, knowledge), given, dy, ["x", "w", "b"])
            assert actual["x"].shape == (0, 4, 5)
            assert not actual["w"].any()
            assert not actual["b"].any()


def test_half_precision() -> None:
    inputs = _arrays(x=(1, 4, 4, 4), w=(2, 4, 3, 3), b=(2,))
    dy = np.random.default_rng(0).standard_normal((1, 2, 4, 4)).astype(np.float32)
    pads = [1, 1, 1, 1]
    expected = gradients(single_node("Conv", inputs, pads=pads), inputs, {"y0": dy}, list(inputs))
    half = {name: a.astype(np.float16) for name, a in inputs.items()}
    model = single_node("Conv", half, pads=pads)
    actual = gradients(model, half, {"y0": dy.astype(np.float16)}, list(half))
    for name, gradient in actual.items():
        assert gradient.dtype == np.float16
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-2, atol=2e-2)


def _operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)
