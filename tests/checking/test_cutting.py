"""Models cut open at tensors."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir

from onnx_grad.checking.cutting import CutModel, cut_model, independent_groups
from onnx_grad.prepare.infer import infer
from tests.graphs import input_names, parse, run

CHAIN = (
    "g (float[2] x) => (float[2] y, float[2] h) <float[2] W = {3, 3}> "
    "{ h = Mul(x, W) y = Add(h, x) z = Neg(y) }"
)


def cut(graph: str, at: list[str], outputs: list[str]) -> tuple[CutModel, onnx.ModelProto]:
    result = cut_model(ir.from_proto(infer(parse(graph))), at, outputs)
    proto = ir.to_proto(result.model)
    onnx.checker.check_model(proto, full_check=True)
    return result, proto


def test_an_intermediate_tensor_becomes_an_input() -> None:
    result, proto = cut(CHAIN, ["h"], ["y"])
    assert result.cut == ("h",)
    assert input_names(proto) == ["x", "h"]
    np.testing.assert_array_equal(run(proto, {"x": [1, 2], "h": [10, 20]})["y"], [11, 22])


def test_an_initializer_becomes_an_input() -> None:
    _, proto = cut(CHAIN, ["W"], ["y"])
    np.testing.assert_array_equal(run(proto, {"x": [1, 2], "W": [5, 5]})["y"], [6, 12])


def test_an_initializer_that_is_an_input_becomes_a_required_one() -> None:
    model = parse("g (float[2] x, float[2] w) => (float[2] y) { y = Mul(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    result = cut_model(ir.from_proto(model), ["w"], ["y"])
    assert [value.name for value in result.model.graph.inputs] == ["x", "w"]
    assert not result.model.graph.initializers


def test_an_output_that_is_cut_is_a_copy_of_its_input() -> None:
    result, proto = cut(CHAIN, ["h"], ["h", "y"])
    outputs = run(proto, {"x": [1, 2], "h": [10, 20]})
    np.testing.assert_array_equal(outputs[result.outputs["h"]], [10, 20])
    np.testing.assert_array_equal(outputs[result.outputs["y"]], [11, 22])


def test_inputs_initializers_and_intermediates_can_be_outputs() -> None:
    result, proto = cut(CHAIN, [], ["x", "W", "h", "z"])
    outputs = run(proto, {"x": [1, 2]})
    for name, expected in {"x": [1, 2], "W": [3, 3], "h": [3, 6], "z": [-4, -8]}.items():
        np.testing.assert_array_equal(outputs[result.outputs[name]], expected)


def test_subgraphs_read_the_cut_tensor() -> None:
    graph = (
        "g (float[2] x, bool b) => (float[2] y) { h = Neg(x) y = If(b) <"
        "then_branch = t () => (float[2] u) { u = Add(h, x) }, "
        "else_branch = e () => (float[2] v) { v = Mul(h, x) }> }"
    )
    _, proto = cut(graph, ["h"], ["y"])
    result = run(proto, {"x": [1, 2], "h": [5, 5], "b": np.array(False)})
    np.testing.assert_array_equal(result["y"], [5, 10])


def test_what_nothing_needs_is_removed() -> None:
    _, proto = cut(CHAIN, [], ["h"])
    assert [node.op_type for node in proto.graph.node] == ["Mul"]


def test_the_original_is_left_alone() -> None:
    model = ir.from_proto(parse(CHAIN))
    before = ir.to_proto(model).SerializeToString()
    cut_model(model, ["h", "W"], ["z"])
    assert ir.to_proto(model).SerializeToString() == before


def test_tensors_that_depend_on_each_other_need_a_cut_each() -> None:
    model = ir.from_proto(parse(CHAIN))
    assert independent_groups(model, ["x", "h", "W", "z"]) == [["x", "W"], ["h"], ["z"]]
    assert independent_groups(model, ["z", "h", "x"]) == [["z"], ["h"], ["x"]]


def test_dependence_goes_through_subgraphs() -> None:
    graph = (
        "g (float[2] x, bool b) => (float[2] z) { h = Neg(x) y = If(b) <"
        "then_branch = t () => (float[2] u) { u = Neg(h) }, "
        "else_branch = e () => (float[2] v) { v = Abs(x) }> z = Neg(y) }"
    )
    assert independent_groups(ir.from_proto(parse(graph)), ["h", "y"]) == [["h"], ["y"]]
