"""Quantization: scales of every granularity, and gradients that pass straight through rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import onnx_grad
from onnx_grad import registry
from onnx_grad.registry import State
from tests.graphs import parse, run
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, graph_model, single_node, with_shapes

GENERATOR = np.random.default_rng(5)
LEVELS = GENERATOR.integers(-100, 100, (3, 4, 5)).astype(np.int8)

# Opset, shape of the scale, attributes.
GRANULARITIES: list[tuple[int, tuple[int, ...], dict[str, Any]]] = [
    (18, (), {}),
    (18, (4,), {}),
    (18, (3,), {"axis": 0}),
    (18, (5,), {"axis": -1}),
    (21, (4,), {"axis": 1}),
    (21, (3, 2, 5), {"axis": 1, "block_size": 2}),
    (21, (3, 4, 2), {"axis": 2, "block_size": 3}),
    (25, (3, 4, 5), {"axis": 0, "block_size": 1}),
]


class TestScaleOfDequantizeLinear:
    """The result is linear in the scale: its derivative by one element is the result for that alone."""

    @pytest.mark.parametrize("with_zero_point", [True, False])
    @pytest.mark.parametrize(("opset", "shape", "attributes"), GRANULARITIES, ids=str)
    def test_granularities(
        self, opset: int, shape: tuple[int, ...], attributes: dict[str, Any], with_zero_point: bool
    ) -> None:
        inputs = {"x": LEVELS, "scale": np.asarray(GENERATOR.uniform(0.1, 1, shape).astype(np.float32))}
        if with_zero_point:
            inputs["zero"] = np.asarray(GENERATOR.integers(-5, 5, shape).astype(np.int8))
        self.check(single_node("DequantizeLinear", inputs, opset=opset, **attributes), inputs)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
    def test_types_of_levels(self, dtype: type) -> None:
        inputs = {"x": np.abs(LEVELS).astype(dtype), "scale": np.full(4, 0.5, np.float32)}
        self.check(single_node("DequantizeLinear", inputs, opset=21), inputs)

    @pytest.mark.parametrize("dtype", [TensorProto.INT4, TensorProto.FLOAT8E4M3FN])
    def test_types_of_levels_that_numpy_lacks(self, dtype: int) -> None:
        nodes = [
            onnx.helper.make_node("Cast", ["x"], ["narrow"], to=dtype),
            onnx.helper.make_node("DequantizeLinear", ["narrow", "scale"], ["y0"]),
        ]
        inputs = {"x": (LEVELS % 8).astype(np.float32), "scale": np.full(4, 0.5, np.float32)}
        self.check(graph_model(nodes, inputs, ["y0"], opset=21), inputs)

    @pytest.mark.parametrize("shape", [(), (4,)])
    def test_half_precision(self, shape: tuple[int, ...]) -> None:
        inputs = {"x": LEVELS % 8, "scale": np.full(shape, 0.5, np.float16)}
        self.check(single_node("DequantizeLinear", inputs, opset=21), inputs)

    @staticmethod
    def check(model: Any, inputs: dict[str, np.ndarray]) -> None:
        evaluate, scale = evaluator(model), inputs["scale"]
        dy = GENERATOR.integers(-3, 4, LEVELS.shape).astype(scale.dtype)
        expected = np.zeros(scale.shape)
        for index in np.ndindex(scale.shape):
            unit = np.zeros_like(scale)
            unit[index] = 1
            expected[index] = (evaluate({**inputs, "scale": unit})["y0"].astype(float) * dy).sum()
        for knowledge in SHAPE_KNOWLEDGE:
            actual = gradients(with_shapes(model, knowledge), inputs, {"y0": dy}, ["scale"])["scale"]
            assert actual.dtype == scale.dtype
            np.testing.assert_array_equal(actual, expected)


OPERATORS = [
    ("", "ConvInteger"),
    ("", "DynamicQuantizeLinear"),
    ("", "MatMulInteger"),
    ("", "QLinearConv"),
    ("", "QLinearMatMul"),
    ("", "QuantizeLinear"),
    ("com.microsoft", "QGemm"),
    ("com.microsoft", "QLinearAdd"),
    ("com.microsoft", "QuantizeLinear"),
]


@pytest.mark.parametrize(("domain", "op_type"), OPERATORS)
def test_rounding_is_refused_unless_it_is_asked_for(domain: str, op_type: str) -> None:
    entry = registry.lookup(domain, op_type)
    assert entry.state is State.REFUSED
    assert entry.rounds
    assert 'quantization="straight-through"' in entry.reason
    assert registry.lookup(domain, op_type, quantization="straight-through").state is State.RULE


# The gradient of a scale that both quantizes and dequantizes is what two sums of large terms leave: what they
# may be rounded by, for each level of the range.
CANCELLED = 4e-6


def straight_through(
    model: onnx.ModelProto, inputs: dict[str, Any], dy: np.ndarray, wrt: list[str], levels: int = 256
) -> dict[str, np.ndarray]:
    """The gradients of `wrt`, which are the same whatever is known of shapes."""
    (y,) = (output.name for output in model.graph.output)
    known, *others = (
        gradients(with_shapes(model, knowledge), inputs, {y: dy}, wrt, quantization="straight-through")
        for knowledge in SHAPE_KNOWLEDGE
    )
    for other in others:
        for name in wrt:
            np.testing.assert_allclose(
                other[name],
                known[name],
                rtol=1e-6,
                atol=CANCELLED * levels if name == "scale" else 1e-6 * np.abs(known[name]).max(),
                err_msg=name,
            )
    return known


def quantized_and_back(
    inputs: dict[str, np.ndarray], opset: int, back: str = "scale", **attributes: Any
) -> onnx.ModelProto:
    """y = dequantized(quantized x)."""
    names = list(inputs)
    zero = names[2:3]
    granularity = {k: v for k, v in attributes.items() if k in ("axis", "block_size")}
    nodes = [
        onnx.helper.make_node("QuantizeLinear", names[:3], ["q"], **attributes),
        onnx.helper.make_node("DequantizeLinear", ["q", back, *zero], ["y"], **granularity),
    ]
    return graph_model(nodes, inputs, ["y"], opset=opset)


class TestQuantizeLinear:
    """Against the formulas: dx = dy where nothing is clipped, and the scale's of learned step sizes."""

    @pytest.mark.parametrize("zero_type", [np.int8, np.uint8, None])
    @pytest.mark.parametrize(("opset", "shape", "attributes"), GRANULARITIES, ids=str)
    def test_granularities(
        self, opset: int, shape: tuple[int, ...], attributes: dict[str, Any], zero_type: type | None
    ) -> None:
        x = GENERATOR.normal(0, 120, LEVELS.shape).astype(np.float32)
        inputs = {"x": x, "scale": np.asarray(GENERATOR.uniform(0.5, 1.5, shape).astype(np.float32))}
        if zero_type is not None:
            inputs["zero"] = np.asarray(GENERATOR.integers(0, 50, shape).astype(zero_type))
        low, high = (-128, 127) if zero_type is np.int8 else (0, 255)
        self.check(quantized_and_back(inputs, opset, **attributes), inputs, (low, high), attributes)

    @pytest.mark.parametrize("opset", [10, 13, 19, 21, 23, 25])
    def test_opsets(self, opset: int) -> None:
        x = GENERATOR.normal(0, 120, (4, 6)).astype(np.float32)
        inputs = {"x": x, "scale": np.array(0.75, np.float32), "zero": np.array(20, np.uint8)}
        self.check(quantized_and_back(inputs, opset), inputs, (0, 255), {})

    @pytest.mark.parametrize(
        ("dtype", "low", "high"),
        [
            (TensorProto.INT4, -8, 7),
            (TensorProto.UINT4, 0, 15),
            (TensorProto.INT16, -(2**15), 2**15 - 1),
            (TensorProto.UINT16, 0, 2**16 - 1),
        ],
    )
    def test_types_of_levels(self, dtype: int, low: int, high: int) -> None:
        x = np.linspace(1.3 * low - 3, 1.3 * high + 3, 60, dtype=np.float32).reshape(3, 4, 5)
        inputs = {"x": x, "scale": np.array([0.9, 1.1, 1.0, 0.8], np.float32)}
        model = quantized_and_back(inputs, 21, output_dtype=dtype, axis=1)
        self.check(model, inputs, (low, high), {"axis": 1})

    def test_float8(self) -> None:
        """Clipped at 448, the largest number; nothing is whole."""
        x = np.array([-1000, -449, -448, -0.3, 0, 17.7, 448, 450], np.float32)
        inputs = {"x": x * 2, "scale": np.array(2, np.float32)}
        model = quantized_and_back(inputs, 19 + 2, output_dtype=TensorProto.FLOAT8E4M3FN)
        dy = np.arange(1, 9, dtype=np.float32)
        actual = straight_through(model, inputs, dy, ["x"])["x"]
        np.testing.assert_array_equal(actual, dy * [0, 0, 1, 1, 1, 1, 1, 0])

    def test_half_precision(self) -> None:
        x = np.array([[-3, -1, 0, 0.7, 1, 30]], np.float16)
        inputs = {"x": x, "scale": np.array(0.25, np.float16), "zero": np.array([0], np.uint8).reshape(())}
        model = quantized_and_back(inputs, 21)
        dy = np.arange(1, 7, dtype=np.float16).reshape(1, 6)
        actual = straight_through(model, inputs, dy, ["x", "scale"])
        assert (actual["x"].dtype, actual["scale"].dtype) == (np.float16, np.float16)
        np.testing.assert_array_equal(actual["x"], dy * [0, 0, 1, 1, 1, 1])

    def test_what_is_rounded_to_a_bound_still_passes(self) -> None:
        """Halves are rounded to even: 255.5 is clipped, −0.5 is not."""
        x = np.array([-0.6, -0.5, -0.4, 0, 254.9, 255, 255.4, 255.5, 255.6, np.nan, np.inf], np.float32)
        inputs = {"x": x, "scale": np.array(1, np.float32)}
        actual = straight_through(quantized_and_back(inputs, 18), inputs, np.ones_like(x), ["x"])["x"]
        np.testing.assert_array_equal(actual, [0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0])

    def test_of_whole_numbers(self) -> None:
        """Accumulators are quantized again: their cotangent is one of floats."""
        a = np.array([[1, 2], [3, 200]], np.float32)
        model = parse(
            "g (float[2,2] a) => (float[2,2] y) <float one = {1.0}, float s = {8.0}> {"
            "q = QuantizeLinear(a, one) i = MatMulInteger(q, q) r = QuantizeLinear(i, s)"
            "y = DequantizeLinear(r, s) }",
            opset=23,
        )
        dy = np.array([[1, 2], [3, 4]], np.float32)
        actual = straight_through(model, {"a": a}, dy, ["a"])["a"]
        kept = dy * (np.round(a @ a / 8) <= 255)
        np.testing.assert_array_equal(actual, kept @ a.T + a.T @ kept)

    def test_is_differentiable_again(self) -> None:
        """y = r²·x with r, x rounded: by x, 2·r·x + r² where nothing is clipped, and 4·r + 2·x again."""
        model = parse(
            "g (float[3] x) => (float[3] y) <float s = {0.5}> {"
            "q = QuantizeLinear(x, s) r = DequantizeLinear(q, s) t = Mul(r, r) y = Mul(t, x) }"
        )
        first = onnx_grad.vjp(model, quantization="straight-through")
        second = onnx_grad.vjp(first, "x", "x_grad", quantization="straight-through")
        x = np.array([-2.0, 1.1, 3.0], np.float32)
        r = np.array([0.0, 1.0, 3.0], np.float32)
        inputs = {"x": x, "y_grad": np.ones(3, np.float32), "x_grad_grad": np.ones(3, np.float32)}
        values = run(second, inputs)
        inside = x >= 0
        np.testing.assert_allclose(values["x_grad"], 2 * r * x * inside + r * r, rtol=1e-6)
        np.testing.assert_allclose(values["x_grad_1"], (4 * r + 2 * x) * inside, rtol=1e-6)

    def test_unknown_type_is_refused(self) -> None:
        model = parse(
            "g (float[2] x, float s) => (float[2] y) { z = custom.Zero(x) q = QuantizeLinear(x, s, z) "
            "y = DequantizeLinear(q, s, z) }"
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match="type it quantizes to is unknown"):
            onnx_grad.vjp(model, "x", quantization="straight-through")

    @staticmethod
    def check(
        model: onnx.ModelProto,
        inputs: dict[str, np.ndarray],
        limits: tuple[int, int],
        attributes: dict[str, Any],
    ) -> None:
        x = inputs["x"].astype(np.float64)
        axis, size = attributes.get("axis", 1), attributes.get("block_size", 0)
        scale = _spread(inputs["scale"], x.shape, axis, size)
        zero = _spread(inputs.get("zero", np.array(0)), x.shape, axis, size)
        levels = np.round(x / scale) + zero
        clipped = np.clip(levels, *limits)
        inside = levels == clipped
        dy = GENERATOR.integers(-3, 4, x.shape).astype(np.float32)
        count = limits[1] - limits[0] + 1
        actual = straight_through(model, inputs, dy, ["x", "scale"], count)
        assert 0 < inside.mean() < 1
        np.testing.assert_allclose(actual["x"], dy * inside, rtol=1e-6)
        each = dy * (clipped - zero - inside * x / scale)
        expected = _gathered(each, inputs["scale"].shape, axis, size)
        np.testing.assert_allclose(actual["scale"], expected, rtol=1e-6, atol=CANCELLED * count)


def _spread(parameters: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int) -> np.ndarray:
    """Scales or zero points for each element."""
    wide = parameters.astype(np.float64)
    if wide.ndim == 1:
        wide = wide.reshape(-1, *[1] * (len(shape) - 1 - axis % len(shape)))
    if block_size and wide.ndim:
        wide = np.repeat(wide, block_size, axis).take(range(shape[axis]), axis)
    return np.broadcast_to(wide, shape)


def _gathered(each: np.ndarray, shape: tuple[int, ...], axis: int, block_size: int) -> np.ndarray:
    """The sums over the elements that share a scale."""
    if block_size:
        starts = range(0, each.shape[axis], block_size)
        return np.add.reduceat(each, list(starts), axis)
    if not shape:
        return each.sum()
    others = tuple(i for i in range(each.ndim) if i != axis % each.ndim)
    return each.sum(others)


class TestAgainstPyTorch:
    """`torch.fake_quantize_per_tensor_affine` and its likes, frozen and learnable, at the same points."""

    X = np.linspace(-3, 3, 61, dtype=np.float32).reshape(1, 61) * np.array([[1], [0.6]], np.float32)
    DY = GENERATOR.normal(size=(2, 61)).astype(np.float32)

    def test_per_tensor(self) -> None:
        torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
        x = torch.tensor(self.X, requires_grad=True)
        torch.fake_quantize_per_tensor_affine(x, 0.017, 5, -128, 127).backward(torch.tensor(self.DY))
        inputs = {"x": self.X, "scale": np.array(0.017, np.float32), "zero": np.array(5, np.int8)}
        actual = straight_through(quantized_and_back(inputs, 18), inputs, self.DY, ["x"])
        np.testing.assert_allclose(actual["x"], x.grad.numpy(), rtol=1e-6)

    def test_per_channel(self) -> None:
        torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
        x = torch.tensor(self.X, requires_grad=True)
        scale, zero = np.array([0.01, 0.017], np.float32), np.array([100, 128], np.uint8)
        fake = torch.fake_quantize_per_channel_affine(
            x, torch.tensor(scale), torch.tensor(zero.astype(np.int32)), 0, 0, 255
        )
        fake.backward(torch.tensor(self.DY))
        inputs = {"x": self.X, "scale": scale, "zero": zero}
        actual = straight_through(quantized_and_back(inputs, 18, axis=0), inputs, self.DY, ["x"])
        np.testing.assert_allclose(actual["x"], x.grad.numpy(), rtol=1e-6)

    @pytest.mark.parametrize("per_channel", [False, True])
    def test_learnable_scale(self, per_channel: bool) -> None:
        torch = pytest.importorskip("torch", reason="compares with PyTorch's autograd")
        x = torch.tensor(self.X, requires_grad=True)
        scale = np.array([0.01, 0.017] if per_channel else 0.017, np.float32)
        zero = np.array([3, -7] if per_channel else 5, np.int8)
        learned = torch.tensor(np.atleast_1d(scale), requires_grad=True)
        offset = torch.tensor(np.atleast_1d(zero).astype(np.float32))
        if per_channel:
            fake = torch._fake_quantize_learnable_per_channel_affine(x, learned, offset, 0, -128, 127, 1.0)
        else:
            fake = torch._fake_quantize_learnable_per_tensor_affine(x, learned, offset, -128, 127, 1.0)
        fake.backward(torch.tensor(self.DY))
        inputs = {"x": self.X, "scale": scale, "zero": zero}
        attributes = {"axis": 0} if per_channel else {}
        actual = straight_through(
            quantized_and_back(inputs, 18, **attributes), inputs, self.DY, ["x", "scale"]
        )
        np.testing.assert_allclose(actual["x"], x.grad.numpy(), rtol=1e-6)
        expected = learned.grad.numpy().reshape(scale.shape)
        np.testing.assert_allclose(actual["scale"], expected, rtol=1e-6, atol=CANCELLED * 256)


class TestCast:
    def test_to_eight_bits_and_back(self) -> None:
        model = parse(
            "g (float[6] x) => (float[6] y) { q = Cast<to=17>(x) r = Cast<to=1>(q) y = Mul(r, x) }", opset=19
        )
        x = np.array([-500, -448, 0.3, 5, 448, 449], np.float32)
        actual = straight_through(model, {"x": x}, np.ones(6, np.float32), ["x"])["x"]
        rounded = run(model, {"x": x})["y"] / x
        np.testing.assert_allclose(actual, rounded + x * [0, 1, 1, 1, 1, 0], rtol=1e-6)

    def test_between_integers(self) -> None:
        model = parse(
            "g (float[3] x) => (float16[3] y) <float s = {0.5}> {"
            "q = QuantizeLinear(x, s) i = Cast<to=6>(q) l = CastLike(q, i) t = Add(i, l) y = Cast<to=10>(t) }"
        )
        x = np.array([-1, 2, 3], np.float32)
        actual = straight_through(model, {"x": x}, np.ones(3, np.float16), ["x"])["x"]
        np.testing.assert_array_equal(actual, [0, 4, 4])

    def test_to_integers_that_nothing_was_quantized_to_ends_the_path(self) -> None:
        model = parse("g (float[2] x) => (float[2] y) { i = Cast<to=7>(x) f = Cast<to=1>(i) y = Mul(x, f) }")
        x = np.array([2.5, 3.5], np.float32)
        actual = straight_through(model, {"x": x}, np.ones(2, np.float32), ["x"])["x"]
        np.testing.assert_array_equal(actual, [2, 3])


class TestDynamicQuantizeLinear:
    def test_passes_what_is_not_clipped(self) -> None:
        model = parse(
            "g (float[N] x) => (float[N] y) { "
            "q, s, z = DynamicQuantizeLinear(x) y = DequantizeLinear(q, s, z) }"
        )
        x = np.linspace(-1, 3, 50, dtype=np.float32)
        dy = GENERATOR.normal(size=50).astype(np.float32)
        np.testing.assert_allclose(straight_through(model, {"x": x}, dy, ["x"])["x"], dy, rtol=1e-6)

    def test_scale_and_zero_point_count_as_constants(self) -> None:
        model = parse(
            "g (float[4] x) => (float[4] y) { q, s, z = DynamicQuantizeLinear(x) "
            "l = Cast<to=1>(q) o = Cast<to=1>(z) d = Sub(l, o) e = Mul(d, s) y = Mul(e, e) }"
        )
        x = np.array([-1, 0.5, 1, 2], np.float32)
        expected = 2 * np.sqrt(run(model, {"x": x})["y"]) * np.sign(x)
        actual = straight_through(model, {"x": x}, np.ones(4, np.float32), ["x"])["x"]
        np.testing.assert_allclose(actual, expected, rtol=1e-6)

    def test_only_its_scale_is_used(self) -> None:
        model = parse("g (float[4] x) => (float[4] y) { q, s, z = DynamicQuantizeLinear(x) y = Mul(x, s) }")
        x = np.array([-1, 0.5, 1, 2], np.float32)
        actual = straight_through(model, {"x": x}, np.ones(4, np.float32), ["x"])["x"]
        np.testing.assert_allclose(actual, np.full(4, 3 / 255), rtol=1e-6)
