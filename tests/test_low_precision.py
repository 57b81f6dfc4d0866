"""Gradients in float16 and bfloat16: as accurate as the type allows, and no overflow that need not be.

bfloat16 does not run on ONNX Runtime's CPU provider, and float16 runs there in float32. What is asserted
here therefore holds for an emulated provider that rounds after each node, see `tests.low_precision`; where
sums are concerned, also for onnx's reference evaluator, which adds in half precision; and for float16 on the
CPU provider itself.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import onnx_grad
from onnx_grad.registry import State, lookup
from tests.graphs import parse
from tests.low_precision import (
    DTYPES,
    UNIT,
    Arrays,
    element_types,
    exact_gradients,
    gradients_by,
    rounding_after_each_node,
    run,
    run_rounded,
)
from tests.operator_forms import HALF_TYPES, Form, between, distinct, integers, normal, operator_forms
from tests.oracle import given_names, quiet_vjp, single_node, with_shapes

pytestmark = pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")

FORMS = [
    pytest.param(form, dtype, id=f"{form.operator}-{dtype}")
    for form in operator_forms()
    for dtype in DTYPES
    if form.allows(dtype)
]


# What ONNX Runtime's CPU provider does not run in float16, forward, at the opset of the form.
NOT_IN_FLOAT16 = frozenset({"RoiAlign", "ScatterElements", "ScatterND", "SwiGLU"})


# Control flow, recurrences, sequences and optionals.
WITHOUT_FORM = frozenset(
    "ConcatFromSequence GRU If LSTM Loop Optional OptionalGetElement RNN Scan SequenceAt SequenceConstruct "
    "SequenceErase SequenceInsert SequenceMap SplitToSequence".split()
)


def test_every_operator_has_a_form() -> None:
    operators = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    differentiable = {name for name in operators if lookup("", name).state in (State.RULE, State.EXPANDED)}
    assert differentiable - WITHOUT_FORM == {form.operator for form in operator_forms()}


@pytest.mark.parametrize(("form", "dtype"), FORMS)
def test_gradient_in_half_precision_is_that_in_double(form: Form, dtype: str) -> None:
    model, point = form.model(DTYPES[dtype]), form.point(DTYPES[dtype])
    outputs = {y: v for y, v in run_rounded(model, point).items() if v.dtype == np.float32}
    cotangents = {
        y: np.asarray(between(0.5, 1.5, *v.shape) * np.sign(normal(*v.shape))).astype(DTYPES[dtype])
        for y, v in outputs.items()
    }
    expected = exact_gradients(form.model, point, cotangents)
    transformed = quiet_vjp(model, None, list(cotangents))
    emulated = gradients_by(rounding_after_each_node(transformed), transformed, point, cotangents)
    _assert_close(emulated, expected, 3 * UNIT[dtype])
    if dtype == "float16" and form.operator not in NOT_IN_FLOAT16:
        by_runtime = gradients_by(transformed, transformed, point, cotangents)
        _assert_close(by_runtime, expected, UNIT[dtype])


def _assert_close(actual: Arrays, expected: Arrays, tolerance: float) -> None:
    """Within `tolerance` of the largest element of each gradient."""
    assert actual.keys() == expected.keys() != set()
    for x, gradient in actual.items():
        largest = np.abs(expected[x]).max(initial=0.0)
        np.testing.assert_allclose(gradient, expected[x], 0, tolerance * largest, err_msg=x)


def _form(operator: str, x: np.ndarray, *others: np.ndarray, opset: int = 22, **attributes: object) -> Form:
    return Form(operator, {"x": x, **{f"x{i}": a for i, a in enumerate(others, 1)}}, opset, 1, attributes)


_ROWS = 1000.0 + np.array([[[-1.5, 0.5, 1.0, -0.5], [2.0, -1.0, 0.5, 0.5]]])
_ONE_TWO = np.array([1.0, 2.0])

# Forms at points where a formula that is right for real numbers leaves the range of float16, or loses all its
# digits, and a cotangent that makes the gradient representable.
BEYOND_THE_RANGE = {
    "mean over more elements than float16 counts": (_form("ReduceMean", normal(70_000), keepdims=0), 6e4),
    "mean over more positions than that": (_form("GlobalAveragePool", normal(1, 1, 300, 300)), 6e4),
    "more equal elements than that": (_form("Unique", np.ones(70_000)), 6e4),
    "more ties than that": (_form("ReduceMax", np.ones(70_000), keepdims=0), 6e4),
    "positions beyond the digits of float16": (
        _form("Range", np.array(0.0), np.array(5000.0), np.array(1.0), opset=28),
        1e-3,
    ),
    "transform of many points": (
        _form("DFT", normal(1, 4096, 1), np.array(4096, dtype=np.int64), np.array(1, dtype=np.int64)),
        0.01,
    ),
    "squares of large numbers in arsinh": (_form("Asinh", np.array([300.0, -6e4])), 1.0),
    "in arcosh": (_form("Acosh", np.array([300.0, 6e4])), 1.0),
    "in arctan": (_form("Atan", np.array([300.0, -2000.0])), 1e3),
    "in softsign": (_form("Softsign", np.array([300.0, -2000.0])), 1e3),
    "in tan": (_form("Tan", np.array([1.5684, -1.5664])), 1e-3),
    "in reciprocal": (_form("Reciprocal", np.array([1 / 300, -1 / 1000])), 1e-3),
    "in a power": (_form("Pow", np.array([1e-4, 1e-3]), np.array([-0.5])), 1e-3),
    "in many powers": (_form("Pow", np.array([1e-4, 1e-3]), np.array([-0.5, -0.75])), 1e-3),
    "in a product": (_form("ReduceProd", np.array([300.0, 400.0, 1e-3]), keepdims=0), 0.1),
    "in a running product": (
        _form("CumProd", np.array([300.0, 400.0, 1e-3]), np.array(0, dtype=np.int64), opset=26, reverse=1),
        0.1,
    ),
    "powers in a norm": (_form("GlobalLpPool", 300 * distinct(1, 1, 2, 3), opset=21, p=3), 1.0),
    "logarithm of huge sums": (_form("ReduceLogSumExp", _ROWS[0], integers(1), keepdims=0), 1.0),
    "logarithm of tiny sums": (_form("ReduceLogSum", np.array([1e-5, 2e-5]), keepdims=0), 0.1),
    "norm of tiny numbers": (_form("ReduceL2", np.array([1e-5, -2e-5]), keepdims=0), 1.0),
    "batch far from zero": (
        replace(_form("BatchNormalization", _ROWS, *[_ONE_TWO] * 4, training_mode=1), outputs=3),
        1.0,
    ),
    "instance far from zero": (_form("InstanceNormalization", _ROWS, _ONE_TWO, _ONE_TWO), 1.0),
    "layer far from zero": (_form("LayerNormalization", _ROWS, np.ones(4)), 1.0),
    "group far from zero": (
        _form("GroupNormalization", _ROWS, _ONE_TWO, _ONE_TWO, num_groups=2),
        1.0,
    ),
    "variance far from zero": (_form("MeanVarianceNormalization", _ROWS, axes=[2]), 1.0),
    "powers in a pooled norm": (_form("LpPool", 75 * distinct(1, 1, 4, 4), kernel_shape=[2, 2], p=3), 1.0),
    "points in a large image": (
        _form("GridSample", normal(1, 1, 2, 600), np.array([[[[0.6637, -0.1], [-0.4127, 0.2]]]])),
        1.0,
    ),
    "regions of a large image": (
        _form("RoiAlign", normal(1, 1, 4, 600), np.array([[400.4, 0.3, 503.6, 3.1]]), integers(0), opset=18),
        1.0,
    ),
    "taps in a large image": (
        _form("DeformConv", normal(1, 1, 1, 600), np.ones((1, 1, 1, 1)), between(0.2, 0.8, 1, 2, 1, 600)),
        1.0,
    ),
    "integers beyond float16": (
        Form("DequantizeLinear", {"q": np.array([200_000, -70_000], np.int32), "x": np.array(0.002)}, 22),
        0.01,
    ),
}


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
@pytest.mark.parametrize(("form", "size"), BEYOND_THE_RANGE.values(), ids=list(BEYOND_THE_RANGE))
def test_nothing_overflows_or_vanishes_on_the_way(form: Form, size: float, knowledge: str) -> None:
    point = form.point(np.float16)
    model = with_shapes(form.model(np.float16), knowledge)
    outputs = run_rounded(model, point)
    cotangents = {
        y: np.asarray(size * np.where(np.arange(v.size).reshape(v.shape) % 3, 0.75, 1.0), dtype=np.float16)
        for y, v in outputs.items()
        if v.dtype == np.float32
    }
    expected = exact_gradients(form.model, point, cotangents)
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 1e-3
    transformed = quiet_vjp(model, None, list(cotangents))
    emulated = gradients_by(rounding_after_each_node(transformed), transformed, point, cotangents)
    _assert_close(emulated, expected, 3 * UNIT["float16"])


ADDENDS = {
    "small terms": np.full(10_000, 0.1),
    "partial sums beyond the range": np.array([6e4, 6e4, -6e4, -5.9e4]),
}


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
@pytest.mark.parametrize("evaluate", ["onnxruntime", "rounded", "reference"])
@pytest.mark.parametrize("addends", ADDENDS.values(), ids=list(ADDENDS))
def test_undoing_a_broadcast_rounds_once(addends: np.ndarray, evaluate: str, knowledge: str) -> None:
    addends = addends.astype(np.float16)
    inputs = {"a": addends, "b": np.ones(1, np.float16)}
    model = quiet_vjp(with_shapes(single_node("Add", inputs), knowledge), "b")
    cotangent_names, _ = given_names(model)
    given = {**inputs, cotangent_names["y0"]: addends}
    if evaluate == "reference":
        total = ReferenceEvaluator(model).run(["b_grad"], given)[0]
    else:
        total = {"rounded": run_rounded, "onnxruntime": run}[evaluate](model, given)["b_grad"]
    np.testing.assert_array_equal(total, [addends.astype(np.float64).sum().astype(np.float16)])


def test_undoing_a_broadcast_rounds_once_in_bfloat16() -> None:
    addends = np.full(10_000, 0.1).astype(DTYPES["bfloat16"])
    inputs = {"a": addends, "b": np.ones(1, addends.dtype)}
    model = quiet_vjp(single_node("Add", inputs), "b")
    (total,) = ReferenceEvaluator(model).run(["b_grad"], {**inputs, "y0_grad": addends})
    np.testing.assert_array_equal(total, [addends.astype(np.float64).sum().astype(addends.dtype)])


SUMS = frozenset(
    "CumSum ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMean ReduceProd ReduceSum "
    "ReduceSumSquare".split()
)


@pytest.mark.parametrize("knowledge", ["static", "unknown"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_emitted_takes_half_precision_and_sums_in_single(dtype: str, knowledge: str) -> None:
    """At the oldest opset that has each form: several operators take bfloat16 only since a newer one."""
    for form in operator_forms():
        if not form.allows(dtype):
            continue
        model = quiet_vjp(with_shapes(form.model(DTYPES[dtype]), knowledge))
        types = element_types(model)
        for node in model.graph.node:
            if not any(entry.key.startswith("pkg.onnx_grad") for entry in node.metadata_props):
                continue
            where = f"{form.operator}: {node.op_type} '{node.name}'"
            for name, allowed in zip(node.input, _allowed_types(node, form.opset), strict=True):
                assert not name or types[name] in allowed, where
            assert node.op_type not in SUMS or types[node.input[0]] not in HALF_TYPES.values(), where


def _allowed_types(node: onnx.NodeProto, opset: int) -> list[set[str]]:
    """The types that each input of `node` may have."""
    schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    formals = [schema.inputs[min(i, len(schema.inputs) - 1)] for i in range(len(node.input))]
    return [allowed.get(formal.type_str, {formal.type_str}) for formal in formals]


CASTS = [("float", "float16"), ("float16", "bfloat16"), ("double", "bfloat16"), ("bfloat16", "float")]


@pytest.mark.parametrize(("source", "target"), CASTS)
def test_cast_passes_gradients_between_float_types(source: str, target: str) -> None:
    number = onnx.TensorProto.DataType.Value(target.upper())
    model = parse(f"g ({source}[2] x) => ({target}[2] y) {{ y = Cast <to = {number}> (x) }}")
    transformed = onnx_grad.vjp(model)
    types = element_types(transformed)
    assert (types["y_grad"], types["x_grad"]) == (f"tensor({target})", f"tensor({source})")
    dy = np.array([0.5, -3.0])
    gradient = gradients_by(rounding_after_each_node(transformed), transformed, {"x": dy}, {"y": dy})["x"]
    np.testing.assert_array_equal(gradient, dy)


@pytest.mark.parametrize("number", [onnx.TensorProto.INT32, onnx.TensorProto.BOOL])
def test_cast_stops_gradients_at_integers(number: int) -> None:
    model = parse(
        f"g (float[2] x) => (float[2] y) {{ i = Cast <to={number}> (x) r = Cast <to=1> (i) y = Mul(x, r) }}"
    )
    transformed = onnx_grad.vjp(model)
    x, dy = np.array([2.5, 0.25]), np.array([1.0, 2.0])
    gradient = gradients_by(transformed, transformed, {"x": x}, {"y": dy})["x"]
    np.testing.assert_array_equal(gradient, dy * x.astype(onnx.helper.tensor_dtype_to_np_dtype(number)))


def test_cast_to_float8_is_refused_as_quantization() -> None:
    """Zero would be a silent surprise, and a cotangent has no room in eight bits."""
    model = parse(
        "g (float[2] x) => (float[2] y) { q = Cast <to = 17> (x) r = Cast <to = 1> (q) y = Add(x, r) }",
        opset=19,
    )
    with pytest.raises(onnx_grad.UnsupportedOpError, match="FLOAT8E4M3FN are quantised"):
        onnx_grad.vjp(model)
    transformed = onnx_grad.vjp(model, stop="q")
    gradient = gradients_by(transformed, transformed, {"x": np.ones(2)}, {"y": np.ones(2)})["x"]
    np.testing.assert_array_equal(gradient, [1, 1])
