"""A model in float64 is the same function."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.precision import ConvertedModel, PrecisionError, to_precision
from onnx_grad.prepare.infer import infer
from tests.graphs import parse, run


def converted(model: onnx.ModelProto, dtype: ir.DataType = ir.DataType.DOUBLE) -> ConvertedModel:
    return to_precision(ir.from_proto(infer(model)), dtype)


def proto(conversion: ConvertedModel) -> onnx.ModelProto:
    """The converted model, found valid by onnx's checker."""
    result = ir.to_proto(conversion.model)
    onnx.checker.check_model(result, full_check=True)
    return result


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[N] x) => (float[N] y) <float[1] W = {3}> { y = Mul(x, W) }",
        "g (float[N] x) => (float[N] y) { c = Constant<value_float=0.5>() y = Mul(x, c) }",
        "g (float[2] x) => (float[2] y) { c = Constant<value_floats=[0.5, 2.0]>() y = Mul(x, c) }",
        "g (float[N] x) => (float[N] y) { c = Constant<value = float {2}>() y = Add(x, c) }",
        "g (float[N] x) => (float[N] y) { s = Shape(x) z = ConstantOfShape(s) y = Add(x, z) }",
        "g (float[N] x) => (float[N] y) { s = Shape(x) f = Cast<to=1>(s) y = Add(x, f) }",
        "g (float[N] x) => (float[N] y) { h = Cast<to=10>(x) k = Cast<to=1>(h) y = Add(x, k) }",
        "g (float[2,2] x) => (float[2,2] y) { e = EyeLike<dtype=1>(x) y = Add(x, e) }",
        "g (float[N] x, bool b) => (float[N] y) { y = If(b) <"
        "then_branch = t () => (float[N] u) { u = Neg(x) }, "
        "else_branch = e () => (float[N] v) { c = Constant<value_float=2.0>() v = Mul(x, c) }> }",
        "g (float[2] x) => (float[2] y) { e = SequenceEmpty() s = SequenceInsert(e, x) "
        "i = Constant<value_int=0>() y = SequenceAt(s, i) }",
    ],
)
def test_is_the_same_function(graph: str) -> None:
    model = parse(graph)
    inputs: dict[str, object] = {"x": np.array([1.5, -2.0])}
    if "x" in graph and "float[2,2] x" in graph:
        inputs["x"] = np.ones((2, 2))
    if "bool b" in graph:
        inputs["b"] = np.array(True)
    wide = run(proto(converted(model)), inputs)["y"]
    narrow = run(model, {**inputs, "x": np.asarray(inputs["x"], np.float32)})["y"]
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, narrow, rtol=1e-6)


def test_has_sixteen_digits() -> None:
    model = parse("g (float x) => (float y) { c = Constant<value_float=0.0>() s = Add(x, c) y = Sin(s) }")
    assert run(proto(converted(model)), {"x": np.array(0.3)})["y"] == np.sin(0.3)


def test_float16_becomes_float32_or_float64() -> None:
    model = parse("g (float16[2] x) => (float16[2] y) { y = Exp(x) }")
    for dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        x = np.array([0.1, 0.2], dtype.numpy())
        np.testing.assert_array_equal(run(proto(converted(model, dtype)), {"x": x})["y"], np.exp(x))


def test_every_value_keeps_its_name() -> None:
    model = parse(
        "g (float[2,3] x, float[3] w, float[3] b) => (float[2,3] y, float[2,1] m) "
        "{ y, m, s = LayerNormalization(x, w, b) }"
    )
    result = converted(model)
    assert [value.name for value in result.model.graph.outputs] == ["y", "m"]
    x, w, b = np.arange(6.0).reshape(2, 3), np.ones(3), np.zeros(3)
    np.testing.assert_allclose(run(proto(result), {"x": x, "w": w, "b": b})["m"], [[1.0], [4.0]])


def test_what_knows_no_float64_is_held_between_casts() -> None:
    model = parse("g (float[1,1,2,2] x, float[4] scales) => (float[1,1,K,L] y) { y = Resize(x, , scales) }")
    model.graph.node[0].name = "resize"
    result = converted(model)
    assert result.held == ("Resize 'resize': scales in float",)
    x, scales = np.arange(4.0).reshape(1, 1, 2, 2), np.array([1.0, 1.0, 2.0, 2.0])
    (y,) = ReferenceEvaluator(proto(result)).run(None, {"x": x, "scales": scales})
    assert y.shape == (1, 1, 4, 4)
    assert y.dtype == np.float64


def test_a_quantized_scale_is_held() -> None:
    model = parse("g (uint8[2] q, float s) => (float[2] y) { y = DequantizeLinear(q, s) }", opset=21)
    inputs = {"q": np.array([1, 2], np.uint8), "s": np.array(0.5)}
    np.testing.assert_array_equal(run(proto(converted(model)), inputs)["y"], [0.5, 1.0])


def test_the_original_is_left_alone() -> None:
    model = ir.from_proto(infer(parse("g (float[N] x) => (float[N] y) <float[1] W = {3}> { y = Mul(x, W) }")))
    before = ir.to_proto(model).SerializeToString()
    to_precision(model, ir.DataType.DOUBLE)
    assert ir.to_proto(model).SerializeToString() == before


def test_an_operator_without_specification_is_named() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = custom.Mystery(x) }")
    with pytest.raises(PrecisionError, match=r"custom\.Mystery"):
        converted(model)
