"""Normalization over the axes of each instance."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from tests.oracle import SHAPE_KNOWLEDGE, check, gradients, numerical_gradient, single_node, with_shapes


def _random(*shape: int) -> np.ndarray:
    return np.asarray(np.random.default_rng(sum(shape)).uniform(0.5, 2.0, shape))


def _group_normalization(
    inputs: dict[str, np.ndarray], opset: int, dtype: type[np.floating] = np.float64
) -> onnx.ModelProto:
    """A model of one node. ONNX infers neither type nor shape of its output, so that they are unknown."""
    onnx_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    # Before opset 21 the statistics are of the type of the input; since then their type is an attribute.
    attributes = {"stash_type": onnx_type} if opset >= 21 else {}
    model = single_node("GroupNormalization", inputs, opset=opset, num_groups=2, epsilon=1e-2, **attributes)
    model.graph.output[0].type.tensor_type.elem_type = onnx_type
    return model


@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 2, 1, 3), (1, 2, 2, 1, 2), (0, 2, 3)], ids=str)
def test_instance_normalization(shape: tuple[int, ...]) -> None:
    inputs = {"x": _random(*shape), "scale": _random(shape[1]), "B": _random(shape[1])}
    check(single_node("InstanceNormalization", inputs, epsilon=1e-2), inputs)


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 3), (1, 4, 2, 2)], ids=str)
def test_group_normalization(shape: tuple[int, ...], opset: int) -> None:
    entries = 4 if opset >= 21 else 2
    inputs = {"x": _random(*shape), "scale": _random(entries), "bias": _random(entries)}
    check(_group_normalization(inputs, opset), inputs)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization_at_second_order(opset: int) -> None:
    entries = 4 if opset >= 21 else 2
    inputs = {"x": _random(2, 4, 3), "scale": _random(entries), "bias": _random(entries)}
    check(_group_normalization(inputs, opset), inputs, second_order=True)


def test_instance_normalization_at_second_order() -> None:
    inputs = {"x": _random(2, 2, 3), "scale": _random(2), "B": _random(2)}
    check(single_node("InstanceNormalization", inputs, epsilon=1e-2), inputs, second_order=True)


def test_group_normalization_within_a_graph() -> None:
    """What follows has neither a known type nor a known shape."""
    inputs = {"x": _random(2, 4, 3), "scale": _random(4), "bias": _random(4)}
    nodes = [
        onnx.helper.make_node(
            "GroupNormalization",
            list(inputs),
            ["n"],
            num_groups=2,
            epsilon=1e-2,
            stash_type=onnx.TensorProto.DOUBLE,
        ),
        onnx.helper.make_node("Mul", ["n", "n"], ["y"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "groups",
        [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.DOUBLE, a.shape) for n, a in inputs.items()],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.DOUBLE, None)],
    )
    check(
        onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10), inputs
    )


@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 2, 1, 3), None), ((2, 3), [1]), ((2, 3), [0, 1]), ((2, 2, 3), [0, -1])]
)
def test_mean_variance_normalization(shape: tuple[int, ...], axes: list[int] | None) -> None:
    """ONNX Runtime has it in single precision only, so NumPy computes the differences."""
    exact = {"x": _random(*shape)}
    inputs = {"x": exact["x"].astype(np.float32)}
    reduced = (0, 2, 3) if axes is None else tuple(axes)

    def normalize(at: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = at["x"]
        return {"y0": (x - x.mean(reduced, keepdims=True)) / (x.std(reduced, keepdims=True) + 1e-9)}

    dy = np.asarray(np.random.default_rng(1).standard_normal(shape))
    attributes = {} if axes is None else {"axes": axes}
    model = single_node("MeanVarianceNormalization", inputs, **attributes)
    expected = numerical_gradient(normalize, exact, "x", {"y0": dy})
    for shapes in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(model, shapes), inputs, {"y0": dy.astype(np.float32)}, ["x"])
        assert actual["x"].dtype == np.float32
        np.testing.assert_allclose(actual["x"], expected, atol=2e-5, rtol=1e-4)


def test_mean_variance_normalization_of_equal_elements_is_finite() -> None:
    inputs = {"x": np.ones((2, 3), np.float32)}
    model = single_node("MeanVarianceNormalization", inputs, axes=[1])
    actual = gradients(model, inputs, {"y0": np.ones((2, 3), np.float32)}, ["x"])
    np.testing.assert_array_equal(actual["x"], 0.0)


@pytest.mark.parametrize("op_type", ["InstanceNormalization", "GroupNormalization"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_lower_precision(op_type: str, dtype: type[np.floating]) -> None:
    inputs = {"x": _random(2, 4, 3), "scale": _random(4), "B": _random(4)}
    inputs = {name: a.astype(dtype) for name, a in inputs.items()}
    exact = {name: a.astype(np.float64) for name, a in inputs.items()}
    groups = 2 if op_type == "GroupNormalization" else 4

    def normalize(at: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = at["x"].reshape(2, groups, -1)
        rows = (rows - rows.mean(-1, keepdims=True)) / np.sqrt(rows.var(-1, keepdims=True) + 1e-2)
        return {"y0": rows.reshape(2, 4, 3) * at["scale"][:, None] + at["B"][:, None]}

    if op_type == "GroupNormalization":
        model = _group_normalization(inputs, 21, dtype)
    else:
        model = single_node(op_type, inputs, epsilon=1e-2)
    dy = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(dtype)
    actual = gradients(model, inputs, {"y0": dy}, list(inputs))
    for name in inputs:
        assert actual[name].dtype == dtype
        expected = numerical_gradient(normalize, exact, name, {"y0": dy.astype(np.float64)})
        np.testing.assert_allclose(
            actual[name], expected, rtol=0, atol=30 * np.finfo(dtype).eps, err_msg=name
        )
