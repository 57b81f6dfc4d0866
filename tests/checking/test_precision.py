"""A model in float64 is the same function."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_grad.checking.float64_operators import REPLACEMENTS
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


def evaluated(conversion: ConvertedModel, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the reference evaluator with our own operators, which do not mind what the specification forbids."""
    evaluator = ReferenceEvaluator(ir.to_proto(conversion.model), new_ops=list(REPLACEMENTS))
    names = [output.name or "" for output in conversion.model.graph.outputs]
    return dict(zip(names, evaluator.run(None, inputs), strict=True))


NORMALIZATION = (
    "g (float[2,3] x, float[3] w, float[3] b) => (float[2,3] y{}) {{ y, m, s = LayerNormalization(x, w, b) }}"
)


def test_statistics_are_as_exact_as_the_rest() -> None:
    result = converted(parse(NORMALIZATION.format(", float[2,1] m")))
    assert [value.name for value in result.model.graph.outputs] == ["y", "m"]
    assert result.held == ()
    x = np.array([[0.1, 0.2, 0.4], [1.0, 2.0, 4.0]])
    found = evaluated(result, {"x": x, "w": np.ones(3), "b": np.zeros(3)})
    np.testing.assert_allclose(found["m"], x.mean(axis=1, keepdims=True), rtol=1e-15)


def test_statistics_that_nothing_reads_keep_onnx_runtime_going() -> None:
    result = converted(parse(NORMALIZATION.format("")))
    assert result.held == ()
    x = np.array([[0.1, 0.2, 0.4], [1.0, 2.0, 4.0]])
    y = run(ir.to_proto(result.model), {"x": x, "w": np.ones(3), "b": np.zeros(3)})["y"]
    expected = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-10)  # epsilon itself is of float32


def test_group_normalization_does_not_round_inside() -> None:
    """Its function body computes in the type that `stash_type` names."""
    graph = (
        "g (float[1,2,3] x, float[2] w, float[2] b) => (float[1,2,3] y) "
        "{ y = GroupNormalization<num_groups=1>(x, w, b) }"
    )
    x = np.array([[[0.1, 0.2, 0.4], [1.0, 2.0, 4.0]]])
    inputs = {"x": x, "w": np.ones(2), "b": np.zeros(2)}
    y = run(proto(converted(parse(graph, opset=21))), inputs)["y"]
    np.testing.assert_allclose(y, (x - x.mean()) / np.sqrt(x.var() + 1e-5), rtol=1e-10)


SCALER = "ai.onnx.ml.Scaler<offset=[1.0], scale=[2.0]>"


def with_scaler(graph: str) -> onnx.ModelProto:
    """`graph` with the traditional operators, of which `Scaler` gives float32 whatever it takes."""
    model = parse(graph)
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.ml", 3))
    return model


def test_what_knows_no_float64_is_held_between_casts() -> None:
    model = with_scaler(
        "g (float[1,2] x) => (float[1,2] y) { y = ai.onnx.ml.Scaler<offset=[1.0], scale=[2.0]>(x) }"
    )
    model.graph.node[0].name = "scaler"
    result = converted(model)
    assert result.held == ("Scaler 'scaler': Y in float",)
    y = run(proto(result), {"x": np.array([[1.5, -1.0]])})["y"]
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, [[1.0, -4.0]])


def test_casts_keep_names_apart() -> None:
    """Nodes of one name, and a model that was converted before: ONNX Runtime wants every name only once."""
    model = with_scaler(f"g (float[1,2] x) => (float[1,2] y) {{ h = {SCALER}(x) y = {SCALER}(h) }}")
    for node in model.graph.node:
        node.name = "scaler"
    twice = to_precision(to_precision(converted(model).model, ir.DataType.FLOAT).model, ir.DataType.DOUBLE)
    names = [node.name for node in twice.model.graph.all_nodes() if node.op_type == "Cast"]
    assert len(names) == len(set(names)) > 0
    (y,) = ReferenceEvaluator(ir.to_proto(twice.model)).run(None, {"x": np.array([[1.5, -1.0]])})
    np.testing.assert_array_equal(y, [[0.0, -10.0]])


def test_scales_without_a_derivative_may_be_held_and_round_nothing() -> None:
    model = parse("g (float[1,1,2,2] x, float[4] scales) => (float[1,1,K,L] y) { y = Resize(x, , scales) }")
    result = converted(model)
    assert result.held == ()
    x, scales = np.arange(4.0).reshape(1, 1, 2, 2), np.array([1.0, 1.0, 2.0, 2.0])
    (y,) = ReferenceEvaluator(proto(result)).run(None, {"x": x, "scales": scales})
    assert y.shape == (1, 1, 4, 4)
    assert y.dtype == np.float64


def test_rounding_to_integers_loses_nothing_that_has_a_derivative() -> None:
    model = parse("g (float[2] x, float s) => (uint8[2] q) { q = QuantizeLinear(x, s) }")
    result = converted(model)
    assert result.held == ()
    q = run(proto(result), {"x": np.array([0.5, 1.0]), "s": np.array(0.5)})["q"]
    np.testing.assert_array_equal(q, [1, 2])


@pytest.mark.parametrize(
    "graph",
    [
        "g (float[1,2,3] x, float[2,1,2] w) => (float[1,2,3] y, float[1,2,1] s) "
        '{ y, s = CausalConvWithState<activation="silu">(x, w) }',
        "g (float[1,2,4] x, float[1,2,4] k) => (float[1,2,4] y, float[1,2,2,2] s) "
        '{ y, s = LinearAttention<q_num_heads=2, kv_num_heads=2, update_rule="linear">(x, k, k) }',
        "g (float[1,1,2,4] x, float[1,2,2] c) => (float[1,1,2,4] y) { y = RotaryEmbedding(x, c, c) }",
        "g (uint8[2] q, float x) => (float[2] y) { y = DequantizeLinear(q, x) }",
        "g (float[2] x) => (float[2] y) { y = Celu(x) }",
    ],
)
def test_what_the_specification_keeps_in_float32_is_freed(graph: str) -> None:
    """The function is the same, and has more digits."""
    model = parse(graph, opset=27 if "q = " not in graph and "Celu" not in graph else 21)
    generator = np.random.default_rng(0)
    inputs = {
        value.name: generator.uniform(0.5, 2.0, [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in model.graph.input
    }
    if "q" in inputs:
        inputs["q"] = np.array([1, 2], np.uint8)
    result = converted(model)
    assert result.held == ()
    wide = evaluated(result, inputs)["y"]
    narrow = {n: v.astype(np.float32) if v.dtype == np.float64 else v for n, v in inputs.items()}
    (expected, *_) = ReferenceEvaluator(model).run(None, narrow)
    assert wide.dtype == np.float64
    np.testing.assert_allclose(wide, expected, rtol=1e-5)
    assert np.any(wide != wide.astype(np.float32))


def test_the_original_is_left_alone() -> None:
    model = ir.from_proto(infer(parse("g (float[N] x) => (float[N] y) <float[1] W = {3}> { y = Mul(x, W) }")))
    before = ir.to_proto(model).SerializeToString()
    to_precision(model, ir.DataType.DOUBLE)
    assert ir.to_proto(model).SerializeToString() == before


def test_an_operator_without_specification_is_named() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = custom.Mystery(x) }")
    with pytest.raises(PrecisionError, match=r"custom\.Mystery"):
        converted(model)
