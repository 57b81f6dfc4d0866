"""ONNX Runtime's operators on quantised numbers have the gradients of what they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.rules.test_quantization import straight_through

GENERATOR = np.random.default_rng(11)
X = GENERATOR.uniform(-60, 330, (2, 3, 4, 6)).astype(np.float32)
W = GENERATOR.uniform(-60, 330, (3, 1, 6)).astype(np.float32)

CONSTANTS = (
    "float s = {1.5}, uint8 m = {20}, float t = {0.75}, uint8 n = {9}, float e = {2.5}, uint8 o = {70}, "
    "float small = {0.01}, float large = {400}, bool[6] chosen = {1, 0, 0, 1, 1, 0}, uint8 none = {0}, "
    "int64[2] matrix = {6, 24}, int64[2] square = {6, 6}, int32[6] bias = {1, 20, 3, 4, 5, 6}"
)

# Operator, from the quantised p and q to r, whose scale and zero point are the last two; the same on floats.
CASES = [
    ("QLinearAdd(p, s, m, q, t, n, e, o)", "Add(x, w)"),
    ("QLinearMul(p, s, m, q, t, n, large, o)", "Mul(x, w)"),
    ("QLinearWhere(chosen, p, s, m, q, t, n, e, o)", "Where(chosen, x, w)"),
    ("QLinearSigmoid(p, s, m, small, none)", "Sigmoid(x)"),
    ("QLinearLeakyRelu<alpha=0.25>(p, s, m, e, o)", "LeakyRelu<alpha=0.25>(x)"),
    ("QLinearSoftmax<axis=-1, opset=13>(p, s, m, small, none)", "Softmax<axis=-1>(x)"),
    ("QLinearGlobalAveragePool(p, s, m, e, o)", "GlobalAveragePool(x)"),
    (
        "QLinearAveragePool<kernel_shape=[2,3], pads=[1,0,0,0], strides=[1,2]>(p, s, m, e, o)",
        "AveragePool<kernel_shape=[2,3], pads=[1,0,0,0], strides=[1,2]>(x)",
    ),
    ("QLinearConcat<axis=1>(e, o, p, s, m, p, s, m)", "Concat<axis=1>(x, x)"),
]


def model_of(body: str, y: tuple[str, str] | None) -> onnx.ModelProto:
    back = "" if y is None else f"y = DequantizeLinear(r, {y[0]}, {y[1]})"
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> '
        f"g (float[2,3,4,6] a, float[3,1,6] b) => (float y) <{CONSTANTS}> {{ "
        f"p = QuantizeLinear(a, s, m) q = QuantizeLinear(b, t, n) {body} {back} }}"
    )
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def assert_same_gradients(quantized: onnx.ModelProto, floats: onnx.ModelProto, wrt: list[str]) -> None:
    inputs = {"a": X, "b": W}
    shape = next(
        tuple(d.dim_value for d in v.type.tensor_type.shape.dim)
        for v in onnx.shape_inference.infer_shapes(floats).graph.output
    )
    dy = GENERATOR.normal(size=shape).astype(np.float32)
    actual, expected = (straight_through(model, inputs, dy, wrt) for model in (quantized, floats))
    for name in wrt:
        assert np.any(expected[name])
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("node", "on_floats"), CASES, ids=[node.split("(")[0] for node, _ in CASES])
def test_stands_for(node: str, on_floats: str) -> None:
    operands = node[node.index("(") + 1 : -1].split(", ")
    y = (operands[0], operands[1]) if "Concat" in node else (operands[-2], operands[-1])
    quantized = model_of(f"r = com.microsoft.{node}", y)
    floats = model_of(
        "x = DequantizeLinear(p, s, m) w = DequantizeLinear(q, t, n) "
        f"f = {on_floats} r = QuantizeLinear(f, {y[0]}, {y[1]})",
        y,
    )
    assert_same_gradients(quantized, floats, ["a", "b"] if "q, t, n" in node else ["a"])


@pytest.mark.parametrize("is_quantized", [True, False])
def test_gemm(is_quantized: bool) -> None:
    """A'·B' is [24, 6]·[6, 6]; without a scale of its own, the result is of floats."""
    quantized = "com.microsoft.QGemm<alpha=0.5, transA=1, transB=1>(tall, s, m, flat, t, n, bias"
    end = ", large, o)" if is_quantized else ")"
    y = ("large", "o") if is_quantized else None
    shapes = "tall = Reshape(p, matrix) thrice = Concat<axis=0>(q, q) flat = Reshape(thrice, square) "
    product = (
        "x = DequantizeLinear(tall, s, m) w = DequantizeLinear(flat, t, n) f = Cast<to=1>(bias) "
        "u = Mul(s, t) c = Mul(f, u) h = Gemm<alpha=0.5, beta=0.5, transA=1, transB=1>(x, w, c) "
    )
    models = [
        model_of(shapes + (f"r = {quantized}{end}" if is_quantized else f"y = {quantized}{end}"), y),
        model_of(
            shapes + product + ("r = QuantizeLinear(h, large, o)" if is_quantized else "y = Identity(h)"), y
        ),
    ]
    assert_same_gradients(*models, ["a", "b"])


def test_gemm_with_a_scale_for_each_column() -> None:
    a = GENERATOR.uniform(-60, 330, (4, 3)).astype(np.float32)
    declared = (
        "float[2] t = {1, 0.5}, int8[2] n = {0, 0}, float s = {1.5}, uint8 m = {20}, float e = {300}, "
        "uint8 o = {70}, int8[2,3] w = {1, 2, -3, 100, -50, 6}"
    )
    head = '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[4,3] a) => (float[4,2] y) '
    bodies = (
        "r = com.microsoft.QGemm<transB=1>(p, s, m, w, t, n, , e, o)",
        "x = DequantizeLinear(p, s, m) v = DequantizeLinear<axis=0>(w, t, n) h = Gemm<transB=1>(x, v) "
        "r = QuantizeLinear(h, e, o)",
    )
    dy = GENERATOR.normal(size=(4, 2)).astype(np.float32)
    quantized, floats = (
        straight_through(
            onnx.parser.parse_model(
                f"{head}<{declared}> {{ p = QuantizeLinear(a, s, m) {body} y = DequantizeLinear(r, e, o) }}"
            ),
            {"a": a},
            dy,
            ["a"],
        )["a"]
        for body in bodies
    )
    assert np.any(floats)
    np.testing.assert_allclose(quantized, floats, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bias", ["", ", bias"])
@pytest.mark.parametrize(
    ("node", "on_floats"),
    [
        ("MatMulIntegerToFloat(p, w, s, t, m, n", "x = DequantizeLinear(p, s, m)"),
        ("DynamicQuantizeMatMul(a, w, t, n", "x = Identity(a)"),
    ],
)
def test_products_of_floats(node: str, on_floats: str, bias: str) -> None:
    """What the second quantizes on the way is not clipped."""
    a = GENERATOR.uniform(-60, 330, (4, 3)).astype(np.float32)
    head = (
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> g (float[4,3] a) => (float[4,2] y) '
        "<float[2] t = {1, 0.5}, uint8[2] n = {7, 9}, float s = {1.5}, uint8 m = {20}, "
        "float[2] bias = {3, 4}, uint8[3,2] w = {1, 2, 3, 100, 50, 6}> { p = QuantizeLinear(a, s, m) "
    )
    bodies = (
        f"y = com.microsoft.{node}{bias}) }}",
        f"{on_floats} v = DequantizeLinear<axis=1>(w, t, n) y = MatMul(x, v) }}",
    )
    dy = GENERATOR.normal(size=(4, 2)).astype(np.float32)
    fused, floats = (
        straight_through(onnx.parser.parse_model(head + body), {"a": a}, dy, ["a"])["a"] for body in bodies
    )
    assert np.any(floats)
    np.testing.assert_allclose(fused, floats, rtol=1e-5, atol=1e-6)


def test_own_quantization_to_sixteen_bits() -> None:
    """ONNX Runtime's own pair takes 16 bits at every opset."""
    text = (
        '<ir_version: 8, opset_import: ["" : 18, "com.microsoft" : 1]> '
        "g (float[6] x, float s) => (float[6] y) <int16 z = {-5}> { "
        "q = com.microsoft.QuantizeLinear(x, s, z) y = com.microsoft.DequantizeLinear(q, s, z) }"
    )
    x = np.array([-4e4, -32763, -3.3, 0, 32771.4, 32772.6], np.float32)
    inputs, dy = {"x": x, "s": np.array(1, np.float32)}, np.arange(1, 7, dtype=np.float32)
    actual = straight_through(onnx.parser.parse_model(text), inputs, dy, ["x"])["x"]
    np.testing.assert_array_equal(actual, dy * [0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("QLinearGlobalAveragePool<channels_last=1>(p, s, m, e, o)", "channels come last"),
        ("QLinearSoftmax<axis=1, opset=11>(p, s, m, e, o)", "opsets below 13"),
    ],
)
def test_refused(node: str, reason: str) -> None:
    model = model_of(f"r = com.microsoft.{node}", ("e", "o"))
    with pytest.raises(onnx_grad.UnsupportedOpError, match=reason):
        onnx_grad.vjp(model, "a", quantization="straight-through")
