"""Small networks with random weights, and data for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

MODELS = Path(__file__).parents[2] / "models"


def classifier(hidden: int = 8, seed: int = 0, dtype: type = np.float32) -> onnx.ModelProto:
    """`x [batch, 4]` to `logits [batch, 3]` through one hidden layer."""
    rng = np.random.default_rng(seed)
    helper, array = onnx.helper, onnx.numpy_helper.from_array
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = [
        array((rng.normal(size=(4, hidden)) / 2).astype(dtype), "w1"),
        array(np.zeros(hidden, dtype), "b1"),
        array((rng.normal(size=(hidden, 3)) / 2).astype(dtype), "w2"),
        array(np.zeros(3, dtype), "b2"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["p1"], "product1"),
        helper.make_node("Add", ["p1", "b1"], ["s1"], "sum1"),
        helper.make_node("Tanh", ["s1"], ["h"], "hidden"),
        helper.make_node("MatMul", ["h", "w2"], ["p2"], "product2"),
        helper.make_node("Add", ["p2", "b2"], ["logits"], "sum2"),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", element, ["batch", 4])],
        [helper.make_tensor_value_info("logits", element, ["batch", 3])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def points(count: int = 96, seed: int = 0, dtype: type = np.float32) -> dict[str, np.ndarray]:
    """Points around three centres, and which."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    centres = np.random.default_rng(99).normal(size=(3, 4)) * 2
    return {"x": (centres[labels] + rng.normal(size=(count, 4)) / 2).astype(dtype), "labels": labels}


def identity(shape: list[int | str | None], dtype: int = onnx.TensorProto.FLOAT) -> onnx.ModelProto:
    """`y = x·w` with a single weight w = 1, so that losses can be compared by value and derivative."""
    helper = onnx.helper
    weight = np.ones(1, helper.tensor_dtype_to_np_dtype(dtype))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"], "scaled")],
        "identity",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", dtype, shape)],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
