"""Products of quantised numbers have the gradients of the products of floats that they stand for."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import onnx_grad
from tests.graphs import parse, run
from tests.rules.test_quantization import straight_through

GENERATOR = np.random.default_rng(7)
A = GENERATOR.uniform(-40, 300, (3, 4)).astype(np.float32)
B = GENERATOR.uniform(-200, 200, (4, 5)).astype(np.float32)
IMAGE = GENERATOR.uniform(-40, 300, (2, 2, 5, 6)).astype(np.float32)
KERNELS = GENERATOR.uniform(-200, 200, (4, 1, 3, 2)).astype(np.float32)


def assert_stands_for(
    body: str, float_body: str, inputs: dict[str, np.ndarray], constants: str, opset: int = 18
) -> None:
    """The gradients of `y` in both graphs are the same, wherever the second has integers at all."""
    declared = ", ".join(f"float{list(array.shape)} {name}" for name, array in inputs.items())
    graphs = [f"g ({declared}) => (float[M,N] y) <{constants}> {{ {text} }}" for text in (body, float_body)]
    models = [parse(graph, opset=opset) for graph in graphs]
    shape = (len(A), B.shape[1])
    if "image" in inputs:
        shape = (2, 4, 3, 6)
        for model in models:
            del model.graph.output[0].type.tensor_type.shape.dim[:]
            for length in shape:
                model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = length
    dy = GENERATOR.normal(size=shape).astype(np.float32)
    actual, expected = (straight_through(model, inputs, dy, list(inputs)) for model in models)
    for name in inputs:
        assert np.any(expected[name])
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)


def backward_only(model: onnx.ModelProto, x: str) -> onnx.ModelProto:
    """The gradient of `x` by `y`, without the nodes that compute `r` and `y`, which lack a kernel."""
    gradient = onnx_grad.vjp(model, x, "y", quantization="straight-through")
    for values, kept in (
        (gradient.graph.output, lambda value: value.name == f"{x}_grad"),
        (gradient.graph.node, lambda node: not {"r", "f", "y"} & set(node.output)),
    ):
        chosen = [value for value in values if kept(value)]
        del values[:]
        values.extend(chosen)
    return gradient


QUANTIZED = "p = QuantizeLinear(a, s, m) q = QuantizeLinear(b, t, n) "
SCALES = "float s = {1.5}, float t = {0.75}, uint8 m = {10}, "


class TestMatMulInteger:
    @pytest.mark.parametrize(
        ("zero", "operands", "shifted"),
        [
            ("int8 n = {0}", "p, q", ("k", "l")),
            ("int8 n = {-3}", "p, q, m", ("Sub(k, i)", "l")),
            ("int8 n = {-3}", "p, q, m, n", ("Sub(k, i)", "Sub(l, j)")),
            ("int8 n = {-3}, int8[5] c = {1, -2, 3, 0, 9}", "p, q, m, c", ("Sub(k, i)", "Sub(l, j)")),
            ("int8 n = {-3}, int8[1] c = {4}", "p, q, , c", ("k", "Sub(l, j)")),
        ],
    )
    def test_zero_points(self, zero: str, operands: str, shifted: tuple[str, str]) -> None:
        column = "c" if ", c" in operands else "n"
        assert_stands_for(
            QUANTIZED + f"r = MatMulInteger({operands}) y = Cast<to=1>(r)",
            QUANTIZED + f"k = Cast<to=1>(p) l = Cast<to=1>(q) i = Cast<to=1>(m) j = Cast<to=1>({column}) "
            f"u = {_assigned(shifted[0])} v = {_assigned(shifted[1])} y = MatMul(u, v)",
            {"a": A, "b": B},
            SCALES + zero,
        )

    def test_accumulators_are_moved_and_added(self) -> None:
        assert_stands_for(
            QUANTIZED + "r = MatMulInteger(p, q) h = Add(r, c) w = Reshape(h, d) z = Cast<to=1>(w) "
            "e = Mul(z, s) y = Reshape(e, f)",
            QUANTIZED + "k = Cast<to=1>(p) l = Cast<to=1>(q) r = MatMul(k, l) y = Mul(r, s)",
            {"a": A, "b": B},
            SCALES + "int8 n = {0}, int32[5] c = {1, 2, 3, 4, 5}, int64[1] d = {-1}, int64[2] f = {3, 5}",
        )

    def test_a_zero_point_for_each_row(self) -> None:
        """ONNX Runtime has no kernel for it, so only the gradient graph is run."""
        model = parse(
            "g (float[3,4] a, float[4,5] b) => (int32[3,5] r, float[3,5] y) <float s = {1.0}, uint8 m = {0}, "
            "uint8[3] c = {7, 8, 9}> { p = QuantizeLinear(a, s, m) q = QuantizeLinear(b, s, m) "
            "r = MatMulInteger(p, q, c) y = Cast<to=1>(r) }"
        )
        b, a = np.abs(B), np.clip(np.round(A), 0, 255)
        dy = GENERATOR.normal(size=(3, 5)).astype(np.float32)
        db = run(backward_only(model, "b"), {"a": A, "b": b, "y_grad": dy})["b_grad"]
        np.testing.assert_allclose(db, (a - [[7], [8], [9]]).T @ dy, rtol=1e-5)


class TestQLinearMatMul:
    @pytest.mark.parametrize(
        "column",
        ["float t = {0.75}, int8 n = {3}", "float[5] t = {1, 2, 3, 2, 1}, int8[5] n = {1, 2, 3, 4, 5}"],
    )
    @pytest.mark.parametrize("zeros", ["uint8 m = {10}, uint8 o = {100}", "int8 m = {-90}, int8 o = {-10}"])
    def test_stands_for(self, column: str, zeros: str) -> None:
        quantized = "p = QuantizeLinear(a, s, m) q = QuantizeLinear(b, t, n) "
        assert_stands_for(
            quantized + "r = QLinearMatMul(p, s, m, q, t, n, w, o) y = DequantizeLinear(r, w, o)",
            quantized + "k = DequantizeLinear(p, s, m) l = DequantizeLinear(q, t, n) h = MatMul(k, l) "
            "r = QuantizeLinear(h, w, o) y = DequantizeLinear(r, w, o)",
            {"a": A, "b": B},
            f"float s = {{1.5}}, float w = {{300}}, {column}, {zeros}",
        )

    def test_scales_get_gradients(self) -> None:
        inputs = {
            "a": A,
            "b": B,
            "s": np.array(1.5, np.float32),
            "t": np.array([1, 2, 3, 2, 1], np.float32),
            "w": np.array(300, np.float32),
        }
        quantized = "p = QuantizeLinear(a, s, m) q = QuantizeLinear(b, t, n) "
        assert_stands_for(
            quantized + "r = QLinearMatMul(p, s, m, q, t, n, w, o) y = DequantizeLinear(r, w, o)",
            quantized + "k = DequantizeLinear(p, s, m) l = DequantizeLinear(q, t, n) h = MatMul(k, l) "
            "r = QuantizeLinear(h, w, o) y = DequantizeLinear(r, w, o)",
            inputs,
            "uint8 m = {10}, int8[5] n = {1, 2, 3, 4, 5}, uint8 o = {100}",
        )

    def test_a_result_with_scales_of_several_axes_is_refused(self) -> None:
        model = parse(
            "g (float[2,2] a) => (float[2,2] y) <float s = {1.0}, uint8 m = {0}, float[2,1] w = {1, 2}, "
            "uint8[2,1] o = {0, 0}> { p = QuantizeLinear(a, s, m) r = QLinearMatMul(p, s, m, p, s, m, w, o) "
            "y = DequantizeLinear(r, s, m) }"
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match="scale of its result has several axes"):
            onnx_grad.vjp(model, quantization="straight-through")


GEOMETRY = "<group=2, pads=[0,1,0,0], strides=[1,1], kernel_shape=[3,2]>"


class TestConvInteger:
    def test_stands_for(self) -> None:
        quantized = "p = QuantizeLinear(image, s, m) q = QuantizeLinear(w, s, n) "
        assert_stands_for(
            quantized + f"r = ConvInteger{GEOMETRY}(p, q, m, n) f = Cast<to=1>(r) y = Mul(f, s)",
            quantized + "k = Cast<to=1>(p) l = Cast<to=1>(q) i = Cast<to=1>(m) o = Cast<to=1>(n) "
            f"u = Sub(k, i) v = Sub(l, o) r = Conv{GEOMETRY}(u, v) y = Mul(r, s)",
            {"image": IMAGE, "w": KERNELS},
            "float s = {1.5}, uint8 m = {10}, int8 n = {2}",
        )

    def test_a_zero_point_for_each_channel(self) -> None:
        """ONNX Runtime has no kernel for it, so only the gradient graph is run."""
        declared = "g (float[2,2,5,6] image) => (float[2,4,3,6] y) <float s = {1.5}, uint8 m = {10}, "
        kernels = "int8[4,1,3,2] q = {" + ", ".join(map(str, range(-12, 12))) + "}, "
        integer = parse(
            declared + kernels + "int8[4] c = {1, -2, 3, 4}> { p = QuantizeLinear(image, s, m) "
            f"r = ConvInteger{GEOMETRY}(p, q, m, c) y = Cast<to=1>(r) }}"
        )
        floats = parse(
            declared + kernels + "int8[4,1,1,1] c = {1, -2, 3, 4}> { p = QuantizeLinear(image, s, m) "
            "k = Cast<to=1>(p) l = Cast<to=1>(q) i = Cast<to=1>(m) o = Cast<to=1>(c) "
            f"u = Sub(k, i) v = Sub(l, o) y = Conv{GEOMETRY}(u, v) }}"
        )
        inputs = {"image": IMAGE, "y_grad": GENERATOR.normal(size=(2, 4, 3, 6)).astype(np.float32)}
        actual, expected = (run(backward_only(model, "image"), inputs) for model in (integer, floats))
        np.testing.assert_allclose(actual["image_grad"], expected["image_grad"], rtol=1e-5)


class TestQLinearConv:
    @pytest.mark.parametrize("bias", [False, True])
    @pytest.mark.parametrize(("scale", "zero"), [("s", "n"), ("t", "c")])
    def test_stands_for(self, scale: str, zero: str, bias: bool) -> None:
        quantized = f"p = QuantizeLinear(image, s, m) q = QuantizeLinear<axis=0>(w, {scale}, {zero}) "
        given = ", b" if bias else ""
        assert_stands_for(
            quantized + f"r = QLinearConv{GEOMETRY}(p, s, m, q, {scale}, {zero}, e, m{given}) "
            "y = DequantizeLinear(r, e, m)",
            quantized + f"u = DequantizeLinear(p, s, m) v = DequantizeLinear<axis=0>(q, {scale}, {zero}) "
            f"i = Cast<to=1>(b) f = Mul(s, {scale}) b1 = Mul(i, f) "
            f"h = Conv{GEOMETRY}(u, v{', b1' if bias else ''}) "
            "r = QuantizeLinear(h, e, m) y = DequantizeLinear(r, e, m)",
            {"image": IMAGE, "w": KERNELS},
            "float s = {1.5}, uint8 m = {10}, int8 n = {0}, float e = {900}, "
            "int32[4] b = {300, 20000, -90000, 7}, int8[4] c = {0, 0, 0, 0}, float[4] t = {1, 2, 3, 2}",
        )


def _assigned(expression: str) -> str:
    return expression if "(" in expression else f"Identity({expression})"
