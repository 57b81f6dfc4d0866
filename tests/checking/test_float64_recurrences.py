"""Operators with a state against the reference evaluator in float32, and their digits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.float64_operators import REPLACEMENTS

Shape = tuple[int, ...]
ROWS = {"query": (2, 5, 8), "key": (2, 5, 4), "value": (2, 5, 6)}
HEADS = {"q_num_heads": 4, "kv_num_heads": 2}
STATE = {"past_state": (2, 2, 2, 3)}


def assert_same(op_type: str, names: list[str], shapes: dict[str, Shape], **attributes: Any) -> None:
    """Both outputs, in float64 where ours are, with more digits than float32 has."""
    generator = np.random.default_rng(0)
    feeds = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    present = [name if name in shapes else "" for name in names]
    node = onnx.helper.make_node(op_type, present, ["y", "state"], **attributes)

    def model(element: int) -> onnx.ModelProto:
        tensor = onnx.helper.make_tensor_value_info
        inputs = [tensor(name, element, shape) for name, shape in shapes.items()]
        graph = onnx.helper.make_graph([node], "g", inputs, [tensor(n, element, None) for n in node.output])
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 27)])

    ours = ReferenceEvaluator(model(onnx.TensorProto.DOUBLE), new_ops=list(REPLACEMENTS)).run(None, feeds)
    theirs = ReferenceEvaluator(model(onnx.TensorProto.FLOAT)).run(
        None, {name: value.astype(np.float32) for name, value in feeds.items()}
    )
    for mine, expected in zip(ours, theirs, strict=True):
        assert mine.dtype == np.float64
        np.testing.assert_allclose(mine, expected, rtol=1e-4, atol=1e-5)
        assert mine.size == 0 or np.any(mine != mine.astype(np.float32))


@pytest.mark.parametrize("activation", ["none", "silu", "swish"])
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("more", [[], ["bias"], ["bias", "past_state"]], ids=str)
def test_causal_convolution(activation: str, size: int, more: list[str]) -> None:
    shapes = {"input": (2, 4, 5), "weight": (4, 1, size), "bias": (4,), "past_state": (2, 4, size - 1)}
    given = {name: shapes[name] for name in ["input", "weight", *more]}
    assert_same("CausalConvWithState", list(shapes), given, activation=activation)


@pytest.mark.parametrize("scale", [0.0, 0.7])
@pytest.mark.parametrize("state", [{}, STATE], ids=list)
@pytest.mark.parametrize(
    ("update_rule", "others"),
    [
        ("linear", {}),
        ("gated", {"decay": (2, 5, 2)}),
        ("gated", {"decay": (2, 5, 4)}),
        ("delta", {"beta": (2, 5, 2)}),
        ("gated_delta", {"decay": (2, 5, 4), "beta": (2, 5, 1)}),
    ],
    ids=str,
)
def test_linear_attention(
    scale: float, state: dict[str, Shape], update_rule: str, others: dict[str, Shape]
) -> None:
    names = ["query", "key", "value", "past_state", "decay", "beta"]
    shapes = {**ROWS, **state, **others}
    assert_same("LinearAttention", names, shapes, update_rule=update_rule, scale=scale, **HEADS)
