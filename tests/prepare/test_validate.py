"""Graphs that cannot be, and what is said of them."""

from __future__ import annotations

import onnx
import pytest

import onnx_grad
from tests.graphs import parse


def rewired(graph: str, node: int, index: int, name: str) -> onnx.ModelProto:
    model = parse(graph)
    model.graph.node[node].input[index] = name
    return model


def test_cycle_names_its_nodes_and_no_others() -> None:
    model = rewired(
        "g (float x) => (float y) "
        "{ [a] p = Mul(x, x) [b] q = Add(p, x) [c] r = Add(q, x) [d] y = Mul(r, x) }",
        node=1,
        index=1,
        name="r",
    )
    with pytest.raises(onnx_grad.ModelError, match=r"cyclic: nodes '[bc]', '[bc]' wait"):
        onnx_grad.vjp(model)


def test_an_input_that_nothing_makes() -> None:
    model = rewired("g (float x) => (float y) { [a] y = Mul(x, x) }", node=0, index=1, name="ghost")
    with pytest.raises(onnx_grad.ModelError, match=r"'a' \(Mul\) reads 'ghost'"):
        onnx_grad.vjp(model)


def test_a_name_that_is_made_twice() -> None:
    model = parse("g (float x) => (float y) { h = Mul(x, x) y = Mul(h, x) }")
    model.graph.node[1].output[0] = "h"
    with pytest.raises(onnx_grad.ModelError, match="h"):
        onnx_grad.vjp(model)


def test_an_operator_that_does_not_exist() -> None:
    model = parse("g (float x) => (float y) { y = Mul(x, x) }")
    model.graph.node[0].op_type = "Mull"
    with pytest.raises(onnx_grad.ModelError, match="Mull"):
        onnx_grad.vjp(model)


def test_an_opset_from_the_future() -> None:
    model = parse("g (float x) => (float y) { y = Mul(x, x) }")
    model.opset_import[0].version = 999
    with pytest.raises(onnx_grad.ModelError, match=r"opset 999.*upgrade"):
        onnx_grad.vjp(model)


def test_shapes_that_do_not_fit() -> None:
    model = parse("g (float[2] x, float[3] w) => (float[2] y) { y = MatMul(x, w) }")
    with pytest.raises(onnx_grad.ModelError, match="do not fit"):
        onnx_grad.vjp(model)


def test_wrong_annotations_are_not_believed() -> None:
    """Exporters leave value_info that contradicts the operators; it must not decide over a broadcast."""
    model = parse("g (float[2,3] x, float[3] w) => (float[2,3] y) { h = Add(x, w) y = Mul(h, w) }")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, [3]))
    onnx.checker.check_model(onnx_grad.vjp(model), full_check=True)


def test_a_graph_without_a_name() -> None:
    model = parse("g (float x) => (float y) { y = Mul(x, x) }")
    model.graph.name = ""
    onnx.checker.check_model(onnx_grad.vjp(model), full_check=True)
