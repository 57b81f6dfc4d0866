"""Random graphs of smooth operators against finite differences, whatever is known of their shapes."""

from __future__ import annotations

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx

from tests.oracle import SHAPE_KNOWLEDGE, check, graph_model

ELEMENTWISE_PAIRS = ("Add", "Sub", "Mul", "Max")
ELEMENTWISE = ("Tanh", "Sigmoid", "Neg", "Identity")
REDUCTIONS = ("ReduceSum", "ReduceMean")
OPERATORS = (*ELEMENTWISE_PAIRS, *ELEMENTWISE, *REDUCTIONS, "MatMul", "Transpose", "Softmax")
SHAPES = [(2, 2), (1, 2), (2, 1), (1, 1), (2,), (1,), ()]


@st.composite
def graphs(draw: st.DrawFn) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A random graph over small tensors that broadcast with one another, and a point to check it at."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inputs = {
        f"x{i}": np.asarray(generator.uniform(0.5, 1.5, draw(st.sampled_from(SHAPES))))
        for i in range(draw(st.integers(1, 3)))
    }
    shapes = {name: array.shape for name, array in inputs.items()}
    nodes: list[onnx.NodeProto] = []
    for index in range(draw(st.integers(1, 7))):
        node, shape = draw(_node(f"h{index}", shapes))
        nodes.append(node)
        shapes[node.output[0]] = shape
    ends = [nodes[-1].output[0]]
    if draw(st.booleans()):
        ends.append(draw(st.sampled_from([node.output[0] for node in nodes])))
    return graph_model(nodes, inputs, list(dict.fromkeys(ends))), inputs


@st.composite
def _node(
    draw: st.DrawFn, output: str, shapes: dict[str, tuple[int, ...]]
) -> tuple[onnx.NodeProto, tuple[int, ...]]:
    value = draw(st.sampled_from(sorted(shapes)))
    matrices = [name for name, shape in shapes.items() if shape == (2, 2)]
    op_type = draw(st.sampled_from(OPERATORS))
    if op_type == "MatMul" and matrices:
        operands = [draw(st.sampled_from(matrices)) for _ in "ab"]
        return onnx.helper.make_node("MatMul", operands, [output]), (2, 2)
    if op_type in ELEMENTWISE_PAIRS:
        other = draw(st.sampled_from(sorted(shapes)))
        shape = np.broadcast_shapes(shapes[value], shapes[other])
        return onnx.helper.make_node(op_type, [value, other], [output]), shape
    if op_type == "Transpose":
        return onnx.helper.make_node("Transpose", [value], [output]), shapes[value][::-1]
    if op_type == "Softmax" and shapes[value]:
        return onnx.helper.make_node("Softmax", [value], [output]), shapes[value]
    if op_type in REDUCTIONS:
        keepdims = draw(st.integers(0, 1))
        shape = (1,) * len(shapes[value]) if keepdims else ()
        return onnx.helper.make_node(op_type, [value], [output], keepdims=keepdims), shape
    elementwise = op_type if op_type in ELEMENTWISE else "Tanh"
    return onnx.helper.make_node(elementwise, [value], [output]), shapes[value]


@hypothesis.given(case=graphs(), knowledge=st.sampled_from(SHAPE_KNOWLEDGE), second=st.booleans())
@hypothesis.settings(max_examples=40, deadline=None)
def test_against_finite_differences(
    case: tuple[onnx.ModelProto, dict[str, np.ndarray]], knowledge: str, second: bool
) -> None:
    model, inputs = case
    hypothesis.assume(not has_ties(model))
    check(model, inputs, shapes=[knowledge], second_order=second, rtol=1e-5, atol=1e-6, step=1e-5)


def has_ties(model: onnx.ModelProto) -> bool:
    """Whether a maximum is taken of equal operands, where differences on both sides disagree."""
    return any(node.op_type == "Max" and len(set(node.input)) < len(node.input) for node in model.graph.node)
