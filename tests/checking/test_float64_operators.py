"""The replacements against ONNX Runtime, and their digits."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.float64_operators import REPLACEMENTS

Shape = tuple[int, ...]
PADS: list[dict[str, Any]] = [
    {},
    {"pads": [0, 1, 2, 1]},
    {"auto_pad": "SAME_UPPER"},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]


def node_model(
    op_type: str, shapes: list[Shape], element: int, outputs: int, opset: int = 22, **attributes: Any
) -> Any:
    tensor = onnx.helper.make_tensor_value_info
    names = [f"x{i}" for i in range(len(shapes))]
    results = [f"y{i}" for i in range(outputs)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op_type, names, results, **attributes)],
        "node",
        [tensor(name, element, shape) for name, shape in zip(names, shapes, strict=True)],
        [tensor(results[0], element, None), *(tensor(n, onnx.TensorProto.INT64, None) for n in results[1:])],
    )
    version = onnx.helper.make_opsetid("", opset)
    return onnx.helper.make_model(graph, opset_imports=[version], ir_version=10)


def both(
    op_type: str, *shapes: Shape, outputs: int = 1, **attributes: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What the replacement gives in float64, and ONNX Runtime in float32."""
    generator = np.random.default_rng(0)
    feeds = {f"x{i}": generator.standard_normal(shape) for i, shape in enumerate(shapes)}
    model = node_model(op_type, list(shapes), onnx.TensorProto.DOUBLE, outputs, **attributes)
    ours = ReferenceEvaluator(model, new_ops=list(REPLACEMENTS)).run(None, feeds)
    model = node_model(op_type, list(shapes), onnx.TensorProto.FLOAT, outputs, **attributes)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    theirs = session.run(None, {name: value.astype(np.float32) for name, value in feeds.items()})
    return ours, theirs


def assert_same(op_type: str, *shapes: Shape, outputs: int = 1, **attributes: Any) -> None:
    ours, theirs = both(op_type, *shapes, outputs=outputs, **attributes)
    assert ours[0].dtype == np.float64
    for mine, expected in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("padding", PADS, ids=str)
def test_conv(group: int, padding: dict[str, Any]) -> None:
    for strides, dilations in itertools.product(([1, 1], [3, 2]), ([1, 1], [2, 1])):
        if padding.get("auto_pad", "").startswith("SAME") and dilations != [1, 1]:
            continue  # ONNX Runtime has no dilation there
        options = {"group": group, "strides": strides, "dilations": dilations, **padding}
        assert_same("Conv", (2, 4, 9, 8), (8, 4 // group, 3, 2), (8,), **options)


@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("padding", PADS, ids=str)
def test_conv_transpose(group: int, padding: dict[str, Any]) -> None:
    for strides, dilations in itertools.product(([1, 1], [3, 2]), ([1, 1], [2, 1])):
        options = {"group": group, "strides": strides, "dilations": dilations, **padding}
        assert_same("ConvTranspose", (2, 4, 5, 4), (4, 3, 3, 2), (3 * group,), **options)


@pytest.mark.parametrize(
    "attributes",
    [
        {"strides": [3, 2], "output_shape": [15, 8]},
        {"strides": [3, 2], "output_shape": [15, 8], "auto_pad": "SAME_UPPER"},
        {"strides": [3, 2], "output_padding": [1, 1], "pads": [1, 0, 1, 0]},
    ],
    ids=str,
)
def test_conv_transpose_output_size(attributes: dict[str, Any]) -> None:
    assert_same("ConvTranspose", (1, 2, 5, 4), (2, 3, 3, 2), **attributes)


def test_convolutions_of_other_ranks() -> None:
    assert_same("Conv", (1, 2, 5), (4, 2, 3))
    assert_same("Conv", (1, 2, 5, 5, 5), (4, 2, 3, 2, 1), pads=[1] * 6)
    assert_same("ConvTranspose", (1, 2, 5, 5, 5), (2, 2, 3, 2, 1), pads=[1, 0, 0, 1, 0, 0])


@pytest.mark.parametrize("padding", PADS, ids=str)
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("count_include_pad", [0, 1])
def test_average_pool(padding: dict[str, Any], ceil_mode: int, count_include_pad: int) -> None:
    for strides in ([1, 1], [3, 2]):
        assert_same(
            "AveragePool",
            (2, 4, 9, 8),
            kernel_shape=[3, 2],
            strides=strides,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            **padding,
        )


@pytest.mark.parametrize("padding", PADS, ids=str)
@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_lp_pool(padding: dict[str, Any], ceil_mode: int, p: int) -> None:
    for strides, dilations in itertools.product(([1, 1], [3, 2]), ([1, 1], [2, 1])):
        if padding.get("auto_pad", "").startswith("SAME") and dilations != [1, 1]:
            continue  # ONNX Runtime has no dilation there
        options = {"strides": strides, "dilations": dilations, "ceil_mode": ceil_mode, **padding}
        assert_same("LpPool", (2, 4, 9, 8), kernel_shape=[3, 2], p=p, **options)


@pytest.mark.parametrize("padding", PADS, ids=str)
def test_max_pool_with_indices(padding: dict[str, Any]) -> None:
    assert_same("MaxPool", (2, 4, 9, 8), outputs=2, kernel_shape=[3, 2], strides=[2, 2], **padding)


@pytest.mark.parametrize("attributes", [{"p": 1}, {"p": 2}, {"p": 1, "axis": 0}], ids=str)
def test_lp_normalization(attributes: dict[str, Any]) -> None:
    assert_same("LpNormalization", (3, 4), **attributes)


@pytest.mark.parametrize(
    "attributes", [{"size": 3}, {"size": 5, "alpha": 0.5, "beta": 0.6, "bias": 2.0}], ids=str
)
@pytest.mark.parametrize("batch", [1, 2])
def test_lrn(batch: int, attributes: dict[str, Any]) -> None:
    assert_same("LRN", (batch, 7, 3, 2), **attributes)


@pytest.mark.parametrize("attributes", [{}, {"axis": 1}, {"axis": -2, "epsilon": 0.5}], ids=str)
def test_layer_normalization(attributes: dict[str, Any]) -> None:
    axis = attributes.get("axis", -1) % 3
    per_element = (2, 3, 4)[axis:]
    assert_same("LayerNormalization", (2, 3, 4), per_element, per_element, opset=17, **attributes)


@pytest.mark.parametrize("attributes", [{}, {"axes": [2, 3]}], ids=str)
def test_mean_variance_normalization(attributes: dict[str, Any]) -> None:
    assert_same("MeanVarianceNormalization", (2, 3, 4, 5), **attributes)


@pytest.mark.parametrize("attributes", [{}, {"approximate": "tanh"}], ids=str)
def test_gelu(attributes: dict[str, Any]) -> None:
    assert_same("Gelu", (3, 4), **attributes)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize("pads", [[1, 0, 0, 2], [-1, 1, 0, -2]], ids=str)
def test_pad(mode: str, pads: list[int]) -> None:
    model = node_model("Pad", [(4, 5), (4,)], onnx.TensorProto.DOUBLE, 1, mode=mode)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    feeds = {"x0": np.arange(20.0).reshape(4, 5), "x1": np.array(pads)}
    (ours,) = ReferenceEvaluator(model, new_ops=list(REPLACEMENTS)).run(None, feeds)
    (theirs,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("pads", [[-6, 0, 7, 0], [5, 1, -6, -1], [0, -3, 0, -2]], ids=str)
def test_pad_may_take_away_all_there_is(pads: list[int]) -> None:
    model = node_model("Pad", [(4, 5), (4,)], onnx.TensorProto.DOUBLE, 1)
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    feeds = {"x0": np.arange(20.0).reshape(4, 5), "x1": np.array(pads)}
    (ours,) = ReferenceEvaluator(model, new_ops=list(REPLACEMENTS)).run(None, feeds)
    (theirs,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)
    np.testing.assert_array_equal(ours, theirs)


def test_pad_before_opset_11_has_attributes() -> None:
    assert_same("Pad", (4, 5), opset=9, pads=[1, 0, -1, 2], value=0.5)


@pytest.mark.parametrize("op_type", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("opset", [9, 11, 13])
def test_softmax_of_every_opset(op_type: str, opset: int) -> None:
    """Before opset 13 it is over the axis and all behind it."""
    for attributes in ({}, {"axis": 0}, {"axis": 2}):
        assert_same(op_type, (2, 3, 4, 1), opset=opset, **attributes)


def test_erf_has_sixteen_digits() -> None:
    model = node_model("Erf", [(1,)], onnx.TensorProto.DOUBLE, 1)
    evaluator = ReferenceEvaluator(model, new_ops=list(REPLACEMENTS))
    assert evaluator.run(None, {"x0": np.array([0.3])})[0] == math.erf(0.3)


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (2, 3, 4, 5)], ids=str)
def test_batch_normalization_with_running_statistics(opset: int, shape: Shape) -> None:
    assert_same_normalization(shape, opset)


def test_batch_normalization_with_those_of_the_batch() -> None:
    assert_same_normalization((4, 3, 5), 15, "y, mean, var", training_mode=1, momentum=0.7)


def test_batch_normalization_of_every_element_by_itself() -> None:
    """Before opset 9, `spatial = 0` asked for it."""
    assert_same_normalization((4, 3, 5), 7, per=(3, 5), spatial=0)


def assert_same_normalization(
    shape: Shape, opset: int, outputs: str = "y", per: Shape = (3,), **attributes: Any
) -> None:
    """Compare with ONNX Runtime; variances are positive, and epsilon is large enough to matter."""
    generator = np.random.default_rng(0)
    feeds = {"x": generator.standard_normal(shape)}
    feeds |= {name: generator.uniform(0.5, 2.0, per) for name in ("scale", "bias", "m", "v")}
    node = onnx.helper.make_node(
        "BatchNormalization", list(feeds), outputs.split(", "), epsilon=0.1, **attributes
    )

    def model(element: int) -> onnx.ModelProto:
        tensor = onnx.helper.make_tensor_value_info
        inputs = [tensor(name, element, value.shape) for name, value in feeds.items()]
        graph = onnx.helper.make_graph([node], "g", inputs, [tensor(n, element, None) for n in node.output])
        opsets = [onnx.helper.make_opsetid("", opset)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)

    ours = ReferenceEvaluator(model(onnx.TensorProto.DOUBLE), new_ops=list(REPLACEMENTS)).run(None, feeds)
    session = onnxruntime.InferenceSession(model(onnx.TensorProto.FLOAT).SerializeToString())
    theirs = session.run(None, {name: value.astype(np.float32) for name, value in feeds.items()})
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
