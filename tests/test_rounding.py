"""Operators whose rules are for floats, on integers that stand for real numbers.

With scale one and zero point zero, integers are the numbers they stand for: it makes no difference whether an
operator comes before dequantization or behind it.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnx_grad
from onnx_grad import registry
from onnx_grad.builder import Builder
from tests.graphs import operators, parse
from tests.oracle import SHAPE_KNOWLEDGE, evaluator, gradients, with_shapes

GENERATOR = np.random.default_rng(3)
X = GENERATOR.permutation(np.linspace(-150, 150, 96, dtype=np.float32)).reshape(2, 4, 3, 4)
CONSTANTS = (
    "float one = {1.0}, int8 zero = {0}, int64[2] matrix = {8, -1}, int64[3] rows = {2, 0, 2}, "
    "int64[1] first = {1}, int64[1] last = {3}, int64[1] axis = {1}, int64[4] twice = {1, 2, 1, 1}, "
    "int64[5] five = {2, 2, 4, 3, 4}, int64[8] pads = {0, 1, 0, 0, 0, 0, 2, 0}, int64[1] two = {2}, "
    "int8 low = {-20}, int8 high = {30}, float low_f = {-20}, float high_f = {30}, "
    "bool[4] mask = {1, 0, 0, 1}, "
    "int64[2,1,1,1] index = {3, 0}, float[4] scales = {1, 1, 2, 2}, int8[4] row = {-100, 0, 20, 127}, "
    "float[4] row_f = {-100, 0, 20, 127}, int64[3] coordinates = {1, 3, 0}, int64[2] pair = {0, 1}"
)

# One node from q to r, on int8.
MOVED = [
    "Reshape(q, matrix)",
    "Flatten<axis=2>(q)",
    "Transpose<perm=[2,0,3,1]>(q)",
    "Unsqueeze(q, axis)",
    "Expand(q, five)",
    "Identity(q)",
    "Concat<axis=1>(q, q)",
    "Slice(q, first, last, axis)",
    "Gather<axis=1>(q, rows)",
    "GatherElements<axis=1>(q, index)",
    "GatherND(q, coordinates)",
    "Pad(q, pads, low)",
    "Pad<mode=\"edge\">(q, pads)",
    "Tile(q, twice)",
    "Compress<axis=1>(q, mask)",
    "DepthToSpace<blocksize=2>(q)",
    "SpaceToDepth<blocksize=1>(q)",
    "Resize<mode=\"nearest\">(q, , scales)",
    "MaxPool<kernel_shape=[2,2]>(q)",
    "MaxPool<kernel_shape=[2,2], strides=[2,2], pads=[1,0,1,0]>(q)",
    "ReduceMax(q, axis)",
    "ReduceMin<keepdims=0>(q, axis)",
    "Relu(q)",
    "Clip(q, low, high)",
    "Where(mask, q, row)",
    "Max(q, row)",
    "Min(q, row, q)",
    "ScatterND(q, pair, piece)",
    "ReverseSequence<batch_axis=0, time_axis=1>(q, pair)",
]  # fmt: skip


def as_floats(node: str) -> str:
    """The same node on floats: its operands are dequantized, its constants floats."""
    return re.sub(r"\b(row|low|high|piece)\b", r"\1_f", re.sub(r"\bq\b", "d", node))


def model_of(node: str, before: bool) -> onnx.ModelProto:
    """`node` before dequantization, or behind it."""
    body = (
        f"r = {node} y = DequantizeLinear(r, one, zero)"
        if before
        else f"d = DequantizeLinear(q, one, zero) y = {as_floats(node)}"
    )
    slices = "piece = GatherND(q, pair) piece_f = Cast<to=1>(piece) " if "piece" in node else ""
    model = parse(
        f"g (float[2,4,3,4] x) => (float y) <{CONSTANTS}> "
        f"{{ q = QuantizeLinear(x, one, zero) {slices}{body} }}"
    )
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


@pytest.mark.parametrize("node", MOVED)
def test_as_on_floats(node: str) -> None:
    integers, floats = (model_of(node, before) for before in (True, False))
    dy = GENERATOR.normal(size=evaluator(floats)({"x": X})["y"].shape).astype(np.float32)
    option = {"quantization": "straight-through"}
    expected = gradients(floats, {"x": X}, {"y": dy}, ["x"], **option)["x"]
    assert np.any(expected)
    for knowledge in SHAPE_KNOWLEDGE:
        actual = gradients(with_shapes(integers, knowledge), {"x": X}, {"y": dy}, ["x"], **option)["x"]
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6, err_msg=knowledge)


class TestWhatIsRead:
    """Integers are converted where a rule reads their content, and not where it reads their shape."""

    def test_shapes_are_those_of_the_integers(self) -> None:
        model = with_shapes(model_of("Reshape(q, matrix)", before=True), "symbolic")
        added = operators(onnx_grad.vjp(model, quantization="straight-through"))
        assert added.count("Shape") == 1
        assert added.count("Cast") == 1  # of the mask that clips

    def test_contents_are_converted(self) -> None:
        added = operators(
            onnx_grad.vjp(model_of("Clip(q, low, high)", before=True), quantization="straight-through")
        )
        assert added.count("Cast") == 1 + 4


class TestWhereThePathEnds:
    def test_positions_of_maxima_are_no_real_numbers(self) -> None:
        """They are integers, but were not rounded to: nothing flows, and nothing is refused."""
        model = parse(
            "g (float[2,4] x) => (float[2,2] y) <float one = {1.0}, int64[1] k = {2}> { "
            "q = QuantizeLinear(x, one) v, i = TopK(q, k) y = Cast<to=1>(i) }"
        )
        for quantization in (None, "straight-through"):
            with pytest.warns(onnx_grad.NoPathWarning):
                onnx_grad.vjp(model, quantization=quantization)

    def test_an_index_has_no_cotangent(self) -> None:
        model = parse(
            "g (float[3] x, float[9] table) => (float[3] y) <float one = {1.0}> { "
            "q = QuantizeLinear(x, one) i = Cast<to=7>(q) t = Gather(table, i) f = Cast<to=1>(i) "
            "y = Mul(t, f) }"
        )
        x, table = np.array([0, 2.2, 7], np.float32), np.arange(9, dtype=np.float32) ** 2
        dy, option = np.ones(3, np.float32), {"quantization": "straight-through"}
        actual = gradients(model, {"x": x, "table": table}, {"y": dy}, ["x", "table"], **option)
        np.testing.assert_array_equal(actual["x"], [0, 4, 49])
        np.testing.assert_array_equal(actual["table"], [0, 0, 2, 0, 0, 0, 0, 7, 0])


@pytest.mark.parametrize("chosen", [True, False])
def test_bodies_round_inside(chosen: bool) -> None:
    rounded = (
        "b () => (float[3] r) { q = QuantizeLinear(x, one) m = Identity(q) r = DequantizeLinear(m, one) }"
    )
    doubled = "c () => (float[3] d) { d = Add(x, x) }"
    model = parse(
        "g (float[3] x, bool which) => (float[3] y) <float one = {1.0}> { "
        f"y = If<then_branch = {rounded}, else_branch = {doubled}>(which) }}"
    )
    inputs = {"x": np.array([-5, 3.3, 300], np.float32), "which": np.array(chosen)}
    option = {"quantization": "straight-through"}
    actual = gradients(model, inputs, {"y": np.ones(3, np.float32)}, ["x"], **option)["x"]
    np.testing.assert_array_equal(actual, [0, 1, 0] if chosen else [2, 2, 2])


class TestWhatIsRefused:
    def test_integers_in_a_loop(self) -> None:
        body = "b (int64 i, bool c, uint8[2] s) => (bool d, uint8[2] t) { d = Identity(c) t = Identity(s) }"
        model = parse(
            "g (float[2] x) => (float[2] y) <float one = {1.0}, int64 trips = {3}> { "
            f"q = QuantizeLinear(x, one) r = Loop<body = {body}>(trips, , q) y = DequantizeLinear(r, one) }}"
        )
        with pytest.raises(onnx_grad.UnsupportedOpError, match=r"\(Loop\): integers that stand for real"):
            onnx_grad.vjp(model, quantization="straight-through")
        with pytest.raises(
            onnx_grad.UnsupportedOpError, match=r"\(QuantizeLinear\): it computes with rounded"
        ):
            onnx_grad.vjp(model)

    def test_an_operator_of_unknown_types(self) -> None:
        @onnx_grad.gradient("Halved", domain="custom")
        def halved(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
            return dy * 0.5

        model = parse(
            "g (float[2] x) => (float[2] y) <float one = {1.0}> { "
            "q = QuantizeLinear(x, one) r = custom.Halved(q) y = DequantizeLinear(r, one) }"
        )
        try:
            with pytest.raises(onnx_grad.UnsupportedOpError, match=r"\(Halved\): integers that stand for"):
                onnx_grad.vjp(model, quantization="straight-through")
        finally:
            registry.unregister("Halved", "custom")

    def test_a_quantization_that_is_not_there(self) -> None:
        model = model_of("Identity(q)", before=True)
        with pytest.raises(onnx_grad.InputError, match="no quantization 'ste'; there is: 'straight-through'"):
            onnx_grad.vjp(model, quantization="ste")


def test_a_rule_of_ones_own_for_rounding() -> None:
    """Registered for the choice only, its operator is refused without it, as before."""

    @onnx_grad.gradient("Level", domain="custom", quantization="straight-through", rounds=True)
    def level(op: Builder, node: ir.Node, dy: ir.Value) -> ir.Value:
        return dy * 2.0

    model = parse("g (float[2] x) => (float[2] y) { q = custom.Level(x) r = Relu(q) y = Cast<to=1>(r) }")
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("q", onnx.TensorProto.INT32, [2]))
    try:
        added = operators(onnx_grad.vjp(model, quantization="straight-through"))
        assert added.count("Mul") == 2
        with pytest.raises(onnx_grad.UnsupportedOpError, match=r"\(Level\): it computes with rounded"):
            onnx_grad.vjp(model)
    finally:
        registry.unregister("Level", "custom")
